//! A client that uses one port towards a Service and towards the Service's backend itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::world::{Netns, World};
use crate::userspace::testing::{Build, service};

/// A connection from a port of one's own choice.
fn connect(ns: &Netns, from: &str, to: &str) -> std::io::Result<TcpStream> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    ns.run(move || {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(8))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket.into())
    })
}

/// Sends something and reads until it has come back; returns all that was read.
fn echoes(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(text.as_bytes()) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|e| panic!("{text}: {e}"));
        seen.push(byte[0]);
    }
    String::from_utf8(seen).unwrap()
}

#[test]
fn a_connection_to_a_service_and_one_straight_to_its_backend_share_a_port() {
    let mut world = World::new();
    for (client, backend, vip) in
        [("10.1.0.5:4000", "10.1.0.6:8080", "10.96.0.10:80"), ("[fd01::5]:4000", "[fd01::6]:8080", "[fd96::10]:80")]
    {
        world.pods[1].serve_tcp("six", backend);
        let ip = backend.parse::<SocketAddr>().unwrap().ip().to_string();
        world.apply(vec![service("web", "10.96.0.10 fd96::10").port(80).ready(&ip, &[8080])], vec![]);
        let mut direct = connect(&world.pods[0], client, backend).unwrap();
        echoes(&mut direct, "before");
        // The backend answers nobody else from that port, so the proxy's first try is silent for its second.
        let mut served = connect(&world.pods[0], client, vip).unwrap();
        let seen = echoes(&mut served, "served");
        assert!(seen.contains(&client.replace(":4000", ":")) && !seen.contains(":4000"), "{seen}");
        echoes(&mut direct, "meanwhile");
        drop(served);
        echoes(&mut direct, "after");
    }
}
