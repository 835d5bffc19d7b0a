//! TCP: accepts connections to every frontend on two transparent listeners per thread and carries them to a backend.

mod attempts;
mod connection;
mod flow;
mod pipes;
mod serve;
mod table;
#[cfg(test)]
mod tests;
mod upstream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use serve::{Loop, Parts};
pub(crate) use upstream::keep_alive;

/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The loopback address that a family's listeners are bound to. tproxy names it; clients never see it.
pub(crate) const fn loopback(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) }
}

/// A bound socket that doesn't listen yet: until it does, connections to frontends are delayed and not refused.
///
/// # Errors
/// Where the port is taken, or the family or a privilege is missing.
pub(crate) fn bind(v4: bool, port: u16, mark: u32) -> io::Result<Socket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if v4 {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit what is set here.
    socket.set_mark(mark)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    keep_alive(&socket)?;
    socket.bind(&SocketAddr::new(loopback(v4), port).into())?;
    Ok(socket)
}

/// Starts to listen on a bound socket.
///
/// # Errors
/// Where the kernel refuses.
pub(crate) fn listen(socket: &Socket) -> io::Result<()> {
    socket.listen(BACKLOG)
}
