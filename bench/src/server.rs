//! The far side: what the clients' connections reach, in a pod, pinned to one CPU.
//!
//! Three ports: one connection at a time with blocking calls (the least work per connection there is), an echo for many
//! connections at once, and streams in both directions.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::sys;

/// The first of the far side's three ports; the other two follow it.
pub(crate) const PORT: u16 = 7001;
/// The echo's port.
pub(crate) const ECHO_PORT: u16 = PORT + 1;
/// The streams' port.
pub(crate) const STREAM_PORT: u16 = PORT + 2;

/// Connections that may wait to be accepted: more than any row opens at once.
const BACKLOG: i32 = 1024;
/// Bytes per read or write of a stream.
const CHUNK: usize = 256 * 1024;
/// A serial connection that says nothing for so long is given up, so that it can't keep the others out for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the far side for as long as the process lives.
pub(crate) fn run(listen: IpAddr, cpu: usize) -> Result<()> {
    sys::die_with_parent()?;
    sys::pin_thread(0, cpu).with_context(|| format!("pin to CPU {cpu}"))?;
    sheave_harness::sys::raise_descriptor_limit()?;
    start(listen, PORT)?; // its threads inherit the pin
    crate::agent::say_ready()?;
    wait_for_end_of_input()
}

/// Returns when the process that started this one closes its input, or ends.
pub(crate) fn wait_for_end_of_input() -> Result<()> {
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}

/// Starts the three servers (one at a time, echo, streams), each on a thread of its own, and says where they listen; port 0
/// lets the kernel choose.
pub(crate) fn start(listen: IpAddr, port: u16) -> Result<[SocketAddr; 3]> {
    let [serial, echo, stream] = [0, 1, 2].map(|n| bind(listen, if port == 0 { 0 } else { port + n }));
    let (serial, echo, stream) = (serial?, echo?, stream?);
    let found = [serial.local_addr()?, echo.local_addr()?, stream.local_addr()?];
    thread::Builder::new().name("serial".into()).spawn(move || serve_serial(&serial))?;
    thread::Builder::new().name("echo".into()).spawn(move || serve_echo(&echo))?;
    thread::Builder::new().name("streams".into()).spawn(move || serve_streams(&stream))?;
    Ok(found)
}

fn bind(listen: IpAddr, port: u16) -> Result<TcpListener> {
    let address = SocketAddr::new(listen, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accept, one byte there and back, wait for the close; one after the other.
fn serve_serial(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut byte = [0];
        // A connection that breaks concerns its client only, who sees it.
        let _ = stream.set_read_timeout(Some(PATIENCE));
        while let Ok(1) = stream.read(&mut byte) {
            if stream.write_all(&byte).is_err() {
                break;
            }
        }
    }
}

/// Echoes for all connections at once, until the process ends.
fn serve_echo(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let mut epoll = sys::Epoll::new()?;
    let own = listener.as_raw_fd();
    epoll.add(own)?;
    let mut connections: BTreeMap<RawFd, TcpStream> = BTreeMap::new();
    let mut ready = Vec::new();
    loop {
        epoll.wait(&mut ready)?;
        for &fd in &ready {
            if fd == own {
                accept_all(listener, &epoll, &mut connections)?;
            } else if connections.get_mut(&fd).is_some_and(|stream| !echo_once(stream)) {
                connections.remove(&fd);
            }
        }
    }
}

fn accept_all(listener: &TcpListener, epoll: &sys::Epoll, all: &mut BTreeMap<RawFd, TcpStream>) -> Result<()> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                epoll.add(stream.as_raw_fd())?;
                all.insert(stream.as_raw_fd(), stream);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(e).context("accept"),
        }
    }
}

/// Echoes what is there; false when the connection has ended.
fn echo_once(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        Ok(n) => stream.write_all(&buffer[..n]).is_ok(),
        Err(e) => e.kind() == ErrorKind::WouldBlock,
    }
}

/// A stream's order: `U` or `D`, and how many bytes.
pub(crate) fn order(direction: u8, bytes: u64) -> [u8; 9] {
    let mut order = [direction; 9];
    order[1..].copy_from_slice(&bytes.to_be_bytes());
    order
}

fn serve_streams(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        // Without a thread the client sees the connection close, which fails its block.
        let _ = thread::Builder::new().name("stream".into()).spawn(move || while serve_order(&mut stream).is_ok() {});
    }
}

/// Takes or gives as many bytes as the next order says.
fn serve_order(stream: &mut TcpStream) -> Result<()> {
    let mut order = [0; 9];
    stream.read_exact(&mut order)?;
    let [direction, bytes @ ..] = order;
    let mut left = u64::from_be_bytes(bytes);
    let mut buffer = vec![0xa5; CHUNK];
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let moved = if direction == b'U' {
            let n = stream.read(&mut buffer[..n])?;
            ensure!(n > 0, "the client closed early");
            n
        } else {
            stream.write_all(&buffer[..n])?;
            n
        };
        left -= moved as u64;
    }
    if direction == b'U' {
        stream.write_all(b"k")?;
    }
    Ok(())
}
