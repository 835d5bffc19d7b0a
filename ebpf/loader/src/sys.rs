//! The system calls that aya has no safe form of: BPF links by pin, file system types, a namespace's cookie. All unsafe code
//! of the crate is here.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sheave_abi::{
    BackendRow, FlowKey, FlowRow, FrontendKey, FrontendRow, ReplyKey, ReplyRow, SlotKey, SlotRow, TargetRow,
};

/// A key or row in a form that aya copies to and from the kernel.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

macro_rules! plain {
    ($($row:ty),+) => {
        $(
            // SAFETY: repr(C) with explicit padding (asserted in sheave-abi), integers only: any bytes are a value, and no
            // byte of a value is uninitialised.
            unsafe impl aya::Pod for Raw<$row> {}
        )+
    };
}

plain!(FrontendKey, FrontendRow, SlotKey, SlotRow, BackendRow, TargetRow, FlowKey, FlowRow, ReplyKey, ReplyRow);

// Commands of bpf(2), from include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// f_type of a BPF file system (include/uapi/linux/magic.h).
pub(crate) const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// f_type of a cgroup2 hierarchy.
pub(crate) const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// SO_NETNS_COOKIE (kernel 5.14); the same number on every architecture with the generic socket options.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// What the kernel says of a link to a cgroup: the start of `struct bpf_link_info`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pad: u32,
    /// 0 once the cgroup is gone.
    pub(crate) cgroup: u64,
    pub(crate) attach_type: u32,
    rest: [u32; 9],
}

/// `size` bytes of `bpf_attr`, which any of the structs below is a valid prefix of.
fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads size_of::<T>() bytes of attributes, each initialised, and takes the rest as zeros. Pointers in
    // them are to memory that their callers below keep alive during the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

fn descriptor(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Opens what is pinned at a path.
pub(crate) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf(BPF_OBJ_GET, &mut Object { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(descriptor)
}

/// Pins a map, program or link.
pub(crate) fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(BPF_OBJ_PIN, &mut Object { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 }).map(drop)
}

#[repr(C)]
struct Four(u32, u32, u32, u32);

/// Attaches a program to a cgroup, for as long as the link is held or pinned.
pub(crate) fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = Four(program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32, attach_type, 0);
    bpf(BPF_LINK_CREATE, &mut attributes).map(descriptor)
}

/// Replaces the program behind a link; each call of a hook runs the old or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_UPDATE, &mut Four(link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0)).map(drop)
}

/// Detaches a link's program now, whoever else holds the link.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut Four(link.as_raw_fd() as u32, 0, 0, 0)).map(drop)
}

/// What a link is attached to.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Info {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let len = size_of::<LinkInfo>() as u32;
    let mut attributes = Info { fd: link.as_raw_fd() as u32, len, info: std::ptr::from_mut(&mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// The type of the file system that a path is on.
pub(crate) fn fs_type(path: &Path) -> io::Result<i64> {
    let path = c_path(path)?;
    // SAFETY: statfs is plain integers, for which zeros are a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a NUL, and the struct is ours to write.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut stat) };
    // The width of f_type differs between architectures; the magic numbers are 32 bits.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stat.f_type as u32 as i64) }
}

/// The cookie of the calling thread's network namespace: what the hooks know "the node" by.
///
/// # Errors
/// When no socket can be made, or the kernel is older than 5.14.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `cookie`.
    let result = unsafe {
        let value = std::ptr::from_mut(&mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut len)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
