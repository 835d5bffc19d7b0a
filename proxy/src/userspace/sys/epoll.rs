//! Waiting for many sockets: `epoll`, an `eventfd` to be woken by, and `accept4`.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use socket2::{SockAddr, Socket};

/// Events that one wait returns at most.
const EVENTS: usize = 256;

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// That there is something to accept or to read, for as long as there is.
    Pending,
    /// That something more can be read: said once for each change.
    Read,
    /// That something more can be read or written: said once for each change.
    ReadWrite,
}

impl Interest {
    const fn flags(self) -> u32 {
        let read = libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLET;
        (match self {
            Self::Pending => libc::EPOLLIN,
            Self::Read => read,
            Self::ReadWrite => read | libc::EPOLLOUT,
        }) as u32
    }
}

/// What happened to a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// The number it was added with.
    pub(crate) token: u64,
    flags: u32,
}

impl Event {
    const fn has(self, flags: i32) -> bool {
        self.flags & flags as u32 != 0
    }

    /// Bytes, the end or an error can be read.
    pub(crate) const fn readable(self) -> bool {
        self.has(libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR)
    }

    /// The end or an error comes behind what can be read.
    pub(crate) const fn closing(self) -> bool {
        self.has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR)
    }

    /// There is room to write, or an error that writing tells.
    pub(crate) const fn writable(self) -> bool {
        self.has(libc::EPOLLOUT | libc::EPOLLERR)
    }

    /// There is urgent data among what can be read.
    pub(crate) const fn urgent(self) -> bool {
        self.has(libc::EPOLLPRI)
    }

    /// The connection has failed.
    pub(crate) const fn failed(self) -> bool {
        self.has(libc::EPOLLERR)
    }
}

/// A set of watched descriptors. Closing one takes it out.
pub(crate) struct Epoll {
    fd: OwnedFd,
    /// Where the kernel writes; kept, because clearing it for each wait would cost more than most waits bring.
    events: Box<[libc::epoll_event; EVENTS]>,
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// Where this process has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes flags only; the descriptor it returns is new and belongs to nobody else.
        let fd = unsafe { owned(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }?;
        Ok(Self { fd, events: Box::new([libc::epoll_event { events: 0, u64: 0 }; EVENTS]) })
    }

    /// Watches a descriptor.
    ///
    /// # Errors
    /// Where the system's limit of watches is reached.
    pub(crate) fn add(&self, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, interest)
    }

    /// Watches a descriptor for something else. What is the case already is said again.
    ///
    /// # Errors
    /// Where it isn't watched.
    pub(crate) fn modify(&self, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, interest)
    }

    fn control(&self, operation: i32, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.flags(), u64: token };
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open for as long as the borrows, and the event is only read.
        let code = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &raw mut event) };
        if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until something happens; not at all where `now`. Returns how many things happened.
    ///
    /// # Errors
    /// None in practice; an interruption by a signal is no event.
    pub(crate) fn wait(&mut self, now: bool) -> io::Result<usize> {
        let patience = if now { 0 } else { -1 };
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel writes at most EVENTS events to the array.
        let count = unsafe { libc::epoll_wait(fd, self.events.as_mut_ptr(), EVENTS as i32, patience) };
        usize::try_from(count).or_else(|_| match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            e => Err(e),
        })
    }

    /// One of the things that the last wait returned.
    pub(crate) fn event(&self, index: usize) -> Event {
        let event = self.events[index];
        Event { token: event.u64, flags: event.events }
    }
}

/// Wakes a thread that waits: its descriptor can be read from the first [`Waker::wake`] on.
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    /// One that has not woken anybody.
    ///
    /// # Errors
    /// Where this process has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes numbers only; the descriptor it returns is new and belongs to nobody else.
        let fd = unsafe { owned(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }?;
        Ok(Self(fd))
    }

    /// Wakes. What it was for is said elsewhere.
    pub(crate) fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the descriptor is open, and the eight bytes that an eventfd takes are only read.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Goes to sleep again: takes back all wakings so far.
    pub(crate) fn settle(&self) {
        settle(&self.0);
    }
}

/// Reads the number that an eventfd or a timerfd counts to, which sets it back.
fn settle(fd: &OwnedFd) {
    let mut count = [0; 8];
    // SAFETY: the descriptor is open, and either kind writes eight bytes.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

/// An alarm clock: its descriptor can be read when the time has come. Cheaper than a limit to each wait, which would set
/// the processor's timer every time.
#[derive(Debug)]
pub(crate) struct Alarm {
    fd: OwnedFd,
    set: bool,
}

impl Alarm {
    /// One that isn't set.
    ///
    /// # Errors
    /// Where this process has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes numbers only; the descriptor it returns is new and belongs to nobody else.
        let fd = unsafe { owned(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)) }?;
        Ok(Self { fd, set: false })
    }

    /// Sets it, unless it is set: it rings once.
    pub(crate) fn set(&mut self, after: Duration) {
        if self.set {
            return;
        }
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // A time of nothing would switch it off.
        let value = libc::timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().max(1).into() };
        let times = libc::itimerspec { it_interval: none, it_value: value };
        // SAFETY: the descriptor is a timer's, and the times are only read.
        unsafe { libc::timerfd_settime(self.fd.as_raw_fd(), 0, &raw const times, std::ptr::null_mut()) };
        self.set = true;
    }

    /// Takes note that it has rung.
    pub(crate) fn rung(&mut self) {
        settle(&self.fd);
        self.set = false;
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// # Safety
/// A descriptor that isn't -1 belongs to nobody else.
unsafe fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as this function demands.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a connection that waits at a listener, as a socket that never blocks, and says who connected.
///
/// # Errors
/// `WouldBlock` where none waits; otherwise what became of the connection, or that descriptors ran out.
pub(crate) fn accept(listener: &Socket) -> io::Result<(Socket, SocketAddr)> {
    // SAFETY: the callback gives the kernel room for an address and its length, and returns success only where the kernel
    // has written both.
    let (fd, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            owned(libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags))
        })
    }?;
    let address = address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((fd.into(), address))
}
