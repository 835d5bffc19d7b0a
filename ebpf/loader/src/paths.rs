//! Where pins are, and whether the paths given are what they should be.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sheave_abi::ABI_VERSION;

use crate::Error;
use crate::sys::{self, BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC};

/// The directory of all our pins on a bpffs.
pub(crate) fn root(bpffs: &Path) -> PathBuf {
    bpffs.join("sheave")
}

/// The directory of this version's maps.
pub(crate) fn maps(bpffs: &Path) -> PathBuf {
    root(bpffs).join(format!("v{ABI_VERSION}"))
}

/// The directory of this version's links.
pub(crate) fn links(bpffs: &Path) -> PathBuf {
    maps(bpffs).join("links")
}

/// Checks that a path is a directory on a bpffs.
pub(crate) fn check_bpffs(path: &Path) -> Result<(), Error> {
    match sys::fs_type(path) {
        Ok(BPF_FS_MAGIC) if path.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotBpffs { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotBpffs { path: path.to_owned() }),
        Err(error) => Err(Error::path("looking at", path)(error)),
    }
}

/// Checks that a path is a directory of a cgroup2 hierarchy.
pub(crate) fn check_cgroup(path: &Path) -> Result<(), Error> {
    match sys::fs_type(path) {
        Ok(CGROUP2_SUPER_MAGIC) if path.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotCgroup2 { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotCgroup2 { path: path.to_owned() }),
        Err(error) => Err(Error::path("looking at", path)(error)),
    }
}

/// Refuses pins of another version. One process can't follow two, and connections that the older programs translate would
/// go where their maps said last.
pub(crate) fn check_version(bpffs: &Path) -> Result<(), Error> {
    let root = root(bpffs);
    let entries = match fs::read_dir(&root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::path("reading", &root)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::path("reading", &root))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(found) = name.strip_prefix('v')
            && found != ABI_VERSION.to_string()
        {
            return Err(Error::OtherVersion { path: entry.path(), found: found.to_owned() });
        }
    }
    Ok(())
}

/// Where cgroup2 is mounted, by `/proc/mounts`; the first if it is in several places.
///
/// # Errors
/// [`Error::NoCgroup2`] where it isn't mounted, [`Error::Path`] where `/proc` isn't.
pub fn find_cgroup2() -> Result<PathBuf, Error> {
    let mounts = Path::new("/proc/mounts");
    let text = fs::read_to_string(mounts).map_err(Error::path("reading", mounts))?;
    cgroup2_of(&text).ok_or(Error::NoCgroup2)
}

/// fstab(5)'s format: device, place, type, options; blanks in a place are written `\040`.
fn cgroup2_of(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let place = fields.filter(|fields| fields.get(2) == Some(&"cgroup2")).find_map(|fields| fields.get(1).copied());
    place.map(|place| PathBuf::from(place.replace("\\040", " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_beside_the_older_hierarchies() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2_of(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_of("cgroup2 /a\\040b cgroup2 rw 0 0\n"), Some("/a b".into()));
        assert_eq!(cgroup2_of("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_path_of_another_kind_is_refused_by_name() {
        let path = Path::new("/proc");
        assert!(check_bpffs(path).unwrap_err().to_string().contains("/proc is not a BPF file system"));
        assert!(check_cgroup(path).unwrap_err().to_string().contains("/proc is not a directory of a cgroup2"));
        assert!(matches!(check_cgroup(Path::new("/nowhere")), Err(Error::NotCgroup2 { .. })));
    }
}
