//! Rows about Services: frontend -> target -> slots -> backends.
//!
//! A *target* is one Service port in one family. Its slots are numbered 0..count within a generation; the row of a frontend
//! names target, generation and count, so that writing this one row swaps the set of backends for new connections.

use crate::Address;

/// [`FrontendRow::flags`]: leave connections to the transparent listeners (L7, or no room for the target's rows).
pub const FRONTEND_LISTENER: u32 = 1;
/// [`FrontendRow::flags`]: answer only sockets in the node's own network namespace (NodePorts on loopback addresses).
pub const FRONTEND_NODE_ONLY: u32 = 2;
/// [`BackendRow::flags`]: out of every slot; a UDP socket that remembers it chooses anew.
pub const BACKEND_LEAVING: u8 = 1;

/// What a client connects to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FrontendKey {
    /// Destination address.
    pub address: Address,
    /// Destination port, big-endian.
    pub port: [u8; 2],
    /// 6 for TCP, 17 for UDP (IANA protocol numbers).
    pub protocol: u8,
    /// Always 0.
    pub pad: u8,
}

/// Where a frontend leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FrontendRow {
    /// The target's id; 0 where there is none (`FRONTEND_LISTENER`).
    pub target: u32,
    /// The generation of slots in force.
    pub generation: u32,
    /// How many slots it has; 0 refuses.
    pub count: u32,
    /// `FRONTEND_*` bits.
    pub flags: u32,
}

/// A place in a target's set of backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// The target's id.
    pub target: u32,
    /// The generation it belongs to.
    pub generation: u32,
    /// 0..count.
    pub index: u32,
}

/// Who is in that place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlotRow {
    /// The backend's id.
    pub backend: u32,
}

/// An endpoint of one target. Keyed by an id that no other endpoint has, in any target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendRow {
    /// Its address.
    pub address: Address,
    /// The target it belongs to.
    pub target: u32,
    /// Its port, big-endian.
    pub port: [u8; 2],
    /// `BACKEND_*` bits.
    pub flags: u8,
    /// Always 0.
    pub pad: u8,
}

/// Who a target is, and how much it was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TargetRow {
    /// Hash of the Service port's name and family, by which a restarted proxy knows it again.
    pub identity: [u8; 16],
    /// Connections, connected UDP sockets and unconnected UDP flows that were pointed at a backend. Programs add to it in
    /// place; the proxy writes the row once.
    pub connections: u64,
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 20 && align_of::<FrontendKey>() == 4);
    assert!(size_of::<FrontendRow>() == 16 && align_of::<FrontendRow>() == 4);
    assert!(size_of::<SlotKey>() == 12 && size_of::<SlotRow>() == 4);
    assert!(size_of::<BackendRow>() == 24 && align_of::<BackendRow>() == 4);
    assert!(core::mem::offset_of!(BackendRow, port) == 20);
    assert!(size_of::<TargetRow>() == 24 && align_of::<TargetRow>() == 8);
};
