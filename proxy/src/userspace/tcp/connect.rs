//! Reaches a backend: 1 s for each try, 5 s in all, on another backend each time, before the first byte is carried.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::seq::SliceRandom;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::metrics::Reason;

/// For one try.
const TRY: Duration = Duration::from_secs(1);
/// For all tries.
const ALL: Duration = Duration::from_secs(5);
/// Quiet before a peer is asked whether it still lives, then between questions, and how many go unanswered.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);
/// How long sent bytes may stay unacknowledged, which is what three more probes take.
const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// The options that both legs of a connection have.
pub(crate) fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let (idle, every, count) = KEEPALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(every).with_retries(count))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Which source a try binds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The node's, as its routes say.
    Node,
    /// This address, and this port where it is free.
    Client(SocketAddr),
    /// This address with any port.
    ClientAddress(IpAddr),
}

/// Starts to connect and doesn't wait.
///
/// # Errors
/// What the kernel says at once: no route, no memory, no free port.
pub(crate) fn begin(backend: SocketAddr, source: Source, mark: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(backend), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    tune(&socket)?;
    match source {
        Source::Node => {}
        Source::Client(address) => {
            if !bind_exactly(&socket, address)? {
                return begin(backend, Source::ClientAddress(address.ip()), mark);
            }
        }
        Source::ClientAddress(ip) => bind_address(&socket, ip)?,
    }
    match socket.connect(&backend.into()) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        // The client's port already leads to this backend, for another frontend.
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => match source {
            Source::Client(address) => return begin(backend, Source::ClientAddress(address.ip()), mark),
            _ => return Err(e),
        },
        Err(e) => return Err(e),
    }
    TcpStream::from_std(socket.into())
}

fn transparent(socket: &Socket, v4: bool) -> io::Result<()> {
    if v4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Binds to a client's address and port; false where the port is taken. Sockets towards other backends may have it too.
fn bind_exactly(socket: &Socket, address: SocketAddr) -> io::Result<bool> {
    transparent(socket, address.is_ipv4())?;
    socket.set_reuse_address(true)?;
    match socket.bind(&address.into()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(false),
        Err(e) => Err(e),
    }
}

/// Binds to a client's address; the port is chosen when the backend is known, so that one port serves many backends.
fn bind_address(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    transparent(socket, ip.is_ipv4())?;
    crate::userspace::sys::set_option(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(ip, 0).into())
}

/// Waits until a socket that `begin` made is connected.
async fn finish(stream: &TcpStream) -> io::Result<()> {
    stream.writable().await?;
    stream.take_error()?.map_or(Ok(()), Err)
}

/// Tries backends until one answers. `backends` names those that take connections now, and is asked again after each
/// round; `open` starts a try and is told how many came before it.
///
/// # Errors
/// Why the last try failed.
pub(crate) async fn connect(
    mut backends: impl FnMut() -> Vec<SocketAddr>,
    mut open: impl FnMut(SocketAddr, usize) -> io::Result<TcpStream>,
) -> Result<(TcpStream, SocketAddr), Reason> {
    let end = Instant::now() + ALL;
    let mut refused: Vec<SocketAddr> = Vec::new();
    let mut reason = Reason::NoEndpoint;
    let mut tries = 0;
    loop {
        let mut round = backends();
        round.retain(|backend| !refused.contains(backend));
        if round.is_empty() {
            return Err(reason);
        }
        round.shuffle(&mut rand::rng());
        for backend in round {
            let now = Instant::now();
            if now >= end {
                return Err(reason);
            }
            let result = match open(backend, tries) {
                Ok(stream) => timeout_at((now + TRY).min(end), finish(&stream)).await.map(|r| r.map(|()| stream)),
                Err(e) => Ok(Err(e)),
            };
            tries += 1;
            reason = match result {
                Ok(Ok(stream)) => return Ok((stream, backend)),
                Ok(Err(e)) => {
                    refused.push(backend); // it said no; asking again within seconds changes nothing
                    tracing::debug!(%backend, error = %e, "backend not reached");
                    if e.kind() == io::ErrorKind::ConnectionRefused { Reason::Refused } else { Reason::Unreachable }
                }
                Err(_) => Reason::Timeout,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use tokio::net::TcpListener;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    fn refusal() -> io::Error {
        io::ErrorKind::ConnectionRefused.into()
    }

    #[tokio::test]
    async fn a_backend_that_refuses_is_left_for_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let bad: SocketAddr = "192.0.2.1:1".parse().unwrap();
        for _ in 0..8 {
            let open = |backend, _| if backend == good { begin_plain(good) } else { Err(refusal()) };
            let (_, reached) = connect(|| vec![bad, good], open).await.unwrap();
            assert_eq!(reached, good);
        }
    }

    fn begin_plain(backend: SocketAddr) -> io::Result<TcpStream> {
        let stream = std::net::TcpStream::connect(backend)?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    #[tokio::test]
    async fn each_backend_that_refuses_is_asked_once() {
        let asked = RefCell::new(Vec::new());
        let all = addresses(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
        let open = |backend, tries| {
            asked.borrow_mut().push((backend, tries));
            Err(refusal())
        };
        assert_eq!(connect(|| all.clone(), open).await.unwrap_err(), Reason::Refused);
        let mut asked = asked.into_inner();
        assert_eq!(asked.iter().map(|(_, tries)| *tries).collect::<Vec<_>>(), [0, 1, 2]);
        asked.sort();
        assert_eq!(asked.iter().map(|(backend, _)| *backend).collect::<Vec<_>>(), all);
    }

    #[tokio::test]
    async fn no_backend_is_an_answer_of_its_own() {
        let open = |_, _| unreachable!("there is nothing to open");
        assert_eq!(connect(Vec::new, open).await.unwrap_err(), Reason::NoEndpoint);
    }

    #[tokio::test]
    async fn a_backend_that_comes_meanwhile_is_tried_too() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let bad: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut round = 0;
        let backends = || {
            round += 1;
            if round == 1 { vec![bad] } else { vec![bad, good] }
        };
        let open = |backend, _| if backend == good { begin_plain(good) } else { Err(refusal()) };
        assert_eq!(connect(backends, open).await.unwrap().1, good);
    }
}
