//! What lies in the folder: its files of YAML and JSON, and the sub-folders to watch. Reads metadata and files, nothing else.
//!
//! Names that start with a dot are left alone: editors' swap files, `.git`, and the `..data` of a mounted ConfigMap, whose
//! files are reached by the links beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::folder::Content;

/// Files larger than this are not read: the folder is for manifests.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Files of one folder that are read.
const MAX_FILES: usize = 65_536;
/// Folders inside folders; links may form a circle.
const MAX_DEPTH: usize = 16;

/// A file is settled when it was modified this long ago; whole seconds, as the stamp is compared by them.
const SETTLED: Duration = Duration::from_secs(2);

/// Tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Print {
    fn new(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether the last modification is a moment ago.
    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let modified = u64::try_from(self.modified.0).map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age >= SETTLED))
    }

    /// Whether both are states of one file, which somebody may be writing to just now.
    pub(super) fn same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// A look at a folder.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By path from the folder.
    pub(super) files: BTreeMap<String, Print>,
    /// The folder and those inside it.
    pub(super) dirs: BTreeSet<PathBuf>,
    /// Files or folders beyond the limits.
    pub(super) left_out: usize,
    /// What could not be looked at though it is there, by path from the folder (empty: a part of the folder itself), and
    /// why. Nobody knows whether what is below is gone.
    pub(super) unseen: BTreeMap<String, String>,
}

impl Found {
    /// Whether a path that was not found is really not there.
    pub(super) fn is_gone(&self, path: &str) -> bool {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let hidden = above.chain(["", path]).any(|prefix| self.unseen.contains_key(prefix));
        !self.files.contains_key(path) && !hidden
    }

    fn note(&mut self, root: &Path, path: &Path, error: &io::Error) {
        // What is gone since it was listed, and a link that leads nowhere, is not there.
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            let inside = path.strip_prefix(root).unwrap_or(path);
            self.unseen.insert(inside.to_string_lossy().into_owned(), error.to_string());
        }
    }
}

/// Looks at a folder and everything in it.
///
/// # Errors
/// When the folder itself can't be listed; what can't be looked at inside it is noted as unseen.
pub(super) fn walk(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let entries = fs::read_dir(root)?;
    found.dirs.insert(root.to_owned());
    list(root, root, entries, 0, &mut found);
    Ok(found)
}

fn list(root: &Path, dir: &Path, entries: fs::ReadDir, depth: usize, found: &mut Found) {
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                found.note(root, dir, &error);
                continue;
            }
        };
        if is_hidden(&path) {
            continue;
        }
        // Through links, as ConfigMaps need.
        let meta = match fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) => {
                found.note(root, &path, &error);
                continue;
            }
        };
        if meta.is_dir() {
            if depth >= MAX_DEPTH || found.dirs.len() >= MAX_FILES {
                found.left_out += 1;
                continue;
            }
            match fs::read_dir(&path) {
                Ok(entries) => {
                    found.dirs.insert(path.clone());
                    list(root, &path, entries, depth + 1, found);
                }
                Err(error) => found.note(root, &path, &error),
            }
        } else if let Some(name) = name_of(root, &path).filter(|_| meta.is_file()) {
            if found.files.len() >= MAX_FILES {
                found.left_out += 1;
            } else {
                found.files.insert(name, Print::new(&meta));
            }
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// A manifest's path from the folder; `None` for other files.
pub(super) fn name_of(root: &Path, path: &Path) -> Option<String> {
    let known = path.extension().is_some_and(|kind| ["yaml", "yml", "json"].iter().any(|known| kind == *known));
    let inside = path.strip_prefix(root).ok().filter(|_| known && !is_hidden(path))?;
    Some(inside.to_string_lossy().into_owned())
}

/// Reads a file and what it was when it was opened.
pub(super) fn read(path: &Path) -> (Content, Option<Print>) {
    let unreadable = |error: &io::Error| Content::Unreadable {
        message: format!("can't be read: {error}"),
        remedy: "let the controller read it".to_owned(),
    };
    let opened =
        fs::metadata(path).and_then(|meta| if meta.is_file() { Ok(Some(File::open(path)?)) } else { Ok(None) });
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return (Content::Gone, None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return (Content::Gone, None);
        }
        Err(error) => return (unreadable(&error), None),
    };
    let print = file.metadata().ok().map(|meta| Print::new(&meta));
    let mut bytes = Vec::new();
    let content = match file.take(MAX_FILE + 1).read_to_end(&mut bytes) {
        Err(error) => unreadable(&error),
        Ok(length) if length as u64 > MAX_FILE => Content::Unreadable {
            message: format!("is larger than {MAX_FILE} bytes"),
            remedy: "split it into several files".to_owned(),
        },
        Ok(_) => Content::Bytes(bytes),
    };
    (content, print)
}
