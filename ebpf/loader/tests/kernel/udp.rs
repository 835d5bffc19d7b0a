//! UDP through the hooks.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use sheave_abi::Counter;
use sheave_model::Protocol;

use super::world::{inside, service};

/// A server that answers each datagram with its own port.
fn server(address: &str) -> SocketAddr {
    let socket = UdpSocket::bind(address).unwrap();
    let place = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 16];
        while let Ok((_, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(&place.port().to_be_bytes(), from).unwrap();
        }
    });
    place
}

fn client(address: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Who answered, and from where in the client's eyes.
fn receive(socket: &UdpSocket) -> Result<(u16, SocketAddr)> {
    let mut answer = [0; 2];
    let (_, from) = socket.recv_from(&mut answer)?;
    Ok((u16::from_be_bytes(answer), from))
}

#[test]
fn a_connected_socket_keeps_its_backend_and_shows_the_frontend() {
    inside("udp::a_connected_socket_keeps_its_backend_and_shows_the_frontend", |world| {
        let mut node = world.node()?;
        let four: Vec<_> = (0..4).map(|_| server("127.0.0.1:0")).collect();
        world.put(service("fd00:96::1", 53, Protocol::Udp, &[server("[::1]:0"), server("[::1]:0")]));
        node.update(&world.put(service("10.96.0.1", 53, Protocol::Udp, &four)));
        for (bind, frontend) in
            [("0.0.0.0:0", "10.96.0.1:53"), ("[::]:0", "[fd00:96::1]:53"), ("[::]:0", "[::ffff:10.96.0.1]:53")]
        {
            let socket = client(bind)?;
            let frontend: SocketAddr = frontend.parse()?;
            let mut answers = Vec::new();
            for _ in 0..8 {
                socket.connect(frontend)?; // again and again, as some resolvers do
                assert_eq!(socket.peer_addr()?, frontend);
                socket.send(b"?")?;
                let (who, from) = receive(&socket)?;
                assert_eq!(from, frontend);
                answers.push(who);
            }
            answers.dedup();
            assert_eq!(answers.len(), 1, "{frontend}");
        }
        assert_eq!(node.loader.stats()?.get(Counter::Missed), 0);
        Ok(())
    });
}

#[test]
fn an_unconnected_socket_keeps_its_backend_while_it_stands() {
    inside("udp::an_unconnected_socket_keeps_its_backend_while_it_stands", |world| {
        let mut node = world.node()?;
        let mut servers: Vec<_> = (0..5).map(|_| server("127.0.0.1:0")).collect();
        node.update(&world.put(service("10.96.0.1", 53, Protocol::Udp, &servers)));
        let frontend: SocketAddr = "10.96.0.1:53".parse()?;
        for (bind, frontend) in [("0.0.0.0:0", frontend), ("[::]:0", "[::ffff:10.96.0.1]:53".parse()?)] {
            let socket = client(bind)?;
            let ask = || -> Result<u16> {
                socket.send_to(b"?", frontend)?;
                let (who, from) = receive(&socket)?;
                assert_eq!(from, frontend);
                Ok(who)
            };
            let first = ask()?;
            for _ in 0..8 {
                assert_eq!(ask()?, first);
            }
            servers.retain(|server| server.port() != first);
            node.update(&world.put(service("10.96.0.1", 53, Protocol::Udp, &servers)));
            let second = ask()?;
            assert_ne!(second, first, "the next datagram moves");
            for _ in 0..8 {
                assert_eq!(ask()?, second);
            }
        }
        // Four flows: two sockets, each moved once.
        assert_eq!((node.connections(), node.loader.stats()?.get(Counter::UdpV4)), (4, 36));
        Ok(())
    });
}

#[test]
fn a_service_without_endpoints_refuses_and_is_not_remembered() {
    inside("udp::a_service_without_endpoints_refuses_and_is_not_remembered", |world| {
        let mut node = world.node()?;
        let servers = [server("127.0.0.1:0")];
        node.update(&world.put(service("10.96.0.1", 53, Protocol::Udp, &[])));
        let socket = client("0.0.0.0:0")?;
        assert_eq!(socket.send_to(b"?", "10.96.0.1:53").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(client("0.0.0.0:0")?.connect("10.96.0.1:53").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        node.update(&world.put(service("10.96.0.1", 53, Protocol::Udp, &servers)));
        socket.send_to(b"?", "10.96.0.1:53")?;
        assert_eq!(receive(&socket)?, (servers[0].port(), "10.96.0.1:53".parse()?));
        Ok(())
    });
}

#[test]
fn no_flow_moves_when_the_proxy_restarts() {
    inside("udp::no_flow_moves_when_the_proxy_restarts", |world| {
        let servers: Vec<_> = (0..8).map(|_| server("127.0.0.1:0")).collect();
        let snapshot = world.put(service("10.96.0.1", 53, Protocol::Udp, &servers));
        let mut node = world.node()?;
        node.update(&snapshot);
        let frontend: SocketAddr = "10.96.0.1:53".parse()?;
        let (loose, tied) = (client("0.0.0.0:0")?, client("0.0.0.0:0")?);
        tied.connect(frontend)?;
        let ask = || -> Result<[(u16, SocketAddr); 2]> {
            loose.send_to(b"?", frontend)?;
            tied.send(b"?")?;
            Ok([receive(&loose)?, receive(&tied)?])
        };
        let before = ask()?;
        drop(node);
        assert_eq!(ask()?, before);
        let mut node = world.node()?;
        assert_eq!(ask()?, before);
        node.update(&snapshot);
        assert_eq!(ask()?, before);
        assert!(before.iter().all(|(_, from)| *from == frontend));
        Ok(())
    });
}

#[test]
fn one_socket_towards_two_frontends_of_two_backends_keeps_two_flows_apart() {
    inside("udp::one_socket_towards_two_frontends_of_two_backends_keeps_two_flows_apart", |world| {
        let mut node = world.node()?;
        let servers = [server("127.0.0.1:0"), server("127.0.0.1:0")];
        world.put(service("10.96.0.1", 53, Protocol::Udp, &servers));
        node.update(&world.put(service("10.96.0.2", 53, Protocol::Udp, &servers)));
        for _ in 0..8 {
            let socket = client("0.0.0.0:0")?;
            let frontends: [SocketAddr; 2] = ["10.96.0.1:53".parse()?, "10.96.0.2:53".parse()?];
            for frontend in frontends {
                socket.send_to(b"?", frontend)?;
            }
            let mut from = [receive(&socket)?.1, receive(&socket)?.1];
            from.sort_unstable();
            assert_eq!(from, frontends);
        }
        Ok(())
    });
}

#[test]
fn plain_udp_is_left_alone() {
    inside("udp::plain_udp_is_left_alone", |world| {
        let mut node = world.node()?;
        let here = server("127.0.0.1:0");
        node.update(&world.put(service("10.96.0.1", 53, Protocol::Udp, &[here])));
        let socket = client("0.0.0.0:0")?;
        socket.send_to(b"?", here)?;
        assert_eq!(receive(&socket)?.1, here);
        // A socket that was connected to a frontend and then to the backend itself shows the backend.
        socket.connect("10.96.0.1:53")?;
        socket.connect(here)?;
        assert_eq!(socket.peer_addr()?, here);
        socket.send(b"?")?;
        assert_eq!(receive(&socket)?.1, here);
        Ok(())
    });
}
