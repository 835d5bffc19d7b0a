//! inotify: which files have been written, moved or removed, and when everything must be looked at anew.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask};
use tokio::time::{Instant, timeout_at};

use super::scan::name_of;

/// Events that follow each other within this time are one change; a tool that writes several files makes one batch of them.
const QUIET: Duration = Duration::from_millis(2);
/// A change is told after this time at the latest, however many events follow.
const LATEST: Duration = Duration::from_millis(10);
/// Room for a few hundred events at a time.
const BUFFER: usize = 64 * 1024;

/// What has happened in the folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Manifests that were written to, moved or removed, by path from the folder.
    pub(super) files: BTreeSet<String>,
    /// Folders or links have changed, or events were lost: look at everything.
    pub(super) everything: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && !self.everything
    }
}

/// Watches a folder and those inside it.
pub(super) struct Watcher {
    root: PathBuf,
    events: EventStream<Vec<u8>>,
    dirs: HashMap<WatchDescriptor, PathBuf>,
    /// Of the folder above, where it is seen that the folder itself is moved, removed or made.
    above: Option<WatchDescriptor>,
    /// Seen and not yet told.
    pending: Changes,
}

impl Watcher {
    /// # Errors
    /// When the kernel has no inotify instance left for this user.
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; BUFFER])?;
        Ok(Self { root: root.to_owned(), events, dirs: HashMap::new(), above: None, pending: Changes::default() })
    }

    /// Watches these folders and no others. Returns whether some are watched only from now on, so that a change made
    /// before may have been missed.
    ///
    /// # Errors
    /// When the kernel has no watch left for this user. Folders that are gone are passed over.
    pub(super) fn follow(&mut self, dirs: &BTreeSet<PathBuf>) -> io::Result<bool> {
        let mut watches = self.events.watches();
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        if self.above.is_none() {
            let above = self.root.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
            self.above = above.and_then(|dir| watches.add(dir, mask).ok());
        }
        let mut now = HashMap::new();
        for dir in dirs {
            match watches.add(dir, mask) {
                // The same descriptor for the same folder; another one where another folder took its name.
                Ok(descriptor) => now.insert(descriptor, dir.clone()),
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error), // the limit of watches
                Err(_) => continue,
            };
        }
        let new = now.iter().any(|(descriptor, dir)| self.dirs.get(descriptor) != Some(dir));
        for (descriptor, _) in std::mem::replace(&mut self.dirs, now) {
            if !self.dirs.contains_key(&descriptor) && self.above.as_ref() != Some(&descriptor) {
                // The kernel has dropped the watch already when the folder is gone.
                let _ = watches.remove(descriptor);
            }
        }
        Ok(new)
    }

    /// Waits for the next change, and a moment more for those that belong to it. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// Those of the kernel.
    pub(super) async fn next(&mut self) -> io::Result<Changes> {
        while self.pending.is_empty() {
            self.read().await?;
        }
        let latest = Instant::now() + LATEST;
        while Instant::now() < latest {
            let until = (Instant::now() + QUIET).min(latest);
            match timeout_at(until, self.read()).await {
                Ok(read) => read?,
                Err(_) => break,
            }
        }
        Ok(std::mem::take(&mut self.pending))
    }

    async fn read(&mut self) -> io::Result<()> {
        let event = self.events.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        if self.above.as_ref() == Some(&event.wd) && !self.dirs.contains_key(&event.wd) {
            self.pending.everything |= event.name.is_none() || event.name.as_deref() == self.root.file_name();
            // A folder above that is gone is not watched any more; the next look tries again.
            if event.mask.contains(EventMask::IGNORED) {
                self.above = None;
            }
        } else {
            note(&self.root, &self.dirs, &event, &mut self.pending);
        }
        Ok(())
    }
}

fn note(root: &Path, dirs: &HashMap<WatchDescriptor, PathBuf>, event: &EventOwned, changes: &mut Changes) {
    let mask = event.mask;
    if mask.contains(EventMask::IGNORED) {
        return;
    }
    let path = dirs.get(&event.wd).zip(event.name.as_ref()).map(|(dir, name)| dir.join(name));
    let Some(path) = path.filter(|_| !mask.contains(EventMask::ISDIR)) else {
        changes.everything = true;
        return;
    };
    match name_of(root, &path) {
        // A new file is empty until its writer closes it, unless it is a link to one that is not.
        Some(_) if mask.contains(EventMask::CREATE) && !is_link(&path) => {}
        Some(name) => {
            changes.files.insert(name);
        }
        // Whoever writes a file of another kind changes nothing; a link or folder that comes or goes may change much.
        None => changes.everything |= !mask.contains(EventMask::CLOSE_WRITE),
    }
}

/// A symbolic link, or one more name of a file that exists.
fn is_link(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    path.symlink_metadata().is_ok_and(|meta| meta.is_symlink() || meta.nlink() > 1)
}
