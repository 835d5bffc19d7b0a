//! cgroup2 folders of a run: found, made, emptied and removed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::until;

/// Where the machine's cgroup2 hierarchy is mounted (on a hybrid machine that isn't /sys/fs/cgroup itself).
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let cgroup2 = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let target = words.next()?;
        (words.next()? == "cgroup2").then(|| PathBuf::from(target))
    };
    mounts.lines().find_map(cgroup2).context("no cgroup2 file system is mounted here; the eBPF path needs one")
}

/// Makes a folder and those above it.
pub fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cgroup {}", path.display()))
}

/// Kills everything in a cgroup tree and removes it. One that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1").with_context(|| format!("kill {}", path.display()))?;
    until(&format!("remove {}", path.display()), Duration::from_secs(5), || match remove_tree(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => bail!(error),
        _ => Ok(()),
    })
}

/// Removes the folders of a tree from the leaves up; the files in them are the kernel's and go along.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
