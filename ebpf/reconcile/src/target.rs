//! What the maps hold of one target.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

use sheave_abi::FrontendKey;

use crate::TargetKey;

/// A set of slots: `0..count` of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Base {
    pub(crate) generation: u32,
    pub(crate) count: u32,
}

impl Base {
    pub(crate) fn holds(&self, (generation, index): (u32, u32)) -> bool {
        generation == self.generation && index < self.count
    }
}

/// A row of `slots`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The backend's id.
    pub(crate) backend: u32,
    /// When it may be deleted; None while a frontend leads to it, or should.
    pub(crate) retire: Option<Instant>,
}

/// A row of `backends`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    /// Where it is.
    pub(crate) socket: SocketAddr,
    /// Whether its row says that it is leaving.
    pub(crate) leaving: bool,
    /// How many rows of `slots` name it.
    pub(crate) slots: u32,
    /// When it may be deleted, if no slot names it.
    pub(crate) retire: Option<Instant>,
}

/// A target: rows that are in the maps, and frontends that lead or should lead to it.
///
/// Changed only by `Realized::note`, after the map was changed, but for `base`, `wanted`, `standing` and `retire`.
#[derive(Debug, Default)]
pub(crate) struct Target {
    /// Whose it is; None for one found in the maps that no Service has claimed yet.
    pub(crate) key: Option<TargetKey>,
    /// Whether its own row is there.
    pub(crate) known: bool,
    /// The newest set whose rows are all there. Frontends are pointed at it.
    pub(crate) base: Base,
    /// By generation and index.
    pub(crate) slots: BTreeMap<(u32, u32), Slot>,
    /// By id.
    pub(crate) members: BTreeMap<u32, Member>,
    /// Ids of `members`.
    pub(crate) ids: BTreeMap<SocketAddr, u32>,
    /// Members that UDP sockets may go on using, in a slot or not (an endpoint that ends but still serves).
    pub(crate) standing: BTreeSet<u32>,
    /// Frontends whose rows name it.
    pub(crate) frontends: BTreeSet<FrontendKey>,
    /// Frontends whose rows should.
    pub(crate) wanted: BTreeSet<FrontendKey>,
}

impl Target {
    pub(crate) fn new(key: TargetKey) -> Self {
        Self { key: Some(key), ..Self::default() }
    }

    /// The backends in `base`, by slot; None where a row is missing or names a backend that isn't there.
    pub(crate) fn current(&self) -> Vec<Option<u32>> {
        let of = |index| self.slots.get(&(self.base.generation, index)).map(|slot| slot.backend);
        (0..self.base.count).map(|index| of(index).filter(|id| self.members.contains_key(id))).collect()
    }

    /// A generation that no row has.
    pub(crate) fn fresh_generation(&self) -> u32 {
        let mut generation = self.base.generation;
        loop {
            generation = generation.wrapping_add(1);
            if self.slots.range((generation, 0)..=(generation, u32::MAX)).next().is_none() {
                return generation;
            }
        }
    }

    /// Whether nothing of it is left and nobody wants it.
    pub(crate) fn is_over(&self) -> bool {
        self.wanted.is_empty() && self.frontends.is_empty() && self.slots.is_empty() && self.members.is_empty()
    }
}
