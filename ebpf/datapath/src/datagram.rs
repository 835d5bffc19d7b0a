//! Datagrams with an address: sendto(), sendmsg() and recvfrom(), recvmsg() of UDP sockets.
//!
//! A socket's datagrams to one frontend keep one backend while it stands (SEMANTICS section 5); when it goes, the next one
//! chooses anew. Both hooks run without the socket's lock, so what they write are whole rows of hash maps, which the kernel
//! replaces at once, and single bits.

use sheave_abi::{Counter, FlowKey, FlowRow, FrontendRow, PEER_CONNECTED, PEER_FLOWS, PeerRow, ReplyKey, ReplyRow};

use crate::choose::{self, Backend, Choice, standing};
use crate::connect::disguise;
use crate::{Env, Place, Tables, Transport, Verdict};

/// A UDP socket sends a datagram to `to`, named in the call.
#[inline(always)]
pub fn sendmsg(io: &(impl Tables + Env), to: Place) -> Verdict {
    if io.is_own() {
        return Verdict::Untouched;
    }
    let key = choose::key(&to, Transport::Udp);
    let Some(row) = choose::frontend(io, &key) else {
        return Verdict::Untouched;
    };
    let peer = io.peer().unwrap_or_default();
    let cookie = io.cookie();
    let (backend, new) = match remembered(io, &peer, &to, &row) {
        Some(backend) => (backend, false),
        None => match choose::choose(io, &key, row, |backend| answers_another(io, cookie, backend, &to)) {
            Choice::Backend(backend) => (backend, true),
            Choice::Nobody => {
                io.count(Counter::Refused);
                return Verdict::Refuse;
            }
            Choice::Leave => return Verdict::Untouched,
        },
    };
    if !remember(io, cookie, &peer, &to, &backend, new) {
        io.count(Counter::Untracked);
        return Verdict::Untouched;
    }
    if new {
        io.count_target(backend.row.target);
    }
    choose::count(io, &to, Transport::Udp);
    Verdict::Translate(backend.place())
}

/// A UDP socket received a datagram from `from` and asks for its sender.
#[inline(always)]
pub fn recvmsg(io: &(impl Tables + Env), from: Place) -> Verdict {
    let Some(peer) = io.peer() else { return Verdict::Untouched };
    if peer.flags & PEER_FLOWS != 0
        && let Some(reply) = io.reply(&reply_key(io.cookie(), &from))
    {
        return Verdict::Translate(Place { address: reply.address, port: reply.port });
    }
    disguise(&peer, &from)
}

/// The backend that a UDP socket has at the frontend `to` already, while it stands. None where nobody is left, so that the
/// caller refuses.
#[inline(always)]
pub(crate) fn remembered(io: &(impl Tables + Env), peer: &PeerRow, to: &Place, row: &FrontendRow) -> Option<Backend> {
    if row.count == 0 {
        return None;
    }
    if connected_to(peer, to)
        && let Some(backend) = standing(io, peer.backend_id, row.target)
    {
        return Some(backend);
    }
    // Also after the connected one has gone: datagrams that name the frontend have chosen another since.
    if peer.flags & PEER_FLOWS == 0 {
        return None;
    }
    let flow = io.flow(&flow_key(io.cookie(), to))?;
    standing(io, flow.backend, row.target)
}

#[inline(always)]
fn connected_to(peer: &PeerRow, to: &Place) -> bool {
    peer.flags & PEER_CONNECTED != 0 && peer.frontend == to.address && peer.frontend_port == to.port
}

/// Whether a backend's answers to this socket count as another frontend's already; taking it too would mix the two.
#[inline(always)]
fn answers_another(io: &impl Tables, cookie: u64, backend: &Backend, to: &Place) -> bool {
    match io.reply(&reply_key(cookie, &backend.place())) {
        Some(reply) => reply.address != to.address || reply.port != to.port,
        None => false,
    }
}

/// Writes what the answers and the next datagrams need. The reply's row is looked at each time: it may have been evicted, or
/// may name another frontend of the same backend, whose turn is over ("one flow", SEMANTICS section 2).
#[inline(always)]
fn remember(io: &impl Tables, cookie: u64, peer: &PeerRow, to: &Place, backend: &Backend, new: bool) -> bool {
    let place = backend.place();
    if connected_to(peer, to) && peer.backend == place.address && peer.backend_port == place.port {
        return true;
    }
    if peer.flags & PEER_FLOWS == 0 && !io.mark_flows() {
        return false;
    }
    let key = reply_key(cookie, &place);
    let kept = io.reply(&key).is_some_and(|reply| reply.address == to.address && reply.port == to.port);
    if !kept && !answer_as(io, cookie, backend, to) {
        return false;
    }
    !new || io.set_flow(&flow_key(cookie, to), &FlowRow { backend: backend.id })
}

/// From now on a backend's answers to this socket come from the frontend `to`.
#[inline(always)]
pub(crate) fn answer_as(io: &impl Tables, cookie: u64, backend: &Backend, to: &Place) -> bool {
    let row = ReplyRow { address: to.address, port: to.port, pad: [0; 2] };
    io.set_reply(&reply_key(cookie, &backend.place()), &row)
}

#[inline(always)]
fn flow_key(cookie: u64, to: &Place) -> FlowKey {
    FlowKey { cookie, address: to.address, port: to.port, pad: [0; 3] }
}

#[inline(always)]
fn reply_key(cookie: u64, from: &Place) -> ReplyKey {
    ReplyKey { cookie, address: from.address, port: from.port, pad: [0; 3] }
}
