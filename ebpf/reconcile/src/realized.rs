//! What the maps hold, kept in step with every operation that succeeds.

use std::collections::{BTreeMap, BTreeSet};

use sheave_abi::{BACKEND_LEAVING, FrontendKey, FrontendRow, SlotKey};

use crate::MapOp;
use crate::key::socket;
use crate::target::{Base, Member, Slot, Target};

/// Hands out numbers from 1 on; one comes again only after all others have been used and its row is gone.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    last: u32,
    used: BTreeSet<u32>,
}

impl Ids {
    pub(crate) fn next(&mut self) -> u32 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.used.contains(&self.last) {
                return self.last;
            }
        }
    }

    pub(crate) fn take(&mut self, id: u32) {
        self.used.insert(id);
        self.last = self.last.max(id);
    }

    pub(crate) fn give_back(&mut self, id: u32) {
        self.used.remove(&id);
    }

    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }
}

/// All rows.
#[derive(Debug, Default)]
pub(crate) struct Realized {
    pub(crate) targets: BTreeMap<u32, Target>,
    pub(crate) frontends: BTreeMap<FrontendKey, FrontendRow>,
    pub(crate) target_ids: Ids,
    pub(crate) backend_ids: Ids,
    /// Targets that a frontend's row has ceased to name, whose rows may be unused now.
    pub(crate) loosened: BTreeSet<u32>,
}

impl Realized {
    /// Records an operation that succeeded.
    pub(crate) fn note(&mut self, op: &MapOp) {
        match *op {
            MapOp::PutTarget { id, .. } => self.target(id).known = true,
            MapOp::PutBackend { id, row } => {
                self.backend_ids.take(id);
                let leaving = row.flags & BACKEND_LEAVING != 0;
                let socket = socket(&row.address, row.port);
                let target = self.target(row.target);
                target.ids.insert(socket, id);
                let fresh = Member { socket, leaving, slots: 0, retire: None };
                target.members.entry(id).or_insert(fresh).leaving = leaving;
            }
            MapOp::PutSlot { key, row } => {
                let target = self.target(key.target);
                let slot = Slot { backend: row.backend, retire: None };
                let old = target.slots.insert((key.generation, key.index), slot);
                count(target, row.backend, 1);
                if let Some(old) = old {
                    count(target, old.backend, -1);
                }
            }
            MapOp::PutFrontend { key, row } => {
                self.unlink(&key);
                self.frontends.insert(key, row);
                if row.target != 0 {
                    self.target(row.target).frontends.insert(key);
                }
            }
            MapOp::DeleteFrontend { key } => {
                self.unlink(&key);
                self.frontends.remove(&key);
            }
            MapOp::DeleteSlot { key } => self.forget_slot(&key),
            MapOp::DeleteBackend { id, target } => {
                self.backend_ids.give_back(id);
                if let Some(target) = self.targets.get_mut(&target) {
                    forget_member(target, id);
                }
            }
            MapOp::DeleteTarget { id } => {
                self.target_ids.give_back(id);
                self.targets.remove(&id);
            }
        }
    }

    /// A target by id, made where it is not known yet.
    pub(crate) fn target(&mut self, id: u32) -> &mut Target {
        self.target_ids.take(id);
        self.targets.entry(id).or_default()
    }

    /// The sets of a target's slots that frontends lead to.
    pub(crate) fn served(&self, target: &Target) -> BTreeSet<Base> {
        let rows = target.frontends.iter().filter_map(|key| self.frontends.get(key));
        rows.map(|row| Base { generation: row.generation, count: row.count }).collect()
    }

    fn unlink(&mut self, key: &FrontendKey) {
        let Some(row) = self.frontends.get(key) else { return };
        if let Some(target) = self.targets.get_mut(&row.target) {
            target.frontends.remove(key);
            self.loosened.insert(row.target);
        }
    }

    fn forget_slot(&mut self, key: &SlotKey) {
        let Some(target) = self.targets.get_mut(&key.target) else { return };
        if let Some(old) = target.slots.remove(&(key.generation, key.index)) {
            count(target, old.backend, -1);
        }
    }
}

fn forget_member(target: &mut Target, id: u32) {
    target.standing.remove(&id);
    if let Some(member) = target.members.remove(&id)
        && target.ids.get(&member.socket) == Some(&id)
    {
        target.ids.remove(&member.socket);
    }
}

fn count(target: &mut Target, backend: u32, change: i32) {
    if let Some(member) = target.members.get_mut(&backend) {
        member.slots = member.slots.saturating_add_signed(change);
    }
}
