//! The few system calls that no library wraps. All of this file's `unsafe` is in here, and each says why it is sound.

use std::fs;
use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace that this process is in: never used twice while the machine is up.
///
/// # Errors
/// Where no socket can be made, or the kernel is older than 5.14.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `socket` lives, and the pointers lead to a u64 and to its size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's random id of this boot.
///
/// # Errors
/// Where /proc isn't mounted.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether a folder is in a cgroup2 file system.
///
/// # Errors
/// Where there is no such folder.
pub(crate) fn is_cgroup2(path: &Path) -> io::Result<bool> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut stats = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in 0, and the kernel fills the structure, which is large enough, where it returns 0.
    let result = unsafe { libc::statfs(path.as_ptr(), stats.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statfs returned 0, so every field was written.
    let kind = unsafe { stats.assume_init() }.f_type;
    Ok(kind == libc::CGROUP2_SUPER_MAGIC)
}

/// Keeps the allocator from holding on to memory: two arenas instead of eight per core, and what is freed at the end of
/// the heap goes back at once. Call it before the first thread starts.
pub(crate) fn frugal_allocator() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_TRIM_THRESHOLD, 128 << 10), (libc::M_MMAP_THRESHOLD, 256 << 10)]
    {
        // SAFETY: takes two numbers; a value it doesn't like is ignored.
        unsafe { libc::mallopt(parameter, value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_of_one_namespace_is_always_the_same() {
        let first = netns_cookie().unwrap();
        assert_ne!(first, 0);
        assert_eq!(first, netns_cookie().unwrap());
        assert_eq!(boot_id().unwrap().len(), 36);
    }

    #[test]
    fn proc_is_no_cgroup() {
        assert!(!is_cgroup2(Path::new("/proc")).unwrap());
        assert!(is_cgroup2(Path::new("/no/such/folder")).is_err());
    }
}
