//! The lock of the state folder: one controller uses it at a time; a second waits.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tracing::info;

/// Between two looks at a lock that somebody else has.
const RETRY: Duration = Duration::from_millis(200);

/// Held until dropped, or until the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: File,
}

impl StateLock {
    /// Waits for the lock of a folder, which is made if need be.
    pub(crate) async fn wait(dir: &Path) -> anyhow::Result<Self> {
        let failed = || format!("--state-dir {}: can't be used", dir.display());
        std::fs::create_dir_all(dir).with_context(failed)?;
        let path = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).with_context(failed)?;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if said => {}
                Err(TryLockError::WouldBlock) => {
                    info!(lock = %path.display(), "another controller uses the state folder; waiting for it to end");
                    said = true;
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateLock::wait(dir.path()).await.unwrap();
        let short = Duration::from_millis(50);
        assert!(tokio::time::timeout(short, StateLock::wait(dir.path())).await.is_err());
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), StateLock::wait(dir.path())).await.unwrap().unwrap();
    }
}
