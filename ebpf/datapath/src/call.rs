//! What a decision needs and what it says: the vocabulary between this crate and whoever runs it.

use sheave_abi::{
    Address, BackendRow, ConnectionRow, Counter, FlowKey, FlowRow, FrontendKey, FrontendRow, PeerRow, ReplyKey,
    ReplyRow, SlotKey,
};

/// An address and a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The address.
    pub address: Address,
    /// The port, big-endian.
    pub port: [u8; 2],
}

/// The socket's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// From `sk_protocol`. The number must not be truncated before: MPTCP's 262 is not TCP's 6, and sockets of neither
    /// protocol have no frontends.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    /// The IANA protocol number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Untouched,
    /// It goes on with this address in place of the one it had.
    Translate(Place),
    /// It fails with ECONNREFUSED.
    Refuse,
}

/// The maps, and the storage of the socket that makes the call. A setter answers whether the kernel had memory for it.
pub trait Tables {
    /// Reads `frontends`.
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendRow>;
    /// Reads `slots`: a backend's id.
    fn slot(&self, key: &SlotKey) -> Option<u32>;
    /// Reads `backends`.
    fn backend(&self, id: u32) -> Option<BackendRow>;
    /// Reads `flows`.
    fn flow(&self, key: &FlowKey) -> Option<FlowRow>;
    /// Writes `flows`.
    fn set_flow(&self, key: &FlowKey, row: &FlowRow) -> bool;
    /// Reads `replies`.
    fn reply(&self, key: &ReplyKey) -> Option<ReplyRow>;
    /// Writes `replies`.
    fn set_reply(&self, key: &ReplyKey, row: &ReplyRow) -> bool;
    /// Reads `connections`: the row of a cookie, if no other has taken its place.
    fn connection(&self, cookie: u64) -> Option<ConnectionRow>;
    /// Writes `connections`: the row of `row.cookie`.
    fn set_connection(&self, row: &ConnectionRow);
    /// Reads what is remembered with the calling UDP socket.
    fn peer(&self) -> Option<PeerRow>;
    /// Remembers a row with the calling UDP socket.
    fn set_peer(&self, row: &PeerRow) -> bool;
    /// Sets `PEER_FLOWS` in the socket's row, making the row where there is none. Touches nothing else in it, since
    /// datagrams are sent without the socket's lock.
    fn mark_flows(&self) -> bool;
    /// Forgets the calling socket's row.
    fn forget_peer(&self);
    /// Adds one to a node-wide counter.
    fn count(&self, counter: Counter);
    /// Adds one to a target's connections.
    fn count_target(&self, target: u32);
}

/// The calling socket and the node.
pub trait Env {
    /// Uniform over all values.
    fn random(&self) -> u32;
    /// The socket's cookie; unique while the machine runs.
    fn cookie(&self) -> u64;
    /// Whether the socket is in the node's own network namespace.
    fn in_node_netns(&self) -> bool;
    /// Whether the socket is bound to a loopback address, from which no other machine is reached, nor a pod.
    fn is_bound_to_loopback(&self) -> bool;
    /// Whether the socket carries the proxy's own mark.
    fn is_own(&self) -> bool;
}
