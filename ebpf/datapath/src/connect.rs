//! connect() and getpeername(), TCP and UDP.

use sheave_abi::{ConnectionRow, Counter, FrontendRow, PEER_CONNECTED, PEER_FLOWS, PeerRow};

use crate::choose::{self, Backend, Choice};
use crate::datagram::{answer_as, remembered};
use crate::{Env, Place, Tables, Transport, Verdict};

/// A socket connects to `to`. Runs under the socket's lock.
///
/// A UDP socket may connect again and again, and may have sent before: it keeps the backend that it has at this frontend.
#[inline(always)]
pub fn connect(io: &(impl Tables + Env), transport: Transport, to: Place) -> Verdict {
    if io.is_own() {
        return Verdict::Untouched;
    }
    let key = choose::key(&to, transport);
    let Some(row) = choose::frontend(io, &key) else {
        return leave(io, transport);
    };
    let peer = match transport {
        Transport::Tcp => None,
        Transport::Udp => io.peer(),
    };
    let backend = match known(io, peer.as_ref(), &to, &row) {
        Some(backend) => backend,
        None => match choose::choose(io, &key, row, |_| false) {
            Choice::Backend(backend) => backend,
            Choice::Nobody => {
                io.count(Counter::Refused);
                return Verdict::Refuse;
            }
            Choice::Leave => return leave(io, transport),
        },
    };
    match transport {
        Transport::Tcp => keep_connection(io, &to, &backend),
        Transport::Udp if !keep_peer(io, peer.as_ref(), &to, &backend) => {
            // Translated and forgotten, its datagrams would come from the backend in the client's eyes.
            io.count(Counter::Untracked);
            return Verdict::Untouched;
        }
        Transport::Udp => {}
    }
    io.count_target(backend.row.target);
    choose::count(io, &to, transport);
    Verdict::Translate(backend.place())
}

#[inline(always)]
fn known(io: &(impl Tables + Env), peer: Option<&PeerRow>, to: &Place, row: &FrontendRow) -> Option<Backend> {
    remembered(io, peer?, to, row)
}

#[inline(always)]
fn keep_connection(io: &(impl Tables + Env), to: &Place, backend: &Backend) {
    io.set_connection(&ConnectionRow {
        cookie: io.cookie(),
        frontend: to.address,
        backend: backend.row.address,
        frontend_port: to.port,
        backend_port: backend.row.port,
        pad: 0,
    });
}

#[inline(always)]
fn keep_peer(io: &(impl Tables + Env), peer: Option<&PeerRow>, to: &Place, backend: &Backend) -> bool {
    // It hears its peer alone from now on, whose answers are this frontend's then, whosever they were before.
    let flows = peer.map_or(0, |peer| peer.flags & PEER_FLOWS);
    if flows != 0 && !answer_as(io, io.cookie(), backend, to) {
        return false;
    }
    io.set_peer(&PeerRow {
        frontend: to.address,
        backend: backend.row.address,
        frontend_port: to.port,
        backend_port: backend.row.port,
        backend_id: backend.id,
        flags: PEER_CONNECTED | flows,
    })
}

/// Not ours: a row of an earlier connect() must not disguise this one's peer. A TCP socket connects once, or again after it
/// failed; its row is left, because it is compared with the peer, and because this is the path of every other connection.
#[inline(always)]
fn leave(io: &impl Tables, transport: Transport) -> Verdict {
    if transport == Transport::Udp
        && let Some(peer) = io.peer()
        && peer.flags & PEER_CONNECTED != 0
    {
        io.forget_peer();
        if peer.flags & PEER_FLOWS != 0 {
            io.mark_flows();
        }
    }
    Verdict::Untouched
}

/// A socket asks for its peer, which is `now`.
#[inline(always)]
pub fn getpeername(io: &(impl Tables + Env), transport: Transport, now: Place) -> Verdict {
    match transport {
        Transport::Tcp => match io.connection(io.cookie()) {
            Some(row) if row.backend == now.address && row.backend_port == now.port => {
                Verdict::Translate(Place { address: row.frontend, port: row.frontend_port })
            }
            _ => Verdict::Untouched,
        },
        Transport::Udp => match io.peer() {
            Some(peer) => disguise(&peer, &now),
            None => Verdict::Untouched,
        },
    }
}

/// The frontend in place of the backend that a UDP socket was connected to.
#[inline(always)]
pub(crate) fn disguise(peer: &PeerRow, now: &Place) -> Verdict {
    let same = peer.flags & PEER_CONNECTED != 0 && peer.backend == now.address && peer.backend_port == now.port;
    if same {
        Verdict::Translate(Place { address: peer.frontend, port: peer.frontend_port })
    } else {
        Verdict::Untouched
    }
}
