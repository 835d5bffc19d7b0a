//! Unix sockets by path: bound in place of what a killed run left, and removed only while they are still our own.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::net::UnixListener;

/// The file of a socket that was bound here.
#[derive(Debug)]
pub(crate) struct BoundPath {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl BoundPath {
    /// Removes the file, unless another socket has taken the path since.
    pub(crate) fn remove(self) {
        if id(&self.path).is_ok_and(|now| now == self.id) {
            // Gone already, or replaced on the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino()))
}

/// Binds a unix socket of mode 0600 in place of whatever a killed run left: under another name first, so that the path never
/// names a socket that others may open.
pub(crate) fn bind_unix(path: &Path) -> anyhow::Result<(UnixListener, BoundPath)> {
    let failed = || format!("unix socket {}: can't be bound (its path may have at most 103 bytes)", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(failed)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = Path::new(&beside);
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).with_context(failed),
        _ => {}
    }
    let listener = UnixListener::bind(beside).with_context(failed)?;
    fs::set_permissions(beside, fs::Permissions::from_mode(0o600)).with_context(failed)?;
    let id = id(beside).with_context(failed)?;
    fs::rename(beside, path).with_context(failed)?;
    Ok((listener, BoundPath { path: path.to_owned(), id }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_another_has_taken_over_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let (_first, old) = bind_unix(&path).unwrap();
        let (_second, new) = bind_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        old.remove();
        assert!(path.exists(), "it is the second one's");
        new.remove();
        assert!(!path.exists());
    }
}
