//! One owner per node: an flock on a file in the state folder. The kernel lets go of it when its holder ends, however it
//! ends, so there is nothing stale to clean.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a waiting process asks. An flock can't be waited for without a thread, and nobody misses a quarter second.
const POLL: Duration = Duration::from_millis(250);

/// What can go wrong with the lock itself. That somebody holds it is no error.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}; --state-dir must be a folder that this process may write to", path = path.display())]
pub(crate) struct LockError {
    path: PathBuf,
    error: io::Error,
}

/// Held for as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// The result of one try.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It is ours.
    Ours(Lock),
    /// Another process has it; its id, where it could be read.
    HeldBy(Option<u32>),
}

/// Tries once to own the state folder, which is made where it isn't there (0700).
///
/// # Errors
/// Where folder or file can't be made.
pub(crate) fn attempt(state_dir: &Path) -> Result<Attempt, LockError> {
    let path = state_dir.join("lock");
    let wrap = |error| LockError { path: path.clone(), error };
    if !state_dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(wrap)?;
    }
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = options.map_err(wrap)?;
    match file.try_lock() {
        Ok(()) => {
            let write =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
            write.map_err(wrap)?;
            Ok(Attempt::Ours(Lock { _file: file }))
        }
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let holder = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            Ok(Attempt::HeldBy(holder))
        }
        Err(TryLockError::Error(error)) => Err(wrap(error)),
    }
}

/// Waits until the state folder is ours; says so once, to `waiting`, where another process has it.
///
/// # Errors
/// As [`attempt`].
pub(crate) async fn acquire(state_dir: &Path, mut waiting: impl FnMut(Option<u32>)) -> Result<Lock, LockError> {
    let mut told = false;
    loop {
        match attempt(state_dir)? {
            Attempt::Ours(lock) => return Ok(lock),
            Attempt::HeldBy(holder) => {
                if !told {
                    waiting(holder);
                    told = true;
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Removes what this program keeps on disk, for `clean`, as far as it can; returns what went wrong. That something isn't
/// there is no error.
pub(crate) fn remove_files(paths: &[PathBuf]) -> Vec<anyhow::Error> {
    let remove = |path: &PathBuf| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(anyhow::Error::new(error).context(format!("{} can't be removed", path.display())))
        }
        _ => None,
    };
    paths.iter().filter_map(remove).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_and_the_next_gets_it_when_the_first_ends() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let Attempt::Ours(first) = attempt(&state).unwrap() else { panic!("nobody holds it") };
        let Attempt::HeldBy(Some(pid)) = attempt(&state).unwrap() else { panic!("the first holds it") };
        assert_eq!(pid, std::process::id());
        drop(first);
        assert!(matches!(attempt(&state).unwrap(), Attempt::Ours(_)));
    }

    #[tokio::test]
    async fn a_waiting_one_takes_over() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().to_owned();
        let first = attempt(&state).unwrap();
        let (told, heard) = std::sync::mpsc::channel();
        let second = tokio::spawn(async move { acquire(&state, move |holder| told.send(holder).unwrap()).await });
        while heard.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        drop(first);
        assert!(second.await.unwrap().is_ok());
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(attempt(file.path()).unwrap_err().to_string().contains("--state-dir"));
    }
}
