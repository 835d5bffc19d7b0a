//! TCP through the listeners: who is reached, whom the backend sees, what is refused and what is dropped.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sheave_model::{AppProtocol, Protocol, ResourceKey, ServiceKey};

use super::world::{NODE, World, ip};
use crate::userspace::testing::{Build, cluster, service};

fn web() -> sheave_model::Service {
    service("web", "10.96.0.10 fd96::10").any_port(80, Protocol::Tcp, AppProtocol::Opaque, Some(30_080))
}

/// Both pods and the remote one serve port 8080.
fn served() -> World {
    let world = World::new();
    for (pod, name, last) in [(&world.pods[0], "five", 5), (&world.pods[1], "six", 6)] {
        pod.serve_tcp(name, &format!("10.1.0.{last}:8080"));
        pod.serve_tcp(name, &format!("[fd01::{last}]:8080"));
    }
    world.outside.serve_tcp("seven", "10.2.0.7:8080");
    world.outside.serve_tcp("seven", "[fd02::7]:8080");
    world
}

#[test]
fn every_kind_of_client_reaches_a_cluster_ip_with_the_right_source_address() {
    let mut world = served();
    for (backend, name) in [("10.1.0.6", "six"), ("10.2.0.7", "seven"), ("fd01::6", "six"), ("fd02::7", "seven")] {
        world.apply(vec![web().ready(backend, &[8080])], vec![]);
        let v4 = !backend.contains(':');
        let (vip, node) = if v4 { ("10.96.0.10:80", NODE) } else { ("[fd96::10]:80", "fd00::1") };
        let answer = world.pods[0].ask(vip).unwrap();
        assert_eq!(answer.name, name);
        assert_eq!(answer.peer, answer.own, "a pod keeps its address and port");
        for client in [&world.node, &world.outside] {
            let answer = client.ask(vip).unwrap();
            assert_eq!(answer.name, name);
            assert_ne!(answer.peer.port(), answer.own.port());
            let seen = answer.peer.ip();
            assert!(seen == ip(node) || seen == ip("169.254.1.1"), "{seen} is not the node's");
        }
    }
    assert_eq!(world.metric("sheave_listener_accepts_total{protocol=\"TCP\"}"), 12.0);
    let carried = "sheave_service_connections_total{namespace=\"ns\",service=\"web\",port=\"p0\",protocol=\"TCP\",path=\"listener\"}";
    assert_eq!(world.metric(carried), 12.0);
}

#[test]
fn node_ports_answer_on_the_nodes_addresses_and_on_localhost() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080]).ready("fd01::6", &[8080])], vec![]);
    for (client, address) in [
        (&world.outside, "10.0.0.1:30080"),
        (&world.outside, "[fd00::1]:30080"),
        (&world.node, "10.0.0.1:30080"),
        (&world.node, "127.0.0.1:30080"),
        (&world.node, "[::1]:30080"),
        (&world.node, "[fd00::1]:30080"),
        (&world.pods[0], "10.0.0.1:30080"),
    ] {
        let answer = client.ask(address).unwrap();
        assert_eq!(answer.name, "six", "{address}");
        let seen = answer.peer.ip();
        assert!([ip(NODE), ip("fd00::1"), ip("169.254.1.1")].contains(&seen), "{address}: {seen} is not the node's");
    }
    // The node's other ports go on answering.
    world.node.serve_tcp("ssh", "10.0.0.1:22");
    assert_eq!(world.outside.ask("10.0.0.1:22").unwrap().name, "ssh");
    assert_eq!(world.outside.fails("10.0.0.1:30081"), "refused");
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.5", &[8080]).ready("fd01::5", &[8080])], vec![]);
    for vip in ["10.96.0.10:80", "[fd96::10]:80"] {
        let answer = world.pods[0].ask(vip).unwrap();
        assert_eq!(answer.name, "five");
        assert_ne!(answer.peer.ip(), answer.own.ip());
    }
}

#[test]
fn a_backend_on_the_host_network_sees_the_pods_address() {
    let mut world = served();
    world.node.serve_tcp("host", "10.0.0.1:9000");
    world.apply(vec![web().ready(NODE, &[9000])], vec![]);
    let answer = world.pods[0].ask("10.96.0.10:80").unwrap();
    assert_eq!((answer.name.as_str(), answer.peer), ("host", answer.own));
    assert_eq!(world.node.ask("10.96.0.10:80").unwrap().name, "host");
    assert_eq!(world.outside.ask("10.96.0.10:80").unwrap().name, "host");
}

#[test]
fn refused_and_dropped_are_different_things() {
    let mut world = served();
    let ready = || web().ready("10.1.0.6", &[8080]).ready("fd01::6", &[8080]);
    world.apply_any(vec![cluster(&["10.96.0.0/16", "fd96::/112"])], vec![]);
    world.apply(vec![ready(), service("none", "10.96.0.11 fd96::11").port(80)], vec![]);
    for (name, client) in [("pod", &world.pods[0]), ("node", &world.node), ("outside", &world.outside)] {
        for (address, expected) in [
            ("10.96.0.10:81", "refused"),
            ("[fd96::10]:81", "refused"),
            ("10.96.0.11:80", "refused"),
            ("[fd96::11]:80", "refused"),
            ("10.96.0.99:80", "silence"),
        ] {
            assert_eq!(client.fails(address), expected, "{name} -> {address}");
        }
    }
    // Scaled to nothing and back; renumbered; gone.
    world.apply(vec![web()], vec![]);
    assert_eq!(world.pods[0].fails("10.96.0.10:80"), "refused");
    assert_eq!(world.outside.fails("10.0.0.1:30080"), "refused");
    world.apply(vec![ready()], vec![]);
    assert_eq!(world.pods[0].ask("10.96.0.10:80").unwrap().name, "six");
    world.apply(vec![], vec![ResourceKey::Service(ServiceKey::new("ns", "web"))]);
    assert_eq!(world.pods[0].fails("10.96.0.10:80"), "silence");
    assert_eq!(world.outside.fails("10.0.0.1:30080"), "refused", "nobody listens on the node's port");
}

#[test]
fn an_established_connection_outlives_its_endpoint_and_its_service() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080])], vec![]);
    let connect = || {
        let mut stream = TcpStream::connect("10.96.0.10:80").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let mut seen = [0; 4];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"six ");
        stream
    };
    let streams = [world.pods[0].run(connect), world.node.run(connect)];
    world.apply(vec![web()], vec![]);
    world.apply(vec![], vec![ResourceKey::Service(ServiceKey::new("ns", "web"))]);
    for mut stream in streams {
        stream.write_all(b"still here").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("\nstill here"), "{rest}");
    }
}

#[test]
fn connections_are_spread_and_a_dead_backend_is_passed_over() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.5", &[8080]).ready("10.1.0.6", &[8080]).ready("10.2.0.7", &[1])], vec![]);
    let names: BTreeSet<_> = (0..30).map(|_| world.outside.ask("10.96.0.10:80").unwrap().name).collect();
    assert_eq!(names, ["five", "six"].map(str::to_owned).into());
}

#[test]
fn a_silent_backend_costs_a_second_and_silence_everywhere_five() {
    let mut world = served();
    // Nobody has 10.2.0.99, and nobody says so.
    world.apply(vec![web().ready("10.1.0.6", &[8080]).ready("10.2.0.99", &[8080])], vec![]);
    let mut slow = 0;
    for _ in 0..8 {
        let begin = Instant::now();
        assert_eq!(world.pods[0].ask("10.96.0.10:80").unwrap().name, "six");
        let took = begin.elapsed();
        assert!(took < Duration::from_millis(1900), "one try in vain takes a second: {took:?}");
        slow += usize::from(took > Duration::from_millis(900));
    }
    assert!(slow < 8, "both are chosen");
    world.apply(vec![web().ready("10.2.0.99", &[8080])], vec![]);
    let begin = Instant::now();
    assert_eq!(world.pods[0].fails("10.96.0.10:80"), "reset");
    assert!((4..7).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let timeouts =
        "sheave_service_errors_total{namespace=\"ns\",service=\"web\",port=\"p0\",protocol=\"TCP\",reason=\"timeout\"}";
    assert_eq!(world.metric(timeouts), 1.0);
}

#[test]
fn both_legs_of_a_connection_that_lasts_are_kept_alive() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080])], vec![]);
    let stream = world.pods[0].run(|| TcpStream::connect("10.96.0.10:80").unwrap());
    let kept = || world.node.output("ss", "-Htno state established").matches("timer:(keepalive").count();
    let end = Instant::now() + Duration::from_secs(3);
    while kept() < 2 {
        assert!(Instant::now() < end, "{}", world.node.output("ss", "-Htno"));
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stream);
}

#[test]
fn ten_megabytes_arrive_unchanged() {
    let mut world = served();
    world.apply(vec![web().ready("10.2.0.7", &[8080])], vec![]);
    world.pods[0].run(|| {
        let mut stream = TcpStream::connect("10.96.0.10:80").unwrap();
        let bytes: Vec<u8> = (0..10_usize << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let mut writer = stream.try_clone().unwrap();
        let sent = bytes.clone();
        let write = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).unwrap();
        write.join().unwrap();
        let start = seen.iter().position(|b| *b == b'\n').unwrap() + 1;
        assert!(seen[start..] == bytes, "the stream was changed on its way");
    });
    assert_eq!(world.metric("sheave_listener_pipes"), 0.0);
    let bytes =
        "sheave_service_bytes_total{namespace=\"ns\",service=\"web\",port=\"p0\",protocol=\"TCP\",direction=\"in\"}";
    assert_eq!(world.metric(bytes), f64::from(10 << 20));
}

#[test]
fn the_listeners_own_port_leads_nowhere() {
    let world = served();
    assert_eq!(world.node.fails("127.0.0.1:15001"), "reset");
    assert_eq!(world.node.fails("[::1]:15001"), "reset");
    assert_eq!(world.metric("sheave_listener_unknown_total{protocol=\"TCP\"}"), 2.0);
    assert_eq!(world.outside.fails("10.0.0.1:15001"), "refused");
}

#[test]
fn while_no_proxy_runs_connections_wait_and_the_next_one_adopts_the_table() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080]), service("none", "10.96.0.11").port(80)], vec![]);
    world.stop();
    for client in [&world.pods[0], &world.node, &world.outside] {
        assert_eq!(client.fails("10.96.0.10:80"), "silence");
    }
    assert_eq!(world.pods[0].fails("10.96.0.11:80"), "refused");
    let waiting = world.pods[0].run(|| {
        std::thread::spawn(|| {
            let address: SocketAddr = "10.96.0.10:80".parse().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop)
        })
    });
    std::thread::sleep(Duration::from_millis(300));
    world.start();
    waiting.join().unwrap().expect("the client's SYN is sent again");
    assert_eq!(world.pods[0].ask("10.96.0.10:80").unwrap().name, "six");
}

#[test]
fn a_proxy_that_ends_gently_resets_no_connection_and_refuses_none() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080])], vec![]);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = [&world.pods[0], &world.node, &world.outside]
        .iter()
        .map(|ns| {
            let stop = stop.clone();
            ns.run(move || std::thread::spawn(move || connect_until(&stop)))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    for _ in 0..3 {
        world.stop_gently();
        let table = world.node.output("nft", "list chain inet sheave serve");
        let first = table.lines().find(|line| line.contains("tcp")).unwrap_or_default();
        assert!(first.trim_end().ends_with("drop"), "new connections are not held back: {table}");
        std::thread::sleep(Duration::from_millis(100));
        world.start();
        std::thread::sleep(Duration::from_millis(200));
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.join().unwrap() > 10);
    }
}

/// Connects, asks and hangs up, again and again; anything but an answer is a panic.
fn connect_until(stop: &AtomicBool) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let address: SocketAddr = "10.96.0.10:80".parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("is accepted in the end");
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"hi").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("what was accepted is served");
        assert!(text.ends_with("\nhi"), "{text}");
        count += 1;
    }
    count
}

#[test]
fn cleaning_leaves_nothing() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080])], vec![]);
    assert!(world.node.output("nft", "list tables").contains("table inet sheave"));
    world.clean();
    world.clean();
    assert_eq!(world.node.output("nft", "list ruleset"), "");
    for family in ["-4", "-6"] {
        assert!(!world.node.output("ip", &format!("{family} rule")).contains("fwmark"));
        assert_eq!(world.node.output("ip", &format!("{family} route show table all")).matches("15001").count(), 0);
    }
}

#[test]
fn the_table_is_put_back_when_another_program_flushes_it() {
    let mut world = served();
    world.apply(vec![web().ready("10.1.0.6", &[8080])], vec![]);
    world.node.output("nft", "flush ruleset");
    world.apply(vec![service("more", "10.96.0.12").port(80).ready("10.1.0.5", &[8080])], vec![]);
    assert_eq!(world.pods[0].ask("10.96.0.10:80").unwrap().name, "six");
    assert_eq!(world.pods[1].ask("10.96.0.12:80").unwrap().name, "five");
}

#[test]
fn twenty_thousand_frontends_are_programmed_at_once_and_changes_cost_little() {
    let mut world = served();
    let many = |count: u32| {
        let of = |n: u32| {
            let (high, low) = (n / 250, n % 250 + 1);
            let name = format!("s{n}");
            service(&name, &format!("10.96.{high}.{low} fd96::{high:x}:{low:x}")).port(80).ready("10.1.0.6", &[8080])
        };
        (0..count).map(of).collect::<Vec<_>>()
    };
    let took = world.apply(many(10_000), vec![]);
    assert!(took < Duration::from_secs(5), "20,000 frontends took {took:?}");
    assert_eq!(world.pods[0].ask("10.96.39.250:80").unwrap().name, "six");
    let one = world.apply(vec![service("last", "10.96.77.1").port(80).ready("10.1.0.5", &[8080])], vec![]);
    assert!(one * 4 < took, "one more took {one:?}, all of them {took:?}");
    let gone = (0..10_000).map(|n| ResourceKey::Service(ServiceKey::new("ns", format!("s{n}"))));
    world.apply(vec![], gone.collect());
    assert_eq!(world.metric("sheave_nftables_elements{set=\"frontends4\"}"), 1.0);
    assert_eq!(world.metric("sheave_nftables_elements{set=\"refused6\"}"), 0.0);
}
