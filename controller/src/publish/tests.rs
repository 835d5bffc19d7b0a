//! A subscriber that applies everything it is sent ends with what the catalog holds, however it was coalesced.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use sheave_api::{Encoded, content_hash, hash_from_bytes, key_from_name};
use sheave_model::{ContentHash, ResourceKey, ServiceKey};

use super::catalog::{Catalog, Chunk, First, Lost};

const NODE: &str = "n0";

/// What a subscriber holds, and where it is.
#[derive(Default)]
struct Subscriber {
    held: BTreeMap<ResourceKey, ContentHash>,
    place: u64,
    first: Option<First>,
}

impl Subscriber {
    fn arrive(&mut self, catalog: &Catalog) {
        let first = catalog.shelf().first(NODE, &self.held);
        self.place = first.place;
        self.first = Some(first);
    }

    /// Takes one chunk. Returns whether there was nothing left.
    fn take(&mut self, catalog: &Catalog, budget: usize) -> Result<bool, Lost> {
        if let Some(first) = &mut self.first {
            let chunk = catalog.next_of_first(first, budget);
            assert!(chunk.complete || chunk.removals.is_empty(), "removals come with the last chunk");
            if chunk.complete {
                self.first = None;
            }
            self.apply(chunk);
            return Ok(false);
        }
        let chunk = catalog.next(NODE, &mut self.place, budget)?;
        let done = chunk.is_empty();
        assert!(!done || chunk.complete, "an empty chunk means that there is no more");
        self.apply(chunk);
        Ok(done)
    }

    fn apply(&mut self, chunk: Chunk) {
        for upsert in chunk.upserts {
            assert_eq!(content_hash(&upsert.resource), hash_from_bytes(&upsert.hash).unwrap());
            let key = key_from_name(&upsert.name.unwrap()).unwrap();
            self.held.insert(key, hash_from_bytes(&upsert.hash).unwrap());
        }
        for name in chunk.removals {
            self.held.remove(&key_from_name(&name).unwrap());
        }
    }
}

fn key(number: u8) -> ResourceKey {
    match number {
        0 => ResourceKey::Cluster,
        1 => ResourceKey::Node(NODE.into()),
        2 => ResourceKey::Node("other".into()),
        n => ResourceKey::Service(ServiceKey::new("ns", format!("s{n}"))),
    }
}

fn content(version: u8) -> Encoded {
    let bytes = Bytes::from(vec![version; 40]);
    Encoded { hash: content_hash(&bytes), bytes }
}

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<(u8, Option<u8>)>),
    Take(usize),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => vec((0_u8..12, prop::option::weighted(0.7, 0_u8..4)), 1..6).prop_map(Step::Change),
        4 => (1_usize..600).prop_map(Step::Take),
        1 => Just(Step::Reconnect),
    ]
}

proptest! {
    #[test]
    fn a_subscriber_ends_with_the_catalogs_state(steps in vec(step(), 0..60), early: bool) {
        let mut catalog = Catalog::default();
        let mut model: BTreeMap<ResourceKey, ContentHash> = BTreeMap::new();
        let mut subscriber = Subscriber::default();
        if early {
            subscriber.arrive(&catalog);
        }
        for step in steps {
            match step {
                Step::Change(changes) => {
                    for (number, version) in changes {
                        match version {
                            Some(version) => { model.insert(key(number), content(version).hash); }
                            None => { model.remove(&key(number)); }
                        }
                        catalog.apply(vec![(key(number), version.map(content))], 1);
                    }
                }
                Step::Take(budget) => { subscriber.take(&catalog, budget).unwrap(); }
                Step::Reconnect => subscriber.arrive(&catalog),
            }
            let shelf = catalog.shelf();
            let whole: BTreeMap<_, _> = shelf.iter().map(|(key, encoded, _)| (key.clone(), encoded.hash)).collect();
            prop_assert_eq!(&whole, &model);
        }
        if !early {
            subscriber.arrive(&catalog);
        }
        while !subscriber.take(&catalog, 100).unwrap() {}
        model.retain(|key, _| !matches!(key, ResourceKey::Node(name) if &**name != NODE));
        prop_assert_eq!(subscriber.held, model);
        prop_assert_eq!(catalog.depth(catalog.revision()), 0);
    }
}

#[test]
fn many_changes_of_one_key_are_one_entry_of_a_queue() {
    let mut catalog = Catalog::default();
    for version in 0..200 {
        catalog.apply(vec![(key(5), Some(content(version)))], version.into());
    }
    assert_eq!(catalog.depth(0), 1);
    let chunk = catalog.next(NODE, &mut 0, usize::MAX).unwrap();
    assert_eq!((chunk.upserts.len(), chunk.observed_unix_nanos), (1, 199));
}

#[test]
fn the_same_content_changes_nothing() {
    let mut catalog = Catalog::default();
    assert_eq!(catalog.apply(vec![(key(5), Some(content(1))), (key(6), None)], 1), 1);
    assert_eq!(catalog.apply(vec![(key(5), Some(content(1)))], 2), 0);
    assert_eq!(catalog.revision(), 1);
}

#[test]
fn removals_are_bounded_and_whoever_misses_them_is_told() {
    let mut catalog = Catalog::default();
    let name = |number: u32| ResourceKey::Service(ServiceKey::new("ns", format!("s{number}")));
    for number in 0..20_000 {
        catalog.apply(vec![(name(number), Some(content(1)))], 1);
        catalog.apply(vec![(name(number), None)], 1);
    }
    assert_eq!(catalog.depth(0), 16_384);
    assert_eq!(catalog.next(NODE, &mut 0, 1000), Err(Lost));
    let mut place = catalog.revision();
    assert!(catalog.next(NODE, &mut place, 1000).unwrap().is_empty());
}
