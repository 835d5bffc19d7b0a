//! connect() and getpeername(), TCP and UDP.

use sheave_abi::{Counter, PEER_CONNECTED, PEER_FLOWS, PeerRow};

use crate::choose::{self, Choice};
use crate::datagram::remembered;
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
        return leave(io);
    };
    let peer = match transport {
        Transport::Tcp => None, // a TCP socket's older row is of a connection that failed or ended
        Transport::Udp => io.peer(),
    };
    let known = peer.and_then(|peer| remembered(io, &peer, &to, &row));
    let backend = match known {
        Some(backend) => backend,
        None => match choose::choose(io, &key, row, |_| false) {
            Choice::Backend(backend) => backend,
            Choice::Nobody => {
                io.count(Counter::Refused);
                return Verdict::Refuse;
            }
            Choice::Leave => return leave(io),
        },
    };
    let place = backend.place();
    let row = PeerRow {
        frontend: to.address,
        backend: place.address,
        frontend_port: to.port,
        backend_port: place.port,
        target: backend.row.target,
        backend_id: backend.id,
        flags: PEER_CONNECTED | peer.map_or(0, |peer| peer.flags & PEER_FLOWS),
    };
    if !io.set_peer(&row) {
        // Translated without a row, the client would see the backend in getpeername() and recvfrom().
        io.count(Counter::Untracked);
        return Verdict::Untouched;
    }
    io.count_target(backend.row.target);
    choose::count(io, &to, transport);
    Verdict::Translate(place)
}

/// Not ours: a row of an earlier connect() must not disguise this one's peer.
#[inline(always)]
fn leave(io: &impl Tables) -> Verdict {
    if let Some(peer) = io.peer()
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
pub fn getpeername(io: &impl Tables, now: Place) -> Verdict {
    match io.peer() {
        Some(peer) => disguise(&peer, &now),
        None => Verdict::Untouched,
    }
}

/// The frontend in place of the backend that a socket was connected to.
#[inline(always)]
pub(crate) fn disguise(peer: &PeerRow, now: &Place) -> Verdict {
    let same = peer.flags & PEER_CONNECTED != 0 && peer.backend == now.address && peer.backend_port == now.port;
    if same {
        Verdict::Translate(Place { address: peer.frontend, port: peer.frontend_port })
    } else {
        Verdict::Untouched
    }
}
