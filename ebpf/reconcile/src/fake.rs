//! Maps that stand in for the kernel's in tests, and check the order of what is done to them.

use std::collections::BTreeMap;
use std::time::Instant;

use sheave_abi::{BackendRow, FRONTEND_LISTENER, FrontendKey, FrontendRow, SlotKey, SlotRow, TargetRow};

use crate::{GRACE, MapError, MapOp, Maps, Restored};

/// Maps in memory. They panic when an operation leaves a frontend that names a missing slot or backend, or deletes a slot or
/// backend that a frontend led to less than [`GRACE`] ago.
#[derive(Clone, Debug)]
pub struct Fake {
    /// The time, for the check of the grace; whoever passes `now` to the reconciler sets it.
    pub now: Instant,
    /// `targets`.
    pub targets: BTreeMap<u32, TargetRow>,
    /// `frontends`.
    pub frontends: BTreeMap<FrontendKey, FrontendRow>,
    /// `slots`.
    pub slots: BTreeMap<SlotKey, SlotRow>,
    /// `backends`.
    pub backends: BTreeMap<u32, BackendRow>,
    /// Rows that `slots` has room for.
    pub slots_capacity: usize,
    /// Rows that `frontends` has room for.
    pub frontends_capacity: usize,
    /// Every operation, in order.
    pub log: Vec<MapOp>,
    used_slots: BTreeMap<SlotKey, Instant>,
    used_backends: BTreeMap<u32, Instant>,
}

impl Fake {
    /// Empty maps.
    pub fn new(now: Instant) -> Self {
        Self {
            now,
            targets: BTreeMap::new(),
            frontends: BTreeMap::new(),
            slots: BTreeMap::new(),
            backends: BTreeMap::new(),
            slots_capacity: usize::MAX,
            frontends_capacity: usize::MAX,
            log: Vec::new(),
            used_slots: BTreeMap::new(),
            used_backends: BTreeMap::new(),
        }
    }

    /// What a restarting proxy finds.
    pub fn restored(&self) -> Restored {
        Restored {
            targets: self.targets.iter().map(|(k, v)| (*k, *v)).collect(),
            frontends: self.frontends.iter().map(|(k, v)| (*k, *v)).collect(),
            slots: self.slots.iter().map(|(k, v)| (*k, *v)).collect(),
            backends: self.backends.iter().map(|(k, v)| (*k, *v)).collect(),
        }
    }

    /// The backends that a frontend leads to. None where it isn't translated.
    pub fn backends_of(&self, key: &FrontendKey) -> Option<Vec<BackendRow>> {
        let row = self.frontends.get(key).filter(|row| row.flags & FRONTEND_LISTENER == 0)?;
        let slot = |index| SlotKey { target: row.target, generation: row.generation, index };
        Some((0..row.count).map(|index| self.backends[&self.slots[&slot(index)].backend]).collect())
    }

    /// Whether nothing is left in any map.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.frontends.is_empty() && self.slots.is_empty() && self.backends.is_empty()
    }

    fn check(&mut self, op: &MapOp) {
        for (key, row) in &self.frontends {
            if row.flags & FRONTEND_LISTENER != 0 {
                continue;
            }
            assert!(self.targets.contains_key(&row.target), "{key:?} names a missing target after {op:?}");
            for index in 0..row.count {
                let slot = SlotKey { target: row.target, generation: row.generation, index };
                let Some(SlotRow { backend }) = self.slots.get(&slot) else {
                    panic!("{key:?} names the missing {slot:?} after {op:?}");
                };
                let Some(row) = self.backends.get(backend) else {
                    panic!("{slot:?} names the missing backend {backend} after {op:?}");
                };
                assert_eq!(row.target, slot.target, "{slot:?} names a stranger after {op:?}");
                self.used_slots.insert(slot, self.now);
                self.used_backends.insert(*backend, self.now);
            }
        }
    }

    fn check_grace(&self, op: &MapOp) {
        let last = match op {
            MapOp::DeleteSlot { key } => self.used_slots.get(key),
            MapOp::DeleteBackend { id, .. } => self.used_backends.get(id),
            _ => None,
        };
        if let Some(last) = last {
            let ago = self.now.duration_since(*last);
            assert!(ago >= GRACE, "{op:?} only {ago:?} after a frontend led there");
        }
    }
}

impl Maps for Fake {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        self.check_grace(op);
        match *op {
            MapOp::PutTarget { id, row } => drop(self.targets.insert(id, row)),
            MapOp::PutBackend { id, row } => drop(self.backends.insert(id, row)),
            MapOp::PutSlot { key, row } => {
                if self.slots.len() >= self.slots_capacity && !self.slots.contains_key(&key) {
                    return Err(MapError::Full { map: "slots", capacity: self.slots_capacity as u32 });
                }
                self.slots.insert(key, row);
            }
            MapOp::PutFrontend { key, row } => {
                if self.frontends.len() >= self.frontends_capacity && !self.frontends.contains_key(&key) {
                    return Err(MapError::Full { map: "frontends", capacity: self.frontends_capacity as u32 });
                }
                self.frontends.insert(key, row);
            }
            MapOp::DeleteFrontend { key } => drop(self.frontends.remove(&key)),
            MapOp::DeleteSlot { key } => {
                self.slots.remove(&key);
                self.used_slots.remove(&key);
            }
            MapOp::DeleteBackend { id, .. } => {
                self.backends.remove(&id);
                self.used_backends.remove(&id);
            }
            MapOp::DeleteTarget { id } => drop(self.targets.remove(&id)),
        }
        self.check(op);
        self.log.push(*op);
        Ok(())
    }
}

/// Maps that fail as often as they are told to.
#[derive(Debug)]
pub struct Faulty {
    /// Where the operations that don't fail go.
    pub inner: Fake,
    /// How many of 256 operations fail.
    pub rate: u8,
    seed: u64,
}

impl Faulty {
    /// Wraps maps; the same seed fails the same operations.
    pub fn new(inner: Fake, rate: u8, seed: u64) -> Self {
        Self { inner, rate, seed }
    }
}

impl Maps for Faulty {
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
        // A linear congruential generator (Knuth's MMIX constants); the high bits are the good ones.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if (self.seed >> 56) as u8 >= self.rate {
            return self.inner.apply(op);
        }
        Err(MapError::Os { map: "any", errno: 12 })
    }
}
