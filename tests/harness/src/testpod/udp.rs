//! UDP clients, connected and not.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::{Protocol, SockAddr, Type};

use super::client::{blank, names, outcome, socket, target, widened};
use super::protocol::{Answer, Ask, How, Kind, Outcome};
use super::server::plain;
use crate::sys;

/// Whether a question goes by UDP.
pub(super) fn is_udp(ask: &Ask) -> bool {
    ask.kind == Kind::Udp
}

/// A UDP client socket that may ask more than once.
pub(super) struct Client {
    socket: std::net::UdpSocket,
    ask: Ask,
}

impl Client {
    /// Opens, and connects unless it is to stay unconnected.
    pub(super) fn open(ask: &Ask) -> io::Result<Self> {
        let socket = socket(ask, Type::DGRAM, Protocol::UDP)?;
        let target = target(ask);
        sys::report_icmp_errors(&socket, target.is_ipv6())?;
        if target.is_ipv6() && ask.mapped {
            sys::report_icmp_errors(&socket, false)?; // IPv4 errors of a dual-stack socket
        }
        if ask.how != How::Unconnected {
            socket.connect(&SockAddr::from(target))?;
        }
        Ok(Self { socket: socket.into(), ask: ask.clone() })
    }

    /// One datagram there and back; `other` is another destination for an unconnected socket.
    pub(super) fn ask(&self, other: Option<SocketAddr>) -> Answer {
        let start = Instant::now();
        let mut answer = blank(Outcome::Dropped);
        answer.local = self.socket.local_addr().ok();
        answer.peer = self.socket.peer_addr().ok().map(plain);
        if let Err(error) = self.round(other, &mut answer) {
            answer.outcome = outcome(&error);
        }
        answer.millis = start.elapsed().as_secs_f64() * 1000.0;
        answer
    }

    fn round(&self, other: Option<SocketAddr>, answer: &mut Answer) -> io::Result<()> {
        let said = self.ask.say.as_bytes();
        let mut buffer = vec![0; 65_536];
        let length = if self.ask.how == How::Unconnected {
            self.socket.send_to(said, widened(other.unwrap_or(self.ask.target), self.ask.mapped))?;
            let (length, from) = self.socket.recv_from(&mut buffer)?;
            answer.peer = Some(plain(from));
            length
        } else {
            self.socket.send(said)?;
            self.socket.recv(&mut buffer)?
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        names(&text, answer);
        if answer.outcome == Outcome::Served && !text.ends_with(&self.ask.say) {
            return Err(io::Error::other("the echo differs from what was said"));
        }
        Ok(())
    }
}

/// Asks once.
pub(super) fn ask(ask: &Ask) -> Answer {
    match Client::open(ask) {
        Ok(client) => client.ask(None),
        Err(error) => blank(outcome(&error)),
    }
}
