//! Removing everything from the kernel.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Error, links, paths};

/// Detaches all programs and removes all pins of ours from a bpffs, of every ABI version. Nothing there is success.
///
/// # Errors
/// When the path is no bpffs, or a pin can't be removed.
pub fn clean(bpffs: &Path) -> Result<(), Error> {
    paths::check_bpffs(bpffs)?;
    let root = paths::root(bpffs);
    match fs::read_dir(&root) {
        Ok(versions) => {
            for version in versions {
                let version = version.map_err(Error::path("reading", &root))?;
                links::detach_all(&version.path().join("links"))?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::path("reading", &root)(error)),
    }
    fs::remove_dir_all(&root).map_err(Error::path("removing", &root))
}
