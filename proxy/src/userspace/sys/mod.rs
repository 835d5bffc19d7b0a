//! The system calls that no safe crate offers. The only unsafe code of this program's listeners.
//!
//! Each function checks what the kernel returns and hands out plain values; what they mean is decided by the callers.

mod batch;
mod epoll;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use socket2::Socket;
use tokio::io::unix::AsyncFd;

pub(crate) use batch::{BATCH, Outgoing, ReceiveBatch, Received, send_batch};
pub(crate) use epoll::{Alarm, Epoll, Event, Interest, Waker, accept};

/// Option of `SOL_NETLINK`: answers carry the kernel's words.
pub(crate) const NETLINK_EXT_ACK: i32 = 11;
/// Option of `SOL_NETLINK`: answers don't repeat the question.
pub(crate) const NETLINK_CAP_ACK: i32 = 10;

/// Sets a socket option whose value is an int.
///
/// # Errors
/// Where the kernel doesn't know it or doesn't permit it.
pub(crate) fn set_option(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as the borrow, and the pointer is to an int of the length given.
    let code = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The index of a network interface of the calling thread's namespace.
pub(crate) fn interface_index(name: &CStr) -> Option<u32> {
    // SAFETY: the name ends with a zero and is only read.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Raises the limit of open descriptors to what this process may have, and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a value of the type that the call writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024; // the least that Linux starts processes with
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: the pointer is to a value of the type that the call reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        limit.rlim_max
    } else {
        limit.rlim_cur
    }
}

/// Moves up to `length` bytes between a pipe and a socket without copying them. 0 is the end of the stream.
///
/// # Errors
/// `WouldBlock` where the source is empty or the target full; otherwise what the socket says.
pub(crate) fn splice(from: &impl AsFd, to: &impl AsFd, length: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both descriptors are open for as long as the borrows, and null offsets are allowed for pipes and sockets.
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), length, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// Bytes, and the end, that a TCP socket was given and its peer has not acknowledged (`SIOCOUTQ`, tcp(7)).
///
/// # Errors
/// Where it listens.
pub(crate) fn unacknowledged(socket: &impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as the borrow, and the call writes one int.
    let code = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut count) };
    if code == 0 { Ok(usize::try_from(count).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

/// A pipe's two ends: reading, writing.
///
/// # Errors
/// Where this process has no descriptors left. A pipe of the kernel's own size is no error.
pub(crate) fn pipe(size: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: the descriptor is open, and the call takes an int.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, size) };
    Ok((reader.into(), writer.into()))
}

/// A socket that a runtime watches.
#[derive(Debug)]
pub(crate) struct Watched(Arc<Socket>);

impl Watched {
    /// The socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.0
    }
}

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What a datagram socket is waited for: the network's word about an earlier datagram is no datagram.
pub(crate) const DATAGRAMS: tokio::io::Interest = tokio::io::Interest::READABLE.add(tokio::io::Interest::ERROR);

/// Watches a socket for [`DATAGRAMS`], in the current runtime.
///
/// # Errors
/// Where the runtime can't watch any more.
pub(crate) fn watch(socket: Arc<Socket>) -> io::Result<AsyncFd<Watched>> {
    // SAFETY: the descriptor belongs to the socket, which is never given another, and stays open because `Watched` holds
    // it and lends it only shared.
    unsafe { AsyncFd::register_with_interest(Watched(socket), DATAGRAMS) }.map_err(io::Error::from)
}

/// Moves the calling thread into a new network namespace, for tests.
#[cfg(test)]
pub(crate) fn new_network_namespace() -> io::Result<()> {
    // SAFETY: the flags concern the calling thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The calling thread's id, by which programs name its namespaces.
#[cfg(test)]
pub(crate) fn thread_id() -> i32 {
    // SAFETY: takes nothing and can't fail.
    unsafe { libc::gettid() }
}
