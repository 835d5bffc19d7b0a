//! From a frontend to a backend.

use sheave_abi::{
    BACKEND_LEAVING, BackendRow, Counter, FRONTEND_LISTENER, FRONTEND_NODE_ONLY, FrontendKey, FrontendRow, SlotKey,
};

use crate::{Env, Place, Tables, Transport};

/// How many slots are tried for one that suits: enough that a socket which talks to two frontends of one pair of backends
/// rarely shares one, few enough for the verifier.
const TRIES: u32 = 4;

/// A backend and its id.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) id: u32,
    pub(crate) row: BackendRow,
}

impl Backend {
    #[inline(always)]
    pub(crate) fn place(&self) -> Place {
        Place { address: self.row.address, port: self.row.port }
    }
}

/// What choosing came to.
pub(crate) enum Choice {
    Backend(Backend),
    /// No endpoint: refuse.
    Nobody,
    /// Leave it to the packet path.
    Leave,
}

#[inline(always)]
pub(crate) fn key(to: &Place, transport: Transport) -> FrontendKey {
    FrontendKey { address: to.address, port: to.port, protocol: transport.number(), pad: 0 }
}

/// The row of a frontend that this socket may be translated at.
#[inline(always)]
pub(crate) fn frontend(io: &(impl Tables + Env), key: &FrontendKey) -> Option<FrontendRow> {
    let row = io.frontend(key)?;
    if row.flags & FRONTEND_LISTENER != 0 {
        io.count(Counter::Listener);
        return None;
    }
    // A loopback address is the node's own namespace's. The kernel would refuse to take a socket that is bound to one to
    // a backend elsewhere (EINVAL); the listener has an address for that.
    if row.flags & FRONTEND_NODE_ONLY != 0 && (!io.in_node_netns() || io.is_bound_to_loopback()) {
        return None;
    }
    Some(row)
}

/// A remembered backend, while it stands: it belongs to the target still and is not about to leave.
#[inline(always)]
pub(crate) fn standing(io: &impl Tables, id: u32, target: u32) -> Option<Backend> {
    let row = io.backend(id)?;
    (row.target == target && row.flags & BACKEND_LEAVING == 0).then_some(Backend { id, row })
}

/// A backend by chance, preferably one that `shun` does not name.
///
/// A missing slot or backend, and one of another target, mean that `first` was read before the set was swapped and its slots are
/// gone by now, so the frontend is read once more.
#[inline(always)]
pub(crate) fn choose(
    io: &(impl Tables + Env),
    key: &FrontendKey,
    first: FrontendRow,
    shun: impl Fn(&Backend) -> bool,
) -> Choice {
    if first.count == 0 {
        return Choice::Nobody;
    }
    if let Some(backend) = draw(io, &first, &shun) {
        return Choice::Backend(backend);
    }
    let Some(again) = frontend(io, key) else { return Choice::Leave };
    if again.count == 0 {
        return Choice::Nobody;
    }
    match draw(io, &again, &shun) {
        Some(backend) => Choice::Backend(backend),
        None => {
            io.count(Counter::Missed);
            Choice::Leave
        }
    }
}

/// The first of up to [`TRIES`] neighbouring slots that is not shunned, from a random one on; the random one where all are.
#[inline(always)]
fn draw(io: &(impl Tables + Env), row: &FrontendRow, shun: &impl Fn(&Backend) -> bool) -> Option<Backend> {
    let count = row.count;
    // Multiply-shift: as fair as the random number, and no division.
    let start = ((u64::from(io.random()) * u64::from(count)) >> 32) as u32;
    let first = at(io, row, start)?;
    if !shun(&first) {
        return Some(first);
    }
    let mut index = start;
    for _ in 1..TRIES {
        index = if index + 1 < count { index + 1 } else { 0 };
        let next = at(io, row, index)?;
        if !shun(&next) {
            return Some(next);
        }
    }
    Some(first)
}

#[inline(always)]
fn at(io: &impl Tables, frontend: &FrontendRow, index: u32) -> Option<Backend> {
    let id = io.slot(&SlotKey { target: frontend.target, generation: frontend.generation, index })?;
    let row = io.backend(id)?;
    // Rows that are replaced while they are read may show what another place was given since.
    (row.target == frontend.target).then_some(Backend { id, row })
}

/// Counts one translated call.
#[inline(always)]
pub(crate) fn count(io: &impl Tables, to: &Place, transport: Transport) {
    io.count(match (transport, to.address.is_v4()) {
        (Transport::Tcp, true) => Counter::TcpV4,
        (Transport::Tcp, false) => Counter::TcpV6,
        (Transport::Udp, true) => Counter::UdpV4,
        (Transport::Udp, false) => Counter::UdpV6,
    });
}
