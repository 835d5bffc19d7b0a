//! Sends replies to clients with a frontend as their source, through a thread's raw sockets.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

use super::packet::{self, Head};
use crate::userspace::sys::{self, BATCH, Outgoing, send_batch};

/// Bytes that may wait for links, of all sessions of a thread together; as much as may wait to be received.
const SEND_BUFFER: i32 = 4 << 20;

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
            sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)?;
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
    /// room for is lost, as datagrams are. Returns how many were.
    pub(crate) fn send<'a>(
        &self,
        frontend: SocketAddr,
        client: SocketAddr,
        payloads: impl Iterator<Item = &'a [u8]>,
    ) -> u64 {
        let Some(socket) = self.socket(client) else { return payloads.count() as u64 };
        let mut lost = 0;
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
                        lost += u64::from(!self.send_fragments(socket, frontend, client, first.body));
                        1
                    }
                    Err(e) => {
                        tracing::debug!(%client, %frontend, error = %e, "a reply was lost");
                        lost += 1;
                        1
                    }
                };
                rest = &rest[sent..];
            }
        }
        lost
    }

    /// False where one was lost, and the datagram with it.
    fn send_fragments(&self, socket: &Socket, frontend: SocketAddr, client: SocketAddr, payload: &[u8]) -> bool {
        let id = self.fragment.get().wrapping_add(1);
        self.fragment.set(id);
        packet::fragments(frontend, client, payload, id)
            .into_iter()
            .all(|fragment| socket.send_to(&fragment, &without_port(client).into()).is_ok())
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
