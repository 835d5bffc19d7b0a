//! The catalog behind a lock, with the view it was computed from, and wake-ups for those who wait on either.
//!
//! The lock is held for map work only, never across an await or a computation of resources. Whoever needs all of the catalog
//! takes its shelf and works outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sheave_index::Kind;
use sheave_model::{ResourceKey, View};
use tokio::sync::watch;

use super::catalog::{Catalog, Change};
use crate::metrics::Metrics;

/// How often a kind's lists began and ended. A list that began as number n ends as number n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// The number of the list that began last; 0: none has.
    pub(crate) begun: u64,
    /// The number of the list that was complete last; 0: none was.
    pub(crate) ended: u64,
}

/// What this replica has seen, as a gate needs it.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Whether every kind has been listed and the result is in the catalog.
    pub(crate) ready: bool,
    pub(crate) view: View,
    pub(crate) lists: BTreeMap<Kind, Lists>,
    /// When each kind was last heard of.
    pub(crate) heard: BTreeMap<Kind, Instant>,
    /// The Nodes that a proxy's Pod is on.
    pub(crate) proxied: Arc<BTreeSet<Arc<str>>>,
}

impl Standing {
    /// Nothing has been listed.
    pub(crate) fn new() -> Self {
        let (lists, heard) = (BTreeMap::new(), BTreeMap::new());
        Self { ready: false, view: View::default(), lists, heard, proxied: Arc::default() }
    }
}

#[derive(Debug)]
struct State {
    catalog: Catalog,
    standing: Standing,
    /// What was never heard of is as old as this.
    started: Instant,
}

impl State {
    /// The age of the view: of its oldest kind.
    fn age(&self) -> Duration {
        let heard = |kind: &Kind| self.standing.heard.get(kind).unwrap_or(&self.started).elapsed();
        Kind::ALL.iter().map(heard).max().unwrap_or_default()
    }
}

/// Shared by the index task, which writes, and by subscribers and the admin pages, which read.
#[derive(Debug)]
pub(crate) struct Publisher {
    state: Mutex<State>,
    /// The catalog's revision.
    changes: watch::Sender<u64>,
    /// Counts batches, whether or not they changed the catalog.
    views: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let state = State { catalog: Catalog::default(), standing: Standing::new(), started: Instant::now() };
        Self { state: Mutex::new(state), changes: watch::Sender::new(0), views: watch::Sender::new(0), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere can't leave the maps half changed in a way that matters more than serving on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes changes together with the standing they bring about.
    pub(crate) fn publish(&self, changes: Vec<Change>, observed: u64, standing: Standing) {
        let (changed, revision) = {
            let mut state = self.lock();
            let changed = state.catalog.apply(changes, observed);
            state.standing = standing;
            if changed > 0 {
                self.metrics.catalog_resources.set(state.catalog.len().try_into().unwrap_or(i64::MAX));
            }
            (changed, state.catalog.revision())
        };
        if changed > 0 {
            self.metrics.catalog_revision.set(revision.try_into().unwrap_or(i64::MAX));
            self.changes.send_replace(revision);
        }
        self.views.send_modify(|count| *count += 1);
    }

    /// Reads the catalog, and the view it was computed from with its age: one consistent moment.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Catalog, &View, Duration) -> T) -> T {
        let state = self.lock();
        read(&state.catalog, &state.standing.view, state.age())
    }

    /// The nodes that should have a proxy: a cluster may have some that can't run one, or that the DaemonSet leaves out, and then
    /// those that a proxy's Pod is on. All of them where no such Pod is known: proxies run otherwise there.
    pub(crate) fn nodes(&self) -> Vec<String> {
        let (shelf, proxied) = {
            let state = self.lock();
            (state.catalog.shelf(), state.standing.proxied.clone())
        };
        let names = shelf.iter().filter_map(|(key, ..)| match key {
            ResourceKey::Node(name) => Some(name),
            ResourceKey::Service(_) | ResourceKey::Cluster => None,
        });
        names.filter(|name| proxied.is_empty() || proxied.contains(*name)).map(ToString::to_string).collect()
    }

    pub(crate) fn standing(&self) -> Standing {
        self.lock().standing.clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.lock().standing.ready
    }

    /// Tells of new revisions of the catalog.
    pub(crate) fn watch_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells of every batch that was taken in.
    pub(crate) fn watch_views(&self) -> watch::Receiver<u64> {
        self.views.subscribe()
    }
}
