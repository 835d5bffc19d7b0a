//! Every resource, encoded once, and the order in which they changed last.
//!
//! The log holds each key once, at its latest change, so a subscriber's queue is the part of the log behind its place: latest
//! wins per key, a slow subscriber costs nothing but that place, and no queue can outgrow the catalog and the removals that
//! are remembered. Whoever falls behind the forgotten removals starts over from what it holds.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use imbl::OrdMap;
use sheave_api::{Encoded, hash_to_bytes, name_of_key, proto};
use sheave_model::{ContentHash, ResourceKey};

/// Removals that are remembered. A subscriber that is further behind compares hashes again, which costs one Hello.
const MAX_REMOVALS: usize = 16_384;

/// Bytes that a resource's framing takes beside its name and content: tags, lengths and the hash.
const FRAMING: usize = 48;

/// A resource that is new, changed (`Some`) or gone (`None`).
pub(crate) type Change = (ResourceKey, Option<Encoded>);

/// A subscriber's place lies before removals that have been forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it fell behind the removals that are remembered")]
pub(crate) struct Lost;

/// A part of what a subscriber has to be told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) upserts: Vec<proto::Upsert>,
    pub(crate) removals: Vec<proto::ResourceName>,
    /// When the newest of them was seen, nanoseconds since 1970; 0: unknown.
    pub(crate) observed_unix_nanos: u64,
    /// Whether nothing was left out for lack of room.
    pub(crate) complete: bool,
}

impl Chunk {
    pub(crate) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

/// What a subscriber lacks when it arrives: keys to send, removals for the end, and where its place in the log is.
#[derive(Clone, Debug)]
pub(crate) struct First {
    keys: VecDeque<ResourceKey>,
    removals: Vec<ResourceKey>,
    /// Where deltas go on.
    pub(crate) place: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    encoded: Encoded,
    revision: u64,
    observed: u64,
}

/// The catalog. It changes by [`Catalog::apply`] only.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    revision: u64,
    entries: OrdMap<ResourceKey, Entry>,
    /// Revision and time of removals.
    removed: BTreeMap<ResourceKey, (u64, u64)>,
    /// Removals in order, with those that were taken back since.
    removals: VecDeque<(u64, ResourceKey)>,
    /// Every key of `entries` and `removed` once, at its latest change.
    log: BTreeMap<u64, ResourceKey>,
    /// Removals up to this revision may have been forgotten.
    floor: u64,
}

impl Catalog {
    /// Counts the changes since the start.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Everything as it is now. Costs next to nothing.
    pub(crate) fn shelf(&self) -> Shelf {
        Shelf { revision: self.revision, entries: self.entries.clone() }
    }

    pub(crate) fn hash_of(&self, key: &ResourceKey) -> Option<ContentHash> {
        self.entries.get(key).map(|entry| entry.encoded.hash)
    }

    /// Applies changes that were seen at `observed`. Returns how many really changed something.
    pub(crate) fn apply(&mut self, changes: Vec<Change>, observed: u64) -> usize {
        let before = self.revision;
        for (key, content) in changes {
            match content {
                Some(encoded) if self.hash_of(&key) != Some(encoded.hash) => self.upsert(key, encoded, observed),
                None if self.entries.contains_key(&key) => self.remove(key, observed),
                _ => {}
            }
        }
        usize::try_from(self.revision - before).unwrap_or(usize::MAX)
    }

    fn upsert(&mut self, key: ResourceKey, encoded: Encoded, observed: u64) {
        self.revision += 1;
        let revision = self.revision;
        if let Some((old, _)) = self.removed.remove(&key) {
            self.log.remove(&old);
        }
        if let Some(old) = self.entries.insert(key.clone(), Entry { encoded, revision, observed }) {
            self.log.remove(&old.revision);
        }
        self.log.insert(revision, key);
    }

    fn remove(&mut self, key: ResourceKey, observed: u64) {
        self.revision += 1;
        if let Some(old) = self.entries.remove(&key) {
            self.log.remove(&old.revision);
        }
        self.log.insert(self.revision, key.clone());
        self.removed.insert(key.clone(), (self.revision, observed));
        self.removals.push_back((self.revision, key));
        while self.removals.len() > MAX_REMOVALS {
            self.forget_oldest_removal();
        }
    }

    fn forget_oldest_removal(&mut self) {
        let Some((revision, key)) = self.removals.pop_front() else { return };
        self.floor = revision;
        if self.removed.get(&key).is_some_and(|&(latest, _)| latest == revision) {
            self.removed.remove(&key);
            self.log.remove(&revision);
        }
    }

    /// The next chunk of a first series. The one that says `complete` has the removals and is the last.
    pub(crate) fn next_of_first(&self, first: &mut First, budget: usize) -> Chunk {
        let mut chunk = Chunk::default();
        let mut size = 0;
        while let Some(key) = first.keys.front() {
            // What is gone since is in the log behind this series' place.
            if let Some(entry) = self.entries.get(key) {
                size += size_of(key, entry.encoded.bytes.len());
                if size > budget && !chunk.upserts.is_empty() {
                    return chunk;
                }
                chunk.upserts.push(upsert(key, &entry.encoded));
            }
            first.keys.pop_front();
        }
        chunk.removals = first.removals.iter().map(name_of_key).collect();
        chunk.complete = true;
        chunk
    }

    /// What changed behind `place` and concerns `node`, up to `budget` bytes but at least one resource; moves `place`.
    pub(crate) fn next(&self, node: &str, place: &mut u64, budget: usize) -> Result<Chunk, Lost> {
        if *place < self.floor {
            return Err(Lost);
        }
        let mut chunk = Chunk::default();
        let mut size = 0;
        for (&revision, key) in self.log.range((Bound::Excluded(*place), Bound::Unbounded)) {
            if concerns(key, node) {
                let entry = self.entries.get(key);
                size += size_of(key, entry.map_or(0, |entry| entry.encoded.bytes.len()));
                if size > budget && !chunk.is_empty() {
                    return Ok(chunk);
                }
                let observed = match entry {
                    Some(entry) => {
                        chunk.upserts.push(upsert(key, &entry.encoded));
                        entry.observed
                    }
                    None => {
                        chunk.removals.push(name_of_key(key));
                        self.removed.get(key).map_or(0, |&(_, observed)| observed)
                    }
                };
                chunk.observed_unix_nanos = chunk.observed_unix_nanos.max(observed);
            }
            *place = revision;
        }
        chunk.complete = true;
        Ok(chunk)
    }

    /// How many changes lie behind a place.
    pub(crate) fn depth(&self, place: u64) -> usize {
        self.log.range((Bound::Excluded(place), Bound::Unbounded)).count()
    }
}

/// The catalog's content at one moment. It shares its parts with the catalog, so whoever works through all of it does so
/// without holding up those who publish.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    revision: u64,
    entries: OrdMap<ResourceKey, Entry>,
}

impl Shelf {
    /// The catalog's revision at that moment.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Every resource with its content and the revision it changed at.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ResourceKey, &Encoded, u64)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.encoded, entry.revision))
    }

    /// What a subscriber that holds `known` lacks.
    pub(crate) fn first(&self, node: &str, known: &BTreeMap<ResourceKey, ContentHash>) -> First {
        let lacks =
            |(key, entry): &(&ResourceKey, &Entry)| concerns(key, node) && known.get(*key) != Some(&entry.encoded.hash);
        let mut keys: Vec<ResourceKey> = self.entries.iter().filter(lacks).map(|(key, _)| key.clone()).collect();
        // The node's own facts decide on which addresses NodePorts answer: first, so that nothing is settled twice.
        keys.sort_by_key(|key| matches!(key, ResourceKey::Service(_)));
        let gone = |key: &&ResourceKey| !concerns(key, node) || !self.entries.contains_key(*key);
        let removals = known.keys().filter(gone).cloned().collect();
        First { keys: keys.into(), removals, place: self.revision }
    }
}

/// Whether a resource is for a node: everything but other nodes' facts.
fn concerns(key: &ResourceKey, node: &str) -> bool {
    match key {
        ResourceKey::Node(name) => &**name == node,
        ResourceKey::Service(_) | ResourceKey::Cluster => true,
    }
}

fn upsert(key: &ResourceKey, encoded: &Encoded) -> proto::Upsert {
    proto::Upsert { name: Some(name_of_key(key)), hash: hash_to_bytes(encoded.hash), resource: encoded.bytes.clone() }
}

/// About how many bytes a resource takes in an Update.
fn size_of(key: &ResourceKey, content: usize) -> usize {
    let name = match key {
        ResourceKey::Service(key) => key.namespace.len() + key.name.len(),
        ResourceKey::Node(name) => name.len(),
        ResourceKey::Cluster => 0,
    };
    FRAMING + name + content
}
