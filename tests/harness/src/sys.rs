//! The system calls that the standard library has no name for: namespaces, mounts, signals, cgroups, BPF queries.
//!
//! The only file of this crate with `unsafe`; each function checks its result and hands back an ordinary error.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments, touches no memory and can't fail.
    unsafe { libc::geteuid() == 0 }
}

/// Children of this process will live in a new process namespace; the first of them is its init.
pub fn unshare_pids() -> io::Result<()> {
    // SAFETY: unshare takes no pointers; it changes where this process' next children live.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).map(drop)
}

/// Puts the calling thread into a new network namespace.
pub fn unshare_network() -> io::Result<()> {
    // SAFETY: unshare takes no pointers; it moves the calling thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Puts the calling thread into the network namespace that `namespace` stands for.
pub fn enter_network(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open while it is borrowed, and setns takes no pointers.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// What [`mount`] does.
#[derive(Clone, Copy, Debug)]
pub enum Mount<'a> {
    /// A new file system of this type.
    New(&'a str),
    /// The same file or folder, at a second place.
    Bind(&'a Path),
    /// Nothing new; from here on no mount below travels out of this mount namespace, or into it.
    Private,
}

/// Mounts at `target`.
pub fn mount(what: Mount<'_>, target: &Path) -> io::Result<()> {
    let (source, kind, flags) = match what {
        Mount::New(kind) => (Path::new(kind), kind, 0),
        Mount::Bind(source) => (source, "none", libc::MS_BIND),
        Mount::Private => (Path::new("none"), "none", libc::MS_REC | libc::MS_PRIVATE),
    };
    let (source, target) = (c_string(source)?, c_string(target)?);
    let kind = c_string(Path::new(kind))?;
    // SAFETY: the three strings end in NUL and outlive the call; mount's data argument may be null.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }).map(drop)
}

/// Takes the mount at `target` away, as soon as nobody uses it any more.
pub fn unmount(target: &Path) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: the string ends in NUL and outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// The command's process gets a network and mount namespace of its own, and dies with the thread that starts it.
pub fn isolate(command: &mut Command) -> &mut Command {
    let prepare = || {
        // SAFETY: neither call takes pointers; both only change the new process.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWIPC))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(prepare) }
}

/// The command's process gets SIGTERM when the thread that starts it ends.
pub fn end_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: prctl with this option takes no pointers; it only changes the new process.
    let prepare = || check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0) }).map(drop);
    // SAFETY: between fork and exec the closure makes one system call: no allocation, no lock.
    unsafe { command.pre_exec(prepare) }
}

/// The command's process starts in this network namespace and cgroup (an open `cgroup.procs`), so that even its first
/// socket belongs there.
pub fn place(command: &mut Command, namespace: OwnedFd, cgroup_procs: OwnedFd) -> &mut Command {
    let prepare = move || {
        // SAFETY: both descriptors are owned by the closure; "0" is one readable byte and names the writer itself.
        unsafe {
            if libc::write(cgroup_procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                return Err(io::Error::last_os_error());
            }
            check(libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(prepare) }
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: kill takes no pointers. The callers pass children they have not reaped, so the number is still theirs.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Waits for any child: its process id, and its exit code (128 + signal where one ended it).
pub fn wait_any() -> io::Result<(u32, i32)> {
    let mut status = 0;
    // SAFETY: status is a live, writable integer.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, 0) })?;
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) };
    Ok((pid.unsigned_abs(), code))
}

/// The process that a termination signal to this one ends.
static WARD: AtomicI32 = AtomicI32::new(0);

extern "C" fn end_ward(_signal: libc::c_int) {
    let ward = WARD.load(Ordering::Relaxed);
    if ward > 0 {
        // SAFETY: kill may be called from a signal handler and takes no pointers.
        unsafe { libc::kill(ward, libc::SIGKILL) };
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP kill `child` instead of this process, which then sees it end and cleans up.
pub fn end_child_on_signals(child: u32) {
    WARD.store(i32::try_from(child).unwrap_or(0), Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only loads an atomic and calls kill, both safe in a handler.
        unsafe { libc::signal(signal, end_ward as *const () as libc::sighandler_t) };
    }
}

/// Raises this process' limit of open descriptors to the most it may have; children inherit it.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: limit is a live, writable rlimit.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: limit is a live, initialised rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// Puts this process into a session of its own, so that a terminal's signals no longer reach it.
pub fn new_session() -> io::Result<()> {
    // SAFETY: setsid takes no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Time since boot; the same clock in every process and namespace, so times from several processes compare.
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: now is a live, writable timespec, and this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Asks for ICMP errors (a closed port, say) to be reported on an unconnected UDP socket too.
pub fn report_icmp_errors(socket: &socket2::Socket, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    let on: libc::c_int = 1;
    // SAFETY: on outlives the call and the length is its own.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of_val(&on) as libc::socklen_t)
    })
    .map(drop)
}

/// The `BPF_PROG_QUERY` part of the kernel's `union bpf_attr` (linux/bpf.h).
#[repr(C)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    padding: [u32; 13],
}

/// How many programs of one attach type (numbers of `enum bpf_attach_type`) are attached at this cgroup itself.
pub fn attached_programs(cgroup: &File, attach_type: u32) -> io::Result<u32> {
    const BPF_PROG_QUERY: libc::c_int = 16;
    let mut query = ProgQuery {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: 0,
        prog_count: 0,
        padding: [0; 13],
    };
    // SAFETY: query is a live, fully initialised bpf_attr of the length given; with prog_ids 0 the kernel only counts.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<ProgQuery>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(query.prog_count) }
}

/// A `bpf(2)` call with a `union bpf_attr` of which the first words matter here.
fn bpf(command: libc::c_int, words: &mut [u64; 16]) -> io::Result<libc::c_long> {
    // SAFETY: words is a live, writable attr of the length given; pointers in it are to live memory of the callers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_mut_ptr(), size_of_val(words)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// How many rows a pinned map holds, counted by walking its keys; none where it is no hash table, whose rows always exist.
pub fn pinned_rows(pin: &Path) -> io::Result<Option<u64>> {
    /// `BPF_MAP_GET_NEXT_KEY`, `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD`.
    const NEXT_KEY: libc::c_int = 4;
    const GET: libc::c_int = 7;
    const INFO: libc::c_int = 15;
    const HASHES: [u32; 4] = [1, 5, 9, 10]; // BPF_MAP_TYPE_HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH
    let path = c_string(pin)?;
    let descriptor = bpf(GET, &mut attr([path.as_ptr() as u64, 0, 0]))?;
    // SAFETY: the kernel has just made this descriptor for this process, and nobody else has it.
    let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor).unwrap_or(-1)) };
    // struct bpf_map_info begins with type, id, key_size.
    let mut info = [0_u32; 64];
    let head = u64::from(map.as_raw_fd().unsigned_abs()) | (size_of_val(&info) as u64) << 32;
    bpf(INFO, &mut attr([head, info.as_mut_ptr() as u64, 0]))?;
    if !HASHES.contains(&info[0]) {
        return Ok(None);
    }
    let (mut key, mut next) = (Vec::<u8>::new(), vec![0_u8; info[2] as usize]);
    for rows in 0.. {
        let from = if key.is_empty() { 0 } else { key.as_ptr() as u64 };
        match bpf(NEXT_KEY, &mut attr([u64::from(map.as_raw_fd().unsigned_abs()), from, next.as_mut_ptr() as u64])) {
            Ok(_) => key.clone_from(&next),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(rows)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn attr(first: [u64; 3]) -> [u64; 16] {
    let mut words = [0; 16];
    words[..3].copy_from_slice(&first);
    words
}
