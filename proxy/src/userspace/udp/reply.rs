//! Sends replies to clients with a frontend as their source, through a thread's raw sockets.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::packet::{self, Head};
use crate::userspace::sys::{BATCH, Outgoing, send_batch};

/// A thread's raw sockets. They receive nothing, whatever comes.
#[derive(Debug)]
pub(crate) struct Replies {
    v4: Socket,
    v6: Option<Socket>,
    fragment: Cell<u32>,
}

impl Replies {
    /// Opens them.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub(crate) fn open(mark: u32) -> io::Result<Self> {
        let open = |domain| {
            let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)))?;
            socket.set_mark(mark)?;
            io::Result::Ok(socket)
        };
        let v6 = match open(Domain::IPV6) {
            Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            other => Some(other?),
        };
        Ok(Self { v4: open(Domain::IPV4)?, v6, fragment: Cell::new(rand::random()) })
    }

    fn socket(&self, to: SocketAddr) -> Option<&Socket> {
        if to.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }
    }

    /// Sends payloads from a frontend to a client. What doesn't fit the link is sent in fragments; what the system has no
    /// room for is lost, as datagrams are.
    pub(crate) fn send<'a>(&self, frontend: SocketAddr, client: SocketAddr, payloads: impl Iterator<Item = &'a [u8]>) {
        let Some(socket) = self.socket(client) else { return };
        let to = Some(without_port(client));
        let packets: Vec<(Head, &[u8])> =
            payloads.map(|payload| (packet::datagram(frontend, client, payload), payload)).collect();
        for chunk in packets.chunks(BATCH) {
            let outgoing: Vec<_> =
                chunk.iter().map(|(head, body)| Outgoing { head: head.as_bytes(), body, to }).collect();
            let mut rest = outgoing.as_slice();
            while let Some(first) = rest.first() {
                let sent = match send_batch(socket, rest) {
                    Ok(count) => count.max(1),
                    Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                        self.send_fragments(socket, frontend, client, first.body);
                        1
                    }
                    Err(e) => {
                        tracing::debug!(%client, %frontend, error = %e, "a reply was lost");
                        1
                    }
                };
                rest = &rest[sent..];
            }
        }
    }

    fn send_fragments(&self, socket: &Socket, frontend: SocketAddr, client: SocketAddr, payload: &[u8]) {
        let id = self.fragment.get().wrapping_add(1);
        self.fragment.set(id);
        for fragment in packet::fragments(frontend, client, payload, id) {
            let _ = socket.send_to(&fragment, &without_port(client).into()); // lost, as datagrams are
        }
    }

    /// Tells a client that nobody listens behind a frontend.
    pub(crate) fn unreachable(&self, frontend: SocketAddr, client: SocketAddr) {
        if let Some(socket) = self.socket(client) {
            let _ = socket.send_to(&packet::unreachable(client, frontend), &without_port(client).into());
        }
    }
}

/// A raw socket's destination has no port; the kernel takes one for a protocol number.
fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}
