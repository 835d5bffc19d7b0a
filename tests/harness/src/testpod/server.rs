//! The servers of a test pod, on every address of both families, and their record of who asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::Builder;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::protocol::{Kind, Record};

/// Connections that may wait for accept; more than any load of the tests opens at once.
const BACKLOG: i32 = 4096;
/// These threads hold a buffer and little else; thousands of them fit.
const STACK: usize = 96 * 1024;

/// Threads that wait for a connection.
type Idle = Arc<Mutex<Vec<mpsc::Sender<TcpStream>>>>;
type Counts = Arc<Mutex<BTreeMap<IpAddr, u64>>>;

/// All servers of this pod.
#[derive(Clone)]
pub(super) struct Servers {
    name: Arc<str>,
    all: Arc<Mutex<Vec<(Kind, u16, Counts)>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Peers of a dual-stack socket show IPv4 addresses as ::ffff:a.b.c.d.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Servers {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), all: Arc::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn records(&self) -> Vec<Record> {
        let record = |(kind, port, counts): &(Kind, u16, Counts)| Record {
            kind: *kind,
            port: *port,
            peers: lock(counts).clone(),
        };
        lock(&self.all).iter().map(record).collect()
    }

    pub(super) fn clear(&self) {
        for (_, _, counts) in lock(&self.all).iter() {
            lock(counts).clear();
        }
    }

    pub(super) fn listen(&self, kind: Kind, port: u16) -> Result<()> {
        let counts = Counts::default();
        let own = Arc::clone(&counts);
        let name = Arc::clone(&self.name);
        let what = || format!("{} server on port {port}", kind.name());
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        if kind == Kind::Udp {
            let socket = UdpSocket::bind(address).with_context(what)?;
            std::thread::spawn(move || answer_datagrams(&socket, &name, &own));
        } else {
            let listener = listener(address).with_context(what)?;
            std::thread::spawn(move || accept(&listener, kind, &name, &own));
        }
        lock(&self.all).push((kind, port, counts));
        Ok(())
    }
}

fn listener(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn note(counts: &Counts, peer: SocketAddr) {
    *lock(counts).entry(peer.ip()).or_default() += 1;
}

/// Serves each connection by a thread of its own. Those that have nothing to do any more are kept for the next, because to make
/// one costs more than a connection.
fn accept(listener: &TcpListener, kind: Kind, name: &Arc<str>, counts: &Counts) {
    let idle: Idle = Arc::default();
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let waiting = lock(&idle).pop();
        let Some(stream) = (match waiting {
            Some(thread) => thread.send(stream).err().map(|unsent| unsent.0),
            None => Some(stream),
        }) else {
            continue;
        };
        let (name, counts, idle) = (Arc::clone(name), Arc::clone(counts), Arc::clone(&idle));
        let _ = Builder::new().stack_size(STACK).spawn(move || {
            let (sender, connections) = mpsc::channel();
            let mut next = Some(stream);
            while let Some(stream) = next {
                // A client that breaks off is the client's business; it is the one that reports it.
                let _ = serve(stream, kind, &name, &counts);
                lock(&idle).push(sender.clone());
                next = connections.recv().ok();
            }
        });
    }
}

fn serve(stream: TcpStream, kind: Kind, name: &str, counts: &Counts) -> Result<()> {
    let peer = plain(stream.peer_addr()?);
    stream.set_nodelay(true)?;
    match kind {
        Kind::Http => http(&stream, name, peer, counts),
        Kind::Hello => {
            note(counts, peer);
            (&stream).write_all(format!("{name}|{peer}\n").as_bytes())?;
            Ok(())
        }
        Kind::Tcp | Kind::Udp => {
            note(counts, peer);
            echo(stream, name, peer)
        }
    }
}

fn echo(mut stream: TcpStream, name: &str, peer: SocketAddr) -> Result<()> {
    stream.write_all(format!("{name}|{peer}\n").as_bytes())?;
    let (mut buffer, mut total) = ([0; 16 * 1024], 0);
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            stream.write_all(format!("end {total}\n").as_bytes())?;
            return Ok(());
        }
        total += length;
        stream.write_all(&buffer[..length])?;
    }
}

/// Requests one after the other on one connection, until the client closes it or asks for that.
fn http(stream: &TcpStream, name: &str, peer: SocketAddr, counts: &Counts) -> Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut length, mut close, mut lines) = (0_u64, false, 0_u32);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            lines += 1;
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().context("content-length")?;
            }
            close |= line == "connection: close";
        }
        anyhow::ensure!(lines > 0, "an empty request");
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        note(counts, peer);
        let body = format!("{name}|{peer}\n");
        let end = if close { "close" } else { "keep-alive" };
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: {end}\r\n\r\n",
            body.len()
        );
        let mut stream = stream;
        stream.write_all((head + &body).as_bytes())?;
        if close {
            return Ok(());
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, name: &str, counts: &Counts) {
    let mut buffer = [0; 65_536];
    loop {
        // An ICMP error to an earlier answer can come up here; the next datagram is unaffected.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        note(counts, plain(peer));
        let mut answer = format!("{name}|{}|", plain(peer)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&answer, peer);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_thread_serves_one_connection_at_a_time_and_then_the_next() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        Servers::new("here").listen(Kind::Tcp, port).unwrap();
        let connect = || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            assert_eq!(line, format!("here|{}\n", stream.local_addr().unwrap()));
            stream
        };
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let open: Vec<_> = (0..20).map(|_| connect()).collect(); // side by side
        let most = threads();
        drop(open);
        for _ in 0..200 {
            drop(connect());
        }
        assert!(threads() < most + 100, "{most} threads at first, now {}", threads());
    }
}
