//! Rows about sockets: which backend one was pointed at, so that replies and getpeername() show the frontend.

use crate::Address;

/// Where a TCP socket wanted to connect, and where it was pointed, for getpeername().
///
/// Kept in an array at the socket's cookie modulo its size. Cookies count up, so a row stands until as many younger sockets
/// have taken one, and then getpeername() shows the backend. A row that lives with its socket, as [`PeerRow`] does, costs
/// 5 % of a short connection to make and free; one in an LRU map costs half of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectionRow {
    /// The socket's cookie; 0 while the row is being written.
    pub cookie: u64,
    /// Where the client wanted to connect.
    pub frontend: Address,
    /// Where it was pointed.
    pub backend: Address,
    /// Port of `frontend`, big-endian.
    pub frontend_port: [u8; 2],
    /// Port of `backend`, big-endian.
    pub backend_port: [u8; 2],
    /// Always 0.
    pub pad: u32,
}

/// [`PeerRow::flags`]: the socket's connect() was pointed at `backend`.
pub const PEER_CONNECTED: u32 = 1;
/// [`PeerRow::flags`]: the socket has sent to frontends without connect(); `flows` and `replies` may know more.
pub const PEER_FLOWS: u32 = 2;

/// What is remembered with a UDP socket, for as long as it lives. Other than these the fields mean nothing unless `PEER_CONNECTED` is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PeerRow {
    /// Where the client wanted to connect.
    pub frontend: Address,
    /// Where it was pointed.
    pub backend: Address,
    /// Port of `frontend`, big-endian.
    pub frontend_port: [u8; 2],
    /// Port of `backend`, big-endian.
    pub backend_port: [u8; 2],
    /// Id of `backend`.
    pub backend_id: u32,
    /// `PEER_*` bits.
    pub flags: u32,
}

/// An unconnected UDP socket and a frontend that it sends to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The frontend's address.
    pub address: Address,
    /// The frontend's port, big-endian.
    pub port: [u8; 2],
    /// Always 0.
    pub pad: [u16; 3],
}

/// The backend that such a socket's datagrams go to while it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowRow {
    /// Its id. The backend's own row says which target it belongs to, and whether it stands.
    pub backend: u32,
}

/// An unconnected UDP socket and a backend that answers it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ReplyKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The backend's address.
    pub address: Address,
    /// The backend's port, big-endian.
    pub port: [u8; 2],
    /// Always 0.
    pub pad: [u16; 3],
}

/// The frontend that its answers come from in the client's eyes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReplyRow {
    /// The frontend's address.
    pub address: Address,
    /// The frontend's port, big-endian.
    pub port: [u8; 2],
    /// Always 0.
    pub pad: [u8; 2],
}

const _: () = {
    assert!(size_of::<ConnectionRow>() == 48 && align_of::<ConnectionRow>() == 8);
    assert!(size_of::<PeerRow>() == 44 && align_of::<PeerRow>() == 4);
    assert!(size_of::<FlowKey>() == 32 && size_of::<FlowRow>() == 4);
    assert!(size_of::<ReplyKey>() == 32 && size_of::<ReplyRow>() == 20);
    assert!(align_of::<FlowKey>() == 8 && align_of::<ReplyKey>() == 8);
};
