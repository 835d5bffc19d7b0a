//! Names and default sizes of the maps, and names of the globals and programs.

/// A pinned map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// Its symbol in the object and its file name below the pin directory; at most 15 bytes, the kernel's limit.
    pub name: &'static str,
    /// How many rows it holds unless told otherwise; 0 where the kernel wants 0.
    pub entries: u32,
}

impl Map {
    /// [`crate::FrontendKey`] to [`crate::FrontendRow`]: hash. 10,000 Services of a few addresses each.
    pub const FRONTENDS: Self = Self { name: "frontends", entries: 65_536 };
    /// [`crate::SlotKey`] to [`crate::SlotRow`]: hash. Twice the endpoints while whole sets are swapped.
    pub const SLOTS: Self = Self { name: "slots", entries: 131_072 };
    /// Backend id to [`crate::BackendRow`]: hash.
    pub const BACKENDS: Self = Self { name: "backends", entries: 131_072 };
    /// Target id to [`crate::TargetRow`]: hash.
    pub const TARGETS: Self = Self { name: "targets", entries: 65_536 };
    /// [`crate::ConnectionRow`] by socket cookie modulo its size, which is fixed: array, for TCP sockets. 3 MiB.
    pub const CONNECTIONS: Self = Self { name: "connections", entries: 65_536 };
    /// [`crate::FlowKey`] to [`crate::FlowRow`]: LRU hash, for unconnected UDP sockets.
    pub const FLOWS: Self = Self { name: "flows", entries: 16_384 };
    /// [`crate::ReplyKey`] to [`crate::ReplyRow`]: LRU hash, for unconnected UDP sockets.
    pub const REPLIES: Self = Self { name: "replies", entries: 16_384 };
    /// UDP socket to [`crate::PeerRow`]: socket storage, so a row lives exactly as long as its socket and needs no bound.
    pub const PEERS: Self = Self { name: "peers", entries: 0 };
    /// [`crate::Counter`] to `u64`: per-CPU array.
    pub const STATS: Self = Self { name: "stats", entries: crate::Counter::COUNT };

    /// All.
    pub const ALL: [Self; 9] = [
        Self::FRONTENDS,
        Self::SLOTS,
        Self::BACKENDS,
        Self::TARGETS,
        Self::CONNECTIONS,
        Self::FLOWS,
        Self::REPLIES,
        Self::PEERS,
        Self::STATS,
    ];
}

/// Read-only globals, set when the programs are loaded.
pub mod global {
    /// `u64`: the cookie of the node's own network namespace, for frontends that answer there only.
    pub const NODE_NETNS: &str = "NODE_NETNS";
    /// `u32`: the bits that the proxy's own sockets carry.
    pub const OWN_MARK: &str = "OWN_MARK";
    /// `u32`: which bits of a socket's mark are compared with [`OWN_MARK`]; 0 compares none and skips no socket.
    pub const OWN_MASK: &str = "OWN_MASK";
}

/// The programs. A name is also the attach point's and the file name of its link's pin.
pub mod program {
    /// All.
    pub const ALL: [&str; 8] =
        ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernels_limit() {
        for map in Map::ALL {
            assert!(map.name.len() <= 15, "{}", map.name);
        }
    }
}
