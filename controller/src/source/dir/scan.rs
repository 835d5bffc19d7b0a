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
}

/// Looks at a folder and everything in it.
///
/// # Errors
/// When the folder itself can't be listed; what can't be listed inside it is passed over, and found at the next look.
pub(super) fn walk(root: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    let entries = fs::read_dir(root)?;
    found.dirs.insert(root.to_owned());
    list(root, entries, 0, &mut found);
    Ok(found)
}

fn list(root: &Path, entries: fs::ReadDir, depth: usize, found: &mut Found) {
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| !is_hidden(path)) {
        // Through links, as ConfigMaps need; one that leads nowhere is passed over.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            if depth >= MAX_DEPTH || found.dirs.len() >= MAX_FILES {
                found.left_out += 1;
            } else if let Ok(entries) = fs::read_dir(&path) {
                found.dirs.insert(path.clone());
                list(root, entries, depth + 1, found);
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
