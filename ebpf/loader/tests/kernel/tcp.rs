//! TCP through the hooks.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use sheave_abi::Counter;
use sheave_model::{AppProtocol, Protocol};
use socket2::{Domain, Socket, Type};

use super::world::{MARK, inside, service};

/// A server that answers each connection with one byte.
fn server(address: &str, answer: u8) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let place = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = stream.write_all(&[answer]);
                // Closed with something unread, it would answer by a reset, and the client's socket would have no peer.
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    place
}

fn ask(mut stream: TcpStream) -> u8 {
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    answer[0]
}

#[test]
fn a_connection_goes_to_a_backend_and_shows_the_frontend() {
    inside("tcp::a_connection_goes_to_a_backend_and_shows_the_frontend", |world| {
        let mut node = world.node()?;
        world.put(service("10.96.0.1", 80, Protocol::Tcp, &[server("127.0.0.1:0", 4)]));
        let snapshot = world.put(service("fd00:96::1", 80, Protocol::Tcp, &[server("[::1]:0", 6)]));
        assert_eq!(node.update(&snapshot).failures, []);

        for (frontend, answer) in [("10.96.0.1:80", 4), ("[fd00:96::1]:80", 6)] {
            let stream = TcpStream::connect(frontend)?;
            assert_eq!(stream.peer_addr()?.to_string(), frontend);
            assert_eq!(ask(stream), answer);
        }
        let mapped: SocketAddr = "[::ffff:10.96.0.1]:80".parse()?;
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.connect(&mapped.into())?;
        assert_eq!(socket.peer_addr()?.as_socket(), Some(mapped));
        assert_eq!(ask(socket.into()), 4);

        let stats = node.loader.stats()?;
        assert_eq!((stats.get(Counter::TcpV4), stats.get(Counter::TcpV6)), (2, 1));
        assert_eq!((stats.get(Counter::Missed), stats.get(Counter::Untracked)), (0, 0));
        assert_eq!(node.connections(), 3);
        Ok(())
    });
}

#[test]
fn sockets_of_every_kind_are_translated() {
    inside("tcp::sockets_of_every_kind_are_translated", |world| {
        let mut node = world.node()?;
        node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[server("127.0.0.1:0", 4)])));
        let frontend: SocketAddr = "10.96.0.1:80".parse()?;
        let new = || Socket::new(Domain::IPV4, Type::STREAM, None);
        let check = |socket: Socket| -> Result<()> {
            assert_eq!(socket.peer_addr()?.as_socket(), Some(frontend));
            assert_eq!(ask(socket.into()), 4);
            Ok(())
        };

        let waiting = new()?;
        waiting.set_nonblocking(true)?;
        match waiting.connect(&frontend.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => other?,
        }
        waiting.set_nonblocking(false)?;
        // The handshake is on its way: on a busy machine it takes a moment.
        let deadline = Instant::now() + Duration::from_secs(5);
        while waiting.peer_addr().is_err() && Instant::now() < deadline {
            thread::yield_now();
        }
        check(waiting)?;

        let bound = new()?;
        bound.bind(&SocketAddr::from(([127, 0, 0, 1], 45678)).into())?;
        bound.connect(&frontend.into())?;
        assert_eq!(bound.local_addr()?.as_socket().map(|own| own.port()), Some(45678));
        check(bound)?;

        let fast = new()?;
        fast.send_to_with_flags(b"!", &frontend.into(), libc::MSG_FASTOPEN)?;
        check(fast)?;

        // One that was refused may try again.
        let again = new()?;
        node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[])));
        assert_eq!(again.connect(&frontend.into()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[server("127.0.0.1:0", 4)])));
        again.connect(&frontend.into())?;
        check(again)?;
        assert_eq!(node.loader.stats()?.get(Counter::TcpV4), 4);
        Ok(())
    });
}

#[test]
fn a_service_without_endpoints_refuses() {
    inside("tcp::a_service_without_endpoints_refuses", |world| {
        let mut node = world.node()?;
        world.put(service("fd00:96::1", 80, Protocol::Tcp, &[]));
        node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[])));
        for frontend in ["10.96.0.1:80", "[fd00:96::1]:80", "[::ffff:10.96.0.1]:80"] {
            let error = TcpStream::connect(frontend).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{frontend}");
        }
        assert_eq!(node.loader.stats()?.get(Counter::Refused), 3);
        Ok(())
    });
}

#[test]
fn what_is_no_frontend_is_left_alone() {
    inside("tcp::what_is_no_frontend_is_left_alone", |world| {
        let mut node = world.node()?;
        let here = server("127.0.0.1:0", 1);
        let mut http = service("10.96.0.2", 80, Protocol::Tcp, &[here]);
        http.ports[0].app = AppProtocol::Http;
        world.put(http);
        node.update(&world.put(service("10.96.0.1", 80, Protocol::Tcp, &[here])));
        // The namespace has no route to any of them, which an untouched connect() meets at once.
        for elsewhere in ["10.96.0.1:81", "10.96.0.3:80", "10.96.0.2:80"] {
            assert_eq!(TcpStream::connect(elsewhere).unwrap_err().kind(), ErrorKind::NetworkUnreachable, "{elsewhere}");
        }
        let own = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        own.set_mark(MARK)?;
        let frontend: SocketAddr = "10.96.0.1:80".parse()?;
        assert_eq!(own.connect(&frontend.into()).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
        assert_eq!(ask(TcpStream::connect(here)?), 1);
        assert_eq!(TcpStream::connect(here)?.peer_addr()?, here);
        let stats = node.loader.stats()?;
        assert_eq!((stats.get(Counter::TcpV4), stats.get(Counter::Listener)), (0, 1));
        Ok(())
    });
}

#[test]
fn a_loopback_node_port_answers_in_the_nodes_namespace_only() {
    inside("tcp::a_loopback_node_port_answers_in_the_nodes_namespace_only", |world| {
        let mut with_port = service("10.96.0.1", 80, Protocol::Tcp, &[server("127.0.0.1:0", 7)]);
        with_port.ports[0].node_port = Some(30080);
        let snapshot = world.put(with_port);
        let mut node = world.node()?;
        node.update(&snapshot);
        assert_eq!(ask(TcpStream::connect("127.0.0.1:30080")?), 7);
        for (domain, from, to) in [
            (Domain::IPV4, "127.0.0.1:0", "127.0.0.1:30080"),
            (Domain::IPV6, "[::1]:0", "[::1]:30080"),
            (Domain::IPV6, "[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.1]:30080"),
        ] {
            // From there no pod is reached: left to the listener, which this test doesn't have.
            let bound = Socket::new(domain, Type::STREAM, None)?;
            bound.bind(&from.parse::<SocketAddr>()?.into())?;
            let to: SocketAddr = to.parse()?;
            assert_eq!(bound.connect(&to.into()).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{from}");
        }
        world.options.netns_cookie += 1; // as a pod's socket sees it
        world.node()?;
        assert_eq!(TcpStream::connect("127.0.0.1:30080").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!(node.loader.stats()?.get(Counter::TcpV4), 1);
        assert_eq!(ask(TcpStream::connect("10.96.0.1:80")?), 7);
        Ok(())
    });
}

#[test]
fn no_connection_fails_while_sets_are_swapped() {
    inside("tcp::no_connection_fails_while_sets_are_swapped", |world| {
        let mut node = world.node()?;
        let servers: Vec<_> = (0..6).map(|n| server("127.0.0.1:0", n)).collect();
        let services: Vec<_> = (1..=6).map(|n| service("10.96.0.1", 80, Protocol::Tcp, &servers[6 - n..])).collect();
        let others: Vec<_> = servers.iter().map(|one| service("10.96.0.1", 80, Protocol::Tcp, &[*one])).collect();
        node.update(&world.put(services[0].clone()));
        let (stop, made) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| -> Result<()> {
            let client = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let socket = TcpStream::connect("10.96.0.1:80").expect("a frontend with endpoints");
                    Socket::from(socket).set_linger(Some(Duration::ZERO)).unwrap(); // no TIME_WAIT
                    made.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut rounds = 0;
            // As many swaps and as many connections as show something, however fast or slow the machine makes either.
            while (rounds < 400 || made.load(Ordering::Relaxed) < 1000) && !client.is_finished() {
                let next = if rounds % 2 == 0 { &services[rounds % 6] } else { &others[rounds % 6] };
                assert_eq!(node.update(&world.put(next.clone())).failures, []);
                node.reconciler.handle_timeout(std::time::Instant::now(), &mut node.loader);
                thread::sleep(Duration::from_millis(5)); // lets the graces of earlier rounds end meanwhile
                rounds += 1;
            }
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap();
            Ok(())
        })?;
        let stats = node.loader.stats()?;
        assert_eq!((stats.get(Counter::TcpV4), stats.get(Counter::Missed)), (u64::from(made.into_inner()), 0));
        Ok(())
    });
}
