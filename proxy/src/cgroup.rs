//! Whether the folder given with --cgroup is a node's and not this container's own. That it is a cgroup2 folder at all is
//! checked by the loader, which knows what it needs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Why it can't.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error(
        "--cgroup {path} can't be read as a cgroup: {error}; give the node's own cgroup2 folder (where /proc/mounts has cgroup2)",
        path = path.display()
    )]
    Unreadable { path: PathBuf, error: io::Error },
    #[error(
        "--cgroup {path} holds only this process, so programs there would see no pod; \
         mount the host's cgroup folder into this container and give that one",
        path = path.display()
    )]
    OnlyMe { path: PathBuf },
}

/// Checks it.
///
/// # Errors
/// See [`CgroupError`].
pub(crate) fn check(path: &Path) -> Result<(), CgroupError> {
    let unreadable = |error| CgroupError::Unreadable { path: path.to_owned(), error };
    if holds_only(path, std::process::id()).map_err(unreadable)? {
        return Err(CgroupError::OnlyMe { path: path.to_owned() });
    }
    Ok(())
}

/// Whether a process is all that a folder holds: the only one in it, and no folder below. So it looks inside a pod that
/// has a cgroup namespace of its own and mounts no hostPath.
fn holds_only(path: &Path, process: u32) -> io::Result<bool> {
    let processes = fs::read_to_string(path.join("cgroup.procs"))?;
    if processes.split_whitespace().ne([process.to_string().as_str()]) {
        return Ok(false);
    }
    for entry in fs::read_dir(path)? {
        if entry?.file_type()?.is_dir() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_with_one_process_and_no_folder_holds_only_it() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("cgroup.procs");
        fs::write(&list, "7\n").unwrap();
        assert!(holds_only(dir.path(), 7).unwrap());
        assert!(!holds_only(dir.path(), 8).unwrap());
        fs::write(&list, "7\n8\n").unwrap();
        assert!(!holds_only(dir.path(), 7).unwrap());
        fs::write(&list, "").unwrap();
        assert!(!holds_only(dir.path(), 7).unwrap());
        fs::write(&list, "7\n").unwrap();
        fs::create_dir(dir.path().join("pod")).unwrap();
        assert!(!holds_only(dir.path(), 7).unwrap());
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused_with_a_remedy() {
        let text = check(Path::new("/proc")).unwrap_err().to_string();
        assert!(text.contains("--cgroup /proc"), "{text}");
    }
}
