//! The folder's content: files, their documents, and which of them gives each object. Pure: it is told what files hold.
//!
//! A document whose text did not change is not parsed again. While a file is broken (a document that is no YAML, an object
//! that is none), objects that it gave before and that are not found in it now keep their last good version: nobody can know
//! whether they are in the broken part. Of an object in two places the first by path and document gives it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde_json::Value;
use sheave_index::{ObjectKey, Strings};

use super::fault::Fault;
use super::parse::{self, Item, Parsed};
use super::split::documents;

/// What is found at a path.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// A file's bytes.
    Bytes(Vec<u8>),
    /// There is no such file (any more).
    Gone,
    /// It can't be read, and why; or it is too large to be.
    Unreadable { message: String, remedy: String },
}

#[derive(Debug)]
struct Doc {
    hash: u64,
    number: usize,
    line: usize,
    parsed: Parsed,
}

#[derive(Debug, Default)]
struct File {
    docs: Vec<Doc>,
    /// The last good versions of objects that may be in the part that is broken now.
    kept: Vec<Arc<Item>>,
    unreadable: Option<Fault>,
}

impl File {
    /// Whether an object may be hidden in a part that can't be read.
    fn is_broken(&self) -> bool {
        self.unreadable.is_some() || self.docs.iter().any(|doc| doc.parsed.broken)
    }

    /// Whether there is anything to say about it.
    fn is_wrong(&self) -> bool {
        self.is_broken() || self.docs.iter().any(|doc| !doc.parsed.faults.is_empty())
    }

    /// Every object with its place in the file of this path.
    fn items<'a>(&'a self, path: &'a Arc<str>) -> impl Iterator<Item = (Spot, &'a Arc<Item>)> {
        let spot = move |kept, document, index| Spot { kept, path: path.clone(), document, index };
        let found = self.docs.iter().flat_map(move |doc| {
            let items = doc.parsed.items.iter().enumerate();
            items.map(move |(index, item)| (spot(false, doc.number, index), item))
        });
        found.chain(self.kept.iter().enumerate().map(move |(index, item)| (spot(true, 0, index), item)))
    }
}

/// Where an object is written. The order is the order of precedence: a kept version counts only while there is no other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Spot {
    kept: bool,
    path: Arc<str>,
    document: usize,
    index: usize,
}

/// Every file that was read.
#[derive(Debug, Default)]
pub(super) struct Folder {
    files: BTreeMap<Arc<str>, File>,
    /// Sorted by place; nearly always there is one.
    owners: HashMap<ObjectKey, Vec<(Spot, Arc<Item>)>>,
    /// Files with something wrong in them, so that a look at one file costs nothing for the others.
    wrong: BTreeSet<Arc<str>>,
    /// Objects that are found in several places.
    twice: BTreeSet<ObjectKey>,
    strings: Strings,
}

impl Folder {
    /// Takes in what a file holds now. Returns the objects that are new, changed or gone.
    pub(super) fn update(&mut self, path: &str, content: Content) -> BTreeSet<ObjectKey> {
        let path: Arc<str> = path.into();
        let old = self.files.remove(&path).unwrap_or_default();
        let mut leaving: HashMap<Spot, Arc<Item>> = old.items(&path).map(|(spot, item)| (spot, item.clone())).collect();
        let file = self.read(&path, content, old);
        let mut coming = Vec::new();
        for (spot, item) in file.items(&path) {
            // What stays where it was costs no more than this look at it.
            if leaving.get(&spot).is_some_and(|old| Arc::ptr_eq(old, item)) {
                leaving.remove(&spot);
            } else {
                coming.push((spot, item.clone()));
            }
        }
        if file.is_wrong() {
            self.wrong.insert(path.clone());
        } else {
            self.wrong.remove(&path);
        }
        if !file.docs.is_empty() || !file.kept.is_empty() || file.unreadable.is_some() {
            self.files.insert(path, file);
        }
        let keys = leaving.values().chain(coming.iter().map(|(_, item)| item)).map(|item| item.key.clone());
        let before: BTreeMap<ObjectKey, Option<Arc<Item>>> =
            keys.map(|key| (key.clone(), self.owner(&key).cloned())).collect();
        self.disown(&leaving);
        for (spot, item) in coming {
            let spots = self.owners.entry(item.key.clone()).or_default();
            let at = spots.partition_point(|(other, _)| *other < spot);
            spots.insert(at, (spot, item));
        }
        for key in before.keys() {
            if self.owners.get(key).is_some_and(|spots| spots.len() > 1) {
                self.twice.insert(key.clone());
            } else {
                self.twice.remove(key);
            }
        }
        before.into_iter().filter(|(key, old)| old.as_ref() != self.owner(key)).map(|(key, _)| key).collect()
    }

    /// The object's version that counts.
    pub(super) fn owner(&self, key: &ObjectKey) -> Option<&Arc<Item>> {
        self.owners.get(key)?.first().map(|(_, item)| item)
    }

    /// Every file that is known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// Every object.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.owners.keys()
    }

    /// Everything that is wrong now.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut all = Vec::new();
        for (path, file) in self.wrong.iter().filter_map(|path| self.files.get_key_value(path)) {
            all.extend(file.unreadable.clone());
            for doc in &file.docs {
                for (line, fault) in &doc.parsed.faults {
                    let line = line.map(|line| format!(", line {}", doc.line + line)).unwrap_or_default();
                    let start = if line.is_empty() { format!(" from line {}", doc.line) } else { String::new() };
                    let kept = if doc.parsed.broken { "; objects this file gave before stay" } else { "" };
                    all.push(Fault {
                        place: format!("{path}, document {}{start}{line}", doc.number),
                        remedy: format!("{}{kept}", fault.remedy),
                        ..fault.clone()
                    });
                }
            }
        }
        for (key, spots) in self.twice.iter().filter_map(|key| self.owners.get_key_value(key)) {
            let Some((first, _)) = spots.first() else { continue };
            // A kept version beside a good one elsewhere is an object that moved, not one that is there twice.
            let again = spots.iter().skip(1).map(|(spot, _)| spot).filter(|spot| !spot.kept);
            all.extend(again.map(|spot| Fault {
                place: format!("{}, document {}", spot.path, spot.document),
                kind: key.kind.as_str().to_owned(),
                field: "metadata.name".to_owned(),
                message: format!("{key} is already in {}, which keeps it", first.path),
                remedy: "take one of the two out".to_owned(),
            }));
        }
        all
    }

    /// Whether an object may be hidden in something that can't be read.
    pub(super) fn is_broken(&self) -> bool {
        self.wrong.iter().filter_map(|path| self.files.get(path)).any(File::is_broken)
    }

    /// Whether the sets are what a look at everything would give, for tests.
    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let wrong = self.files.iter().filter(|(_, file)| file.is_wrong()).map(|(path, _)| path);
        let twice: BTreeSet<_> =
            self.owners.iter().filter(|(_, spots)| spots.len() > 1).map(|(key, _)| key.clone()).collect();
        self.wrong.iter().eq(wrong) && self.twice == twice
    }

    fn disown(&mut self, leaving: &HashMap<Spot, Arc<Item>>) {
        for (spot, item) in leaving {
            if let Some(spots) = self.owners.get_mut(&item.key) {
                spots.retain(|(other, _)| other != spot);
                if spots.is_empty() {
                    self.owners.remove(&item.key);
                }
            }
        }
    }

    fn read(&mut self, path: &Arc<str>, content: Content, old: File) -> File {
        let bytes = match content {
            Content::Gone => return File::default(),
            Content::Unreadable { message, remedy } => {
                let remedy = format!("{remedy}; objects this file gave before stay");
                let unreadable = Some(Fault { place: path.to_string(), message, remedy, ..Fault::default() });
                return File { unreadable, ..old };
            }
            Content::Bytes(bytes) => bytes,
        };
        let Ok(text) = std::str::from_utf8(&bytes) else {
            let message = "is not UTF-8".to_owned();
            let remedy = "save it as UTF-8; objects this file gave before stay".to_owned();
            return File {
                unreadable: Some(Fault { place: path.to_string(), message, remedy, ..Fault::default() }),
                ..old
            };
        };
        let earlier: Vec<Arc<Item>> = old.items(path).map(|(_, item)| item.clone()).collect();
        let docs = if path.ends_with(".json") { self.json(text) } else { self.yaml(text, old.docs) };
        let mut file = File { docs, ..File::default() };
        if file.docs.iter().any(|doc| doc.parsed.broken) {
            let found: BTreeSet<ObjectKey> = file.items(path).map(|(_, item)| item.key.clone()).collect();
            file.kept = earlier.into_iter().filter(|item| !found.contains(&item.key)).collect();
        }
        file
    }

    fn yaml(&mut self, text: &str, old: Vec<Doc>) -> Vec<Doc> {
        let mut known: HashMap<u64, Vec<Parsed>> = HashMap::new();
        for doc in old {
            known.entry(doc.hash).or_default().push(doc.parsed);
        }
        let mut docs = Vec::new();
        for document in documents(text) {
            let mut hasher = DefaultHasher::new();
            document.text.hash(&mut hasher);
            let hash = hasher.finish();
            let parsed = known.get_mut(&hash).and_then(Vec::pop);
            let parsed = parsed.unwrap_or_else(|| parse::yaml(&document, &mut self.strings));
            docs.push(Doc { hash, number: document.number, line: document.line, parsed });
        }
        docs
    }

    /// A JSON file is read as a whole: values follow each other without a marker that could be found unparsed.
    fn json(&mut self, text: &str) -> Vec<Doc> {
        let mut docs = Vec::new();
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        loop {
            let start = stream.byte_offset();
            let blank = text[start..].len() - text[start..].trim_start().len();
            let line = text[..start + blank].matches('\n').count() + 1;
            let number = docs.len() + 1;
            match stream.next() {
                None => return docs,
                Some(Ok(value)) => {
                    let parsed = parse::json(value, stream.byte_offset() - start, &mut self.strings);
                    docs.push(Doc { hash: 0, number, line, parsed });
                }
                Some(Err(error)) => {
                    let mut parsed = Parsed { broken: true, ..Parsed::default() };
                    // serde_json counts lines from the start of the file.
                    let at = Some(error.line().saturating_sub(line));
                    let message = format!("is no JSON: {error}");
                    let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
                    parsed.fault(at, "", "", message, "mend the syntax");
                    docs.push(Doc { hash: 0, number, line, parsed });
                    return docs;
                }
            }
        }
    }
}
