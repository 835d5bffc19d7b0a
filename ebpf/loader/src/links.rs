//! Attaching the programs: one pinned link each, so that they stay attached when the proxy ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::ProgramFd;

use crate::{Error, sys};

/// `enum bpf_attach_type` of include/uapi/linux/bpf.h.
fn attach_type(program: &str) -> u32 {
    match program {
        "connect4" => 10,
        "connect6" => 11,
        "sendmsg4" => 14,
        "sendmsg6" => 15,
        "recvmsg4" => 19,
        "recvmsg6" => 20,
        "getpeername4" => 29,
        "getpeername6" => 30,
        _ => unreachable!("sheave-abi names these eight programs"),
    }
}

/// Attaches a program, or replaces the one that is attached.
pub(crate) fn attach(program: &'static str, fd: &ProgramFd, cgroup: &Path, directory: &Path) -> Result<(), Error> {
    let failed = |source| Error::Attach { program, cgroup: cgroup.to_owned(), source };
    let place = File::open(cgroup).map_err(failed)?;
    let id = place.metadata().map_err(failed)?.ino(); // cgroup2's ids are its inode numbers
    let pin = directory.join(program);
    if let Some(link) = adopt(&pin, id).map_err(failed)? {
        return sys::link_update(link.as_fd(), fd.as_fd()).map_err(failed);
    }
    let link = sys::link_create(fd.as_fd(), place.as_fd(), attach_type(program)).map_err(failed)?;
    replace(&link, &pin).map_err(failed)
}

/// The link that is pinned, if it is attached to this cgroup. One to another cgroup (the proxy was moved, or the cgroup
/// made anew) gives way.
fn adopt(pin: &Path, cgroup: u64) -> io::Result<Option<OwnedFd>> {
    let link = match sys::object_get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let here = sys::link_info(link.as_fd())?.cgroup == cgroup;
    Ok(here.then_some(link))
}

/// Pins a link in place of what is pinned there, which ends with it.
fn replace(link: &OwnedFd, pin: &Path) -> io::Result<()> {
    let new = beside(pin);
    match fs::remove_file(&new) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    sys::object_pin(link.as_fd(), &new)?;
    fs::rename(&new, pin)
}

/// A name next to a pin's. bpffs allows no dots.
fn beside(pin: &Path) -> PathBuf {
    let mut name = pin.as_os_str().to_owned();
    name.push("_new");
    name.into()
}

/// Detaches what is pinned in a directory of links. Only closing the last descriptor would do it otherwise.
pub(crate) fn detach_all(directory: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::path("reading", directory)(error)),
    };
    for entry in entries {
        let path = entry.map_err(Error::path("reading", directory))?.path();
        match sys::object_get(&path).and_then(|link| sys::link_detach(link.as_fd())) {
            Ok(()) => {}
            // A link whose cgroup is gone is detached already.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => tracing::warn!(pin = %path.display(), %error, "a link is unpinned without being detached"),
        }
    }
    Ok(())
}
