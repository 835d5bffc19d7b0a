//! Sockets towards backends: their options and their source address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::userspace::sys;

/// Quiet before a peer is asked whether it still lives, how often it is asked again, and how many times: one that is gone
/// is noticed within two minutes.
const QUIET: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_TIMES: u32 = 6;

/// Has the kernel find out when a peer is gone.
///
/// TCP_USER_TIMEOUT is not for a proxy: it also ends connections whose peer lives and merely reads nothing for that long
/// (tcp(7): "due to zero window size"). Without it bytes that nobody acknowledges are given up as without a proxy, by
/// `net.ipv4.tcp_retries2`.
///
/// # Errors
/// Where the socket is gone.
pub(crate) fn keep_alive(socket: &Socket) -> io::Result<()> {
    let often = TcpKeepalive::new().with_time(QUIET).with_interval(ASK_EVERY).with_retries(ASK_TIMES);
    socket.set_tcp_keepalive(&often)
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
pub(crate) fn begin(backend: SocketAddr, source: Source, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(backend), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    match source {
        Source::Node => {}
        Source::Client(address) => {
            // The port may be taken, or below 1024 and not for this process.
            if bind_exactly(&socket, address).is_err() {
                return begin(backend, Source::ClientAddress(address.ip()), mark);
            }
        }
        Source::ClientAddress(ip) => bind_address(&socket, ip)?,
    }
    match (socket.connect(&backend.into()), source) {
        (Ok(()), _) => Ok(socket),
        (Err(e), _) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        // The client's port already leads to this backend, for another frontend.
        (Err(e), Source::Client(address)) if e.kind() == io::ErrorKind::AddrNotAvailable => {
            begin(backend, Source::ClientAddress(address.ip()), mark)
        }
        (Err(e), _) => Err(e),
    }
}

fn transparent(socket: &Socket, v4: bool) -> io::Result<()> {
    if v4 { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) }
}

/// Binds to a client's address and port. Sockets towards other backends may have it too.
fn bind_exactly(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    transparent(socket, address.is_ipv4())?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// Binds to a client's address; the port is chosen when the backend is known, so that one port serves many backends.
fn bind_address(socket: &Socket, ip: IpAddr) -> io::Result<()> {
    transparent(socket, ip.is_ipv4())?;
    sys::set_option(socket, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(ip, 0).into())
}
