//! The calls to the kernel that the standard library has no safe door to: pinning, a parent's death, and
//! epoll for the far side. All of this crate's `unsafe` is here.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};

/// Pins one thread (0: the calling one) to one CPU.
pub(crate) fn pin_thread(tid: i32, cpu: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is a plain bit field, for which all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: `cpu` is below CPU_SETSIZE, so the bit is inside the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is live for the call and its size is its own.
    let rc = unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &raw const set) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Pins every thread of a process to one CPU. A thread that ends meanwhile is no error.
pub(crate) fn pin_process(pid: u32, cpu: usize) -> Result<()> {
    let tasks = format!("/proc/{pid}/task");
    for task in std::fs::read_dir(&tasks).with_context(|| format!("{tasks}: cannot list threads"))? {
        let name = task?.file_name();
        let Some(tid) = name.to_str().and_then(|t| t.parse().ok()) else { continue };
        match pin_thread(tid, cpu) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                return Err(e).with_context(|| format!("cannot pin thread {tid} of {pid} to CPU {cpu}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The kernel kills this process when the thread that started it ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    let rc = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An epoll instance over descriptors that are named by themselves.
pub(crate) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// An empty instance that reports up to 256 descriptors at a time.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes a flag only.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned to us and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    /// Reports `fd` when it can be read, for as long as it is open.
    pub(crate) fn add(&self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: both descriptors are numbers that the kernel checks; the event is live for the call.
        let rc = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until one can be read, and fills `ready` with all that can.
    pub(crate) fn wait(&mut self, ready: &mut Vec<RawFd>) -> io::Result<()> {
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        // SAFETY: the kernel writes at most `room` events, which is the length of the live buffer.
        let n = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, -1) };
        ready.clear();
        match usize::try_from(n) {
            Ok(n) => {
                ready.extend(self.events[..n].iter().map(|event| event.u64 as RawFd));
                Ok(())
            }
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => Ok(()),
                e => Err(e),
            },
        }
    }
}
