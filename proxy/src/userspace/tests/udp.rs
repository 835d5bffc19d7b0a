//! UDP through the listeners: sessions, source addresses, sizes, refusals.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use sheave_model::{AppProtocol, Protocol, ResourceKey, Service, ServiceKey};

use super::world::{NODE, Netns, World, ip};
use crate::userspace::sys;
use crate::userspace::testing::{Build, service};

fn dns() -> Service {
    service("dns", "10.96.0.53 fd96::53").any_port(53, Protocol::Udp, AppProtocol::Opaque, Some(30_053))
}

fn served() -> World {
    let world = World::new();
    for (pod, name, last) in [(&world.pods[0], "five", 5), (&world.pods[1], "six", 6)] {
        pod.serve_udp(name, &format!("10.1.0.{last}:5353"));
        pod.serve_udp(name, &format!("[fd01::{last}]:5353"));
    }
    world.outside.serve_udp("seven", "10.2.0.7:5353");
    world.outside.serve_udp("seven", "[fd02::7]:5353");
    world
}

struct Client(UdpSocket);

/// What a server answered: its name, whom it saw, and how much came back.
#[derive(Debug)]
struct Answer {
    name: String,
    peer: SocketAddr,
    from: SocketAddr,
    payload: Vec<u8>,
}

impl Client {
    fn new(ns: &Netns, own: &str) -> Self {
        let own: SocketAddr = own.parse().unwrap();
        let socket = ns.run(move || UdpSocket::bind(own)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        Self(socket)
    }

    fn ask(&self, to: &str, payload: &[u8]) -> io::Result<Answer> {
        self.0.send_to(payload, to)?;
        self.answer()
    }

    fn answer(&self) -> io::Result<Answer> {
        let mut buffer = vec![0; 65_536];
        let (count, from) = self.0.recv_from(&mut buffer)?;
        let mut parts = buffer[..count].splitn(3, |b| *b == b' ');
        let mut text = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
        let (name, peer) = (text(), text().parse().unwrap());
        Ok(Answer { name, peer, from, payload: parts.next().unwrap().to_vec() })
    }

    fn own_port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}

/// Why a datagram gets no answer, by a connected socket and by one that asks for errors.
fn refusals(ns: &Netns, to: &str) -> [io::ErrorKind; 2] {
    let v4 = !to.contains('[');
    let any = if v4 { "0.0.0.0:0" } else { "[::]:0" };
    let connected = Client::new(ns, any);
    connected.0.connect(to).unwrap();
    connected.0.send(b"x").unwrap();
    let asking = Client::new(ns, any);
    let (level, option) = if v4 { (libc::SOL_IP, libc::IP_RECVERR) } else { (libc::SOL_IPV6, libc::IPV6_RECVERR) };
    sys::set_option(&asking.0, level, option, 1).unwrap();
    asking.0.send_to(b"x", to).unwrap();
    [connected, asking].map(|client| client.answer().unwrap_err().kind())
}

#[test]
fn datagrams_reach_a_backend_and_replies_come_from_the_frontend() {
    let mut world = served();
    for (backend, name) in [("10.1.0.6", "six"), ("10.2.0.7", "seven"), ("fd01::6", "six"), ("fd02::7", "seven")] {
        world.apply(vec![dns().ready(backend, &[5353])], vec![]);
        let v4 = !backend.contains(':');
        let (vip, any) = if v4 { ("10.96.0.53:53", "0.0.0.0:0") } else { ("[fd96::53]:53", "[::]:0") };
        for (client, who) in [(&world.pods[0], "pod"), (&world.node, "node"), (&world.outside, "outside")] {
            let socket = Client::new(client, any);
            for payload in [&b"one"[..], b"", b"three"] {
                let answer = socket.ask(vip, payload).unwrap_or_else(|e| panic!("{who} -> {vip} ({name}): {e}"));
                assert_eq!((answer.name.as_str(), answer.payload.as_slice()), (name, payload));
                assert_eq!(answer.from, vip.parse().unwrap());
                if who == "pod" {
                    let own = if v4 { ip("10.1.0.5") } else { ip("fd01::5") };
                    assert_eq!(answer.peer, SocketAddr::new(own, socket.own_port()));
                } else {
                    let node = [ip(NODE), ip("fd00::1"), ip("169.254.1.1")];
                    assert!(node.contains(&answer.peer.ip()), "{who}: {} is not the node's", answer.peer);
                }
            }
        }
    }
    assert_eq!(world.metric("sheave_udp_sessions"), 12.0);
    assert_eq!(world.metric("sheave_listener_accepts_total{protocol=\"UDP\"}"), 12.0);
}

#[test]
fn what_a_program_says_straight_to_a_backend_from_a_port_that_it_chose_is_its_own() {
    let mut world = served();
    world.apply(vec![dns().ready("10.1.0.6", &[5353])], vec![]);
    let (own, backend) = (SocketAddr::new(ip("10.1.0.5"), 7946), "10.1.0.6:5353");
    let client = Client::new(&world.pods[0], "0.0.0.0:7946");
    let served = client.ask("10.96.0.53:53", b"x").unwrap();
    assert_eq!(served.peer.ip(), own.ip());
    let direct = client.ask(backend, b"y").unwrap();
    assert_eq!((direct.from, direct.peer), (backend.parse().unwrap(), own));
    assert_eq!(client.ask("10.96.0.53:53", b"z").unwrap().from, "10.96.0.53:53".parse().unwrap());
}

#[test]
fn node_ports_and_hairpin() {
    let mut world = served();
    world.apply(vec![dns().ready("10.1.0.5", &[5353]).ready("fd01::5", &[5353])], vec![]);
    for (client, any, address) in [
        (&world.outside, "0.0.0.0:0", "10.0.0.1:30053"),
        (&world.outside, "[::]:0", "[fd00::1]:30053"),
        (&world.node, "0.0.0.0:0", "127.0.0.1:30053"),
        (&world.node, "[::]:0", "[::1]:30053"),
        (&world.node, "0.0.0.0:0", "10.0.0.1:30053"),
        (&world.pods[0], "0.0.0.0:0", "10.96.0.53:53"),
        (&world.pods[0], "[::]:0", "[fd96::53]:53"),
    ] {
        let answer = Client::new(client, any).ask(address, b"x").unwrap_or_else(|e| panic!("{address}: {e}"));
        assert_eq!(answer.name, "five", "{address}");
        assert_eq!(answer.from, address.parse().unwrap());
        assert!(![ip("10.1.0.5"), ip("fd01::5")].contains(&answer.peer.ip()), "{address}");
    }
    // The port is held by no socket: an application may bind it.
    drop(Client::new(&world.node, "0.0.0.0:30053"));
}

#[test]
fn large_datagrams_pass_in_both_directions() {
    let mut world = served();
    world.apply(vec![dns().ready("10.2.0.7", &[5353]).ready("fd02::7", &[5353])], vec![]);
    for (any, vip) in [("0.0.0.0:0", "10.96.0.53:53"), ("[::]:0", "[fd96::53]:53")] {
        for client in [&world.pods[0], &world.outside, &world.node] {
            let socket = Client::new(client, any);
            for size in [1472, 2000, 9000, 60_000] {
                let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
                let answer = socket.ask(vip, &payload).unwrap_or_else(|e| panic!("{size} bytes to {vip}: {e}"));
                assert!(answer.payload == payload, "{size} bytes were changed on their way");
            }
        }
    }
}

#[test]
fn a_client_socket_keeps_its_backend_until_that_is_gone() {
    let mut world = served();
    let both = || dns().ready("10.1.0.6", &[5353]).ready("10.2.0.7", &[5353]);
    world.apply(vec![both()], vec![]);
    let client = Client::new(&world.pods[0], "0.0.0.0:0");
    let first = client.ask("10.96.0.53:53", b"x").unwrap().name;
    for _ in 0..10 {
        assert_eq!(client.ask("10.96.0.53:53", b"x").unwrap().name, first);
    }
    let names: BTreeSet<_> =
        (0..20).map(|_| Client::new(&world.pods[0], "0.0.0.0:0").ask("10.96.0.53:53", b"x").unwrap().name).collect();
    assert_eq!(names.len(), 2);
    let (left, expected) = if first == "six" { ("10.2.0.7", "seven") } else { ("10.1.0.6", "six") };
    world.apply(vec![dns().ready(left, &[5353])], vec![]);
    assert_eq!(client.ask("10.96.0.53:53", b"x").unwrap().name, expected);
    // None at all is refused and not remembered.
    world.apply(vec![dns()], vec![]);
    client.0.connect("10.96.0.53:53").unwrap();
    client.0.send(b"x").unwrap();
    assert_eq!(client.answer().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    world.apply(vec![both()], vec![]);
    client.0.send(b"x").unwrap();
    client.answer().unwrap();
}

#[test]
fn one_client_socket_behind_two_frontends_of_one_backend_keeps_two_flows() {
    let mut world = served();
    let other = service("other", "10.96.0.54").udp(53).ready("10.1.0.6", &[5353]);
    world.apply(vec![dns().ready("10.1.0.6", &[5353]), other], vec![]);
    let client = Client::new(&world.pods[0], "0.0.0.0:0");
    for _ in 0..3 {
        for vip in ["10.96.0.53:53", "10.96.0.54:53"] {
            let answer = client.ask(vip, vip.as_bytes()).unwrap();
            assert_eq!((answer.from, answer.payload.as_slice()), (vip.parse().unwrap(), vip.as_bytes()));
            assert_eq!(answer.peer.ip(), ip("10.1.0.5"));
        }
    }
}

#[test]
fn a_backend_that_refuses_is_told_to_the_client() {
    let mut world = served();
    world.apply(vec![dns().ready("10.1.0.6", &[9]).ready("fd01::6", &[9])], vec![]);
    for (ns, any, vip) in [
        (&world.pods[0], "0.0.0.0:0", "10.96.0.53:53"),
        (&world.pods[0], "[::]:0", "[fd96::53]:53"),
        (&world.outside, "0.0.0.0:0", "10.96.0.53:53"),
        (&world.node, "0.0.0.0:0", "10.96.0.53:53"),
        (&world.node, "[::]:0", "[fd96::53]:53"),
    ] {
        let client = Client::new(ns, any);
        client.0.connect(vip).unwrap();
        client.0.send(b"x").unwrap();
        let error = client.answer().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{vip}: {error}");
    }
}

#[test]
fn tcp_and_udp_of_one_address_are_two_frontends() {
    let mut world = served();
    world.apply(vec![dns().ready("10.1.0.6", &[5353])], vec![]);
    assert_eq!(world.pods[0].fails("10.96.0.53:53"), "refused");
    let client = Client::new(&world.pods[0], "0.0.0.0:0");
    client.0.connect("10.96.0.53:54").unwrap();
    client.0.send(b"x").unwrap();
    assert_eq!(client.answer().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_backend_on_the_host_network_sees_the_pods_address() {
    let mut world = served();
    world.node.serve_udp("host", "10.0.0.1:9000");
    world.apply(vec![dns().ready(NODE, &[9000])], vec![]);
    let client = Client::new(&world.pods[0], "0.0.0.0:0");
    let answer = client.ask("10.96.0.53:53", b"x").unwrap();
    assert_eq!((answer.name.as_str(), answer.peer), ("host", SocketAddr::new(ip("10.1.0.5"), client.own_port())));
    assert_eq!(Client::new(&world.node, "0.0.0.0:0").ask("10.96.0.53:53", b"x").unwrap().name, "host");
}

#[test]
fn no_endpoint_and_another_port_are_refused_to_pods_and_to_the_node_itself() {
    let mut world = served();
    let none = service("none", "10.96.0.54 fd96::54").udp(53);
    world.apply(vec![dns().ready("10.1.0.6", &[5353]).ready("fd01::6", &[5353]), none], vec![]);
    for (who, ns) in [("pod", &world.pods[0]), ("node", &world.node)] {
        for to in ["10.96.0.54:53", "10.96.0.53:54", "[fd96::54]:53", "[fd96::53]:54"] {
            assert_eq!(refusals(ns, to), [io::ErrorKind::ConnectionRefused; 2], "{who} -> {to}");
        }
    }
    assert_eq!(world.metric("sheave_udp_sessions"), 0.0);
}

#[test]
fn what_a_server_sends_on_its_own_after_a_long_pause_keeps_the_flow() {
    let mut world = served();
    for (backend, vip) in [("10.1.0.6:7000", "10.96.0.53:53"), ("[fd01::6]:7000", "[fd96::53]:53")] {
        let backend: SocketAddr = backend.parse().unwrap();
        let both = dns().ready("10.1.0.6", &[7000]).ready("fd01::6", &[7000]);
        world.apply(vec![both], vec![]);
        let server = world.pods[1].run(move || UdpSocket::bind(backend)).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        for (who, ns) in [("pod", &world.pods[0]), ("node", &world.node), ("outside", &world.outside)] {
            let client = Client::new(ns, if backend.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
            let mut buffer = [0; 64];
            client.0.send_to(b"hello", vip).unwrap();
            let (_, peer) = server.recv_from(&mut buffer).unwrap();
            world.node.output("conntrack", "-F");
            server.send_to(b"push", peer).unwrap();
            let (count, from) = client.0.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{who}, {vip}: {e}"));
            assert_eq!((&buffer[..count], from), (&b"push"[..], vip.parse().unwrap()));
            client.0.send_to(b"thanks", vip).unwrap();
            let (count, again) = server.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{who} -> {vip}: {e}"));
            assert_eq!((&buffer[..count], again), (&b"thanks"[..], peer));
        }
        world.apply(vec![dns()], vec![]);
    }
}

#[test]
fn no_session_outlives_its_frontend() {
    let mut world = served();
    let other = service("other", "10.96.0.54").udp(53).ready("10.1.0.6", &[5353]);
    world.apply(vec![dns().ready("10.1.0.6", &[5353]), other], vec![]);
    let clients: Vec<_> = (0..5).map(|_| Client::new(&world.pods[0], "0.0.0.0:0")).collect();
    for client in &clients {
        client.ask("10.96.0.53:53", b"x").unwrap();
    }
    let kept = Client::new(&world.pods[0], "0.0.0.0:0");
    kept.ask("10.96.0.54:53", b"x").unwrap();
    assert_eq!(world.metric("sheave_udp_sessions"), 6.0);
    world.apply(vec![], vec![ResourceKey::Service(ServiceKey::new("ns", "dns"))]);
    world.wait_for("sheave_udp_sessions", 1.0);
    kept.ask("10.96.0.54:53", b"x").unwrap();
    world.apply(vec![], vec![ResourceKey::Service(ServiceKey::new("ns", "other"))]);
    world.wait_for("sheave_udp_sessions", 0.0);
}

#[test]
fn a_flow_stays_with_an_endpoint_that_serves_while_it_ends() {
    let mut world = served();
    world.apply(vec![dns().ready("10.1.0.6", &[5353])], vec![]);
    let client = Client::new(&world.pods[0], "0.0.0.0:0");
    assert_eq!(client.ask("10.96.0.53:53", b"x").unwrap().name, "six");
    let mut both = dns().ready("10.1.0.6", &[5353]).ready("10.2.0.7", &[5353]);
    (both.endpoints[0].ready, both.endpoints[0].terminating) = (false, true);
    world.apply(vec![both.clone()], vec![]);
    assert_eq!(client.ask("10.96.0.53:53", b"x").unwrap().name, "six");
    assert_eq!(Client::new(&world.pods[0], "0.0.0.0:0").ask("10.96.0.53:53", b"x").unwrap().name, "seven");
    both.endpoints[0].serving = false;
    world.apply(vec![both], vec![]);
    assert_eq!(client.ask("10.96.0.53:53", b"x").unwrap().name, "seven");
}

#[test]
fn sessions_take_no_more_than_half_of_the_nodes_ports() {
    let mut world = served();
    world.stop();
    world.node.sysctl("ipv4/ip_local_port_range", "40000 40009");
    world.start();
    world.apply(vec![dns().ready("10.1.0.6", &[5353])], vec![]);
    let clients: Vec<_> = (0..7).map(|_| Client::new(&world.outside, "0.0.0.0:0")).collect();
    let answered = clients.iter().filter(|client| client.ask("10.96.0.53:53", b"x").is_ok()).count();
    assert_eq!(answered, 5);
    assert_eq!(world.metric("sheave_listener_limited_total{protocol=\"UDP\"}"), 2.0);
    // A pod's session holds none of them.
    assert_eq!(Client::new(&world.pods[0], "0.0.0.0:0").ask("10.96.0.53:53", b"x").unwrap().name, "six");
}
