//! What the kernel programs and user space agree on: names of maps and globals, and the layout of keys and rows.
//!
//! Everything is `repr(C)` with explicit padding, so that equal values are equal bytes (a hash map compares bytes), and
//! addresses and ports are big-endian byte arrays, as they stand in packets and in `bpf_sock_addr`. An IPv4 address is kept
//! in its v4-mapped form (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so that both families share the maps and a v4-mapped
//! AF_INET6 socket needs no case of its own. A change of anything in this crate that a pinned map of an older version would
//! be misread by raises [`ABI_VERSION`].
//!
//! No I/O and no logic: `sheave-datapath` decides, `sheave-reconcile` writes, `sheave-loader` carries.
#![no_std]

mod address;
mod counter;
mod flow;
mod maps;
mod service;

pub use address::Address;
pub use counter::Counter;
pub use flow::{ConnectionRow, FlowKey, FlowRow, PEER_CONNECTED, PEER_FLOWS, PeerRow, ReplyKey, ReplyRow};
pub use maps::{Map, global, program};
pub use service::{
    BACKEND_LEAVING, BackendRow, FRONTEND_LISTENER, FRONTEND_NODE_ONLY, FrontendKey, FrontendRow, SlotKey, SlotRow,
    TargetRow,
};

/// Names the directory of pins (`BPFFS/sheave/v1/`). Maps of another version are refused, never misread.
pub const ABI_VERSION: u32 = 1;
