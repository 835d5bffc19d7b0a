//! Keeps the folder, the API server's part and the state file together: one look at the folder in, events and lines out.
//! Blocking; the source's task calls it where that is allowed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sheave_index::Kind;

use super::desk::Desk;
use super::fault::Fault;
use super::folder::{Content, Folder};
use super::scan::{self, Found, Print};
use super::state::StateFile;
use super::watch::Changes;
use crate::source::Event;

/// Lines about the folder that are shown; the last one says how many more there are.
const MAX_LINES: usize = 1_000;

/// Time for the folder itself to go after its last files.
const LAST_FILES: Duration = Duration::from_millis(100);

/// What came of a look.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// What has changed.
    pub(super) events: Vec<Event>,
    /// What is wrong and was not before: to be logged and counted.
    pub(super) news: Vec<Fault>,
    /// The folders to watch, where everything was looked at.
    pub(super) dirs: Option<BTreeSet<PathBuf>>,
    /// The folder is not there, or can't be listed: everything stays as it was.
    pub(super) lost: bool,
}

/// See the module.
pub(super) struct Keeper {
    root: PathBuf,
    folder: Folder,
    pub(super) desk: Desk,
    file: StateFile,
    prints: HashMap<String, Print>,
    /// What the last look at everything left out, or could not look at.
    left_out: Vec<Fault>,
    /// It could not look at something.
    unseen: bool,
    /// What is wrong with the folder itself, or with the state's.
    own: Vec<Fault>,
    lines: BTreeSet<String>,
    looked: bool,
}

impl Keeper {
    pub(super) fn new(root: &Path, desk: Desk, file: StateFile) -> Self {
        Self {
            root: root.to_owned(),
            folder: Folder::default(),
            desk,
            file,
            prints: HashMap::new(),
            left_out: Vec::new(),
            unseen: false,
            own: Vec::new(),
            lines: BTreeSet::new(),
            looked: false,
        }
    }

    /// Looks at what has changed, or at everything; `now` is in seconds since 1970.
    pub(super) fn look(&mut self, changes: &Changes, now: i64) -> Look {
        let mut look = Look::default();
        self.own.clear();
        let updates = match self.read(changes, &mut look) {
            Ok(updates) => updates,
            Err(error) => {
                look.lost = true;
                let message = format!("can't be listed: {error}");
                let remedy = "bring the folder back; until then everything stays as it was";
                self.own.push(self.fault(message, remedy));
                Vec::new()
            }
        };
        let mut touched = BTreeSet::new();
        for (path, content) in updates {
            touched.extend(self.folder.update(&path, content)); // not `append`, which rebuilds the whole set each time
        }
        look.events = self.desk.update(&self.folder, &touched, now);
        // What is remembered of Services that may be in what can't be read waits until it is mended.
        if !self.looked && !look.lost && !self.unseen && !self.folder.is_broken() {
            self.looked = true;
            self.desk.forget_absent(&self.folder);
        }
        self.save();
        self.tell(&mut look);
        look
    }

    /// Everything there is, as lists.
    pub(super) fn lists(&self, kinds: &[Kind]) -> Vec<Vec<Event>> {
        kinds.iter().map(|&kind| self.desk.list(kind)).collect()
    }

    /// Whether the folder can be listed.
    pub(super) fn is_there(&self) -> bool {
        std::fs::read_dir(&self.root).is_ok()
    }

    /// The folder and those inside it, as far as they can be listed.
    pub(super) fn dirs(&self) -> BTreeSet<PathBuf> {
        scan::walk(&self.root).map(|found| found.dirs).unwrap_or_default()
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.folder.keys().count()
    }

    /// Reads the files that may have changed.
    fn read(&mut self, changes: &Changes, look: &mut Look) -> io::Result<Vec<(String, Content)>> {
        let mut wanted: BTreeSet<String> = changes.files.clone();
        let mut gone: BTreeSet<String> = BTreeSet::new();
        if changes.everything {
            let found = scan::walk(&self.root)?;
            self.left_out = self.incomplete(&found);
            self.unseen = !found.unseen.is_empty();
            for (path, print) in &found.files {
                let known = self.prints.get(path);
                // Somebody may be half-way through a file that is the same one and was modified just now; whoever writes
                // it closes it, which is an event of its own, or the next look finds it settled.
                let settled = known.is_none_or(|known| !known.same_file(print)) || print.is_settled(SystemTime::now());
                if known != Some(print) && settled {
                    wanted.insert(path.clone());
                }
            }
            gone = self.folder.paths().filter(|path| found.is_gone(path)).map(|path| path.to_string()).collect();
            look.dirs = Some(found.dirs);
        } else {
            // A file that is gone says nothing when the folder is gone with it.
            std::fs::read_dir(&self.root)?;
        }
        let mut updates: Vec<(String, Content)> = Vec::new();
        for path in wanted {
            let (content, print) = scan::read(&self.root.join(&path));
            match print {
                Some(print) => self.prints.insert(path.clone(), print),
                None => self.prints.remove(&path),
            };
            updates.push((path, content));
        }
        for path in gone {
            self.prints.remove(&path);
            updates.push((path, Content::Gone));
        }
        self.wait_for_the_rest(&updates)?;
        Ok(updates)
    }

    /// What is wrong with a look at everything.
    fn incomplete(&self, found: &Found) -> Vec<Fault> {
        let mut faults = Vec::new();
        if found.left_out > 0 {
            let message = format!("{} files or folders are beyond what is read", found.left_out);
            faults.push(self.fault(message, "have fewer files, or fewer folders inside each other"));
        }
        if let Some((path, error)) = found.unseen.first_key_value() {
            let more = match found.unseen.len() - 1 {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            let message = format!("{path:?} can't be looked at: {error}{more}");
            faults.push(self.fault(message, "let the controller read it; objects it gave before stay"));
        }
        faults
    }

    /// Whoever removes the folder removes its files first. When the last of them go, the folder may be about to.
    fn wait_for_the_rest(&self, updates: &[(String, Content)]) -> io::Result<()> {
        let all_go = || {
            let gone: HashSet<&str> = updates.iter().map(|(path, _)| &**path).collect();
            self.folder.paths().next().is_some() && self.folder.paths().all(|path| gone.contains(&**path))
        };
        if updates.iter().all(|(_, content)| matches!(content, Content::Gone)) && all_go() {
            std::thread::sleep(LAST_FILES);
            std::fs::read_dir(&self.root)?;
        }
        Ok(())
    }

    /// Saves the state before anything that depends on it is told. What can't be saved is told nevertheless: serving goes
    /// on, and only a restart would forget.
    fn save(&mut self) {
        if self.desk.state.changed
            && let Err(error) = self.file.save(&mut self.desk.state)
        {
            let message = format!("the state folder can't be written: {error}");
            let remedy = "mend it; after a restart addresses that were assigned meanwhile may change";
            self.own.push(self.fault(message, remedy));
        }
    }

    fn fault(&self, message: String, remedy: &str) -> Fault {
        let (place, remedy) = (self.root.display().to_string(), remedy.to_owned());
        Fault { place, message, remedy, ..Fault::default() }
    }

    /// Compares what is wrong now with what was told before.
    fn tell(&mut self, look: &mut Look) {
        let mut faults = self.own.clone();
        faults.extend(self.left_out.clone());
        faults.append(&mut self.folder.faults());
        let more = faults.len().saturating_sub(MAX_LINES);
        faults.truncate(MAX_LINES);
        let mut lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        if more > 0 {
            lines.push(format!("{}: {more} more are wrong; mend those first", self.root.display()));
        }
        let now: BTreeSet<String> = lines.iter().cloned().collect();
        if now == self.lines {
            return;
        }
        look.news = faults.into_iter().filter(|fault| !self.lines.contains(&fault.to_string())).collect();
        look.events.push(Event::Problems(lines));
        self.lines = now;
    }
}

/// Now, in seconds since 1970.
pub(super) fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
