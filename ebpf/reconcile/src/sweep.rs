//! Deleting what no program can be using any more. Slots before backends, backends before the target.

use std::collections::BTreeSet;
use std::time::Instant;

use sheave_abi::SlotKey;

use crate::realized::Realized;
use crate::target::Base;
use crate::{GRACE, MapError, MapOp, Maps};

impl Realized {
    /// Notes from when on each row of a target is unused. Returns when the first of them may go, which includes the target's
    /// own row.
    ///
    /// Used is what a frontend's row leads to, whether or not it should (its write may have failed), and the newest set.
    pub(crate) fn retire(&mut self, id: u32, now: Instant) -> Option<Instant> {
        let target = self.targets.get(&id)?;
        let mut sets = self.served(target);
        if !target.wanted.is_empty() {
            sets.insert(target.base);
        }
        let target = self.targets.get_mut(&id)?;
        let mut first: Option<Instant> = None;
        let later = |retire: &mut Option<Instant>, used: bool| {
            *retire = if used { None } else { Some(retire.unwrap_or(now + GRACE)) };
            *retire
        };
        let mut used = BTreeSet::new();
        for (place, slot) in &mut target.slots {
            let holds = sets.iter().any(|set: &Base| set.holds(*place));
            first = first.into_iter().chain(later(&mut slot.retire, holds)).min();
            if holds {
                used.insert(slot.backend);
            }
        }
        for (id, member) in &mut target.members {
            let retire = later(&mut member.retire, used.contains(id) || target.standing.contains(id));
            // One that a slot names goes after the slot, whose own time comes.
            first = first.into_iter().chain(retire.filter(|_| member.slots == 0)).min();
        }
        if target.is_over() { Some(now) } else { first }
    }

    /// Deletes those of a target's rows whose time has come. Returns how many went.
    pub(crate) fn sweep(&mut self, id: u32, now: Instant, maps: &mut impl Maps) -> (usize, Result<(), MapError>) {
        let mut count = 0;
        let result = self.sweep_all(id, now, maps, &mut count);
        (count, result)
    }

    fn sweep_all(&mut self, id: u32, now: Instant, maps: &mut impl Maps, count: &mut usize) -> Result<(), MapError> {
        let Some(target) = self.targets.get(&id) else { return Ok(()) };
        let is_due = |retire: Option<Instant>| retire.is_some_and(|at| at <= now);
        let slots: Vec<_> = target.slots.iter().filter(|(_, s)| is_due(s.retire)).map(|(place, _)| *place).collect();
        for (generation, index) in slots {
            let op = MapOp::DeleteSlot { key: SlotKey { target: id, generation, index } };
            maps.apply(&op)?;
            self.note(&op);
            *count += 1;
        }
        let Some(target) = self.targets.get(&id) else { return Ok(()) };
        let due = target.members.iter().filter(|(_, m)| is_due(m.retire) && m.slots == 0).map(|(member, _)| *member);
        for member in due.collect::<Vec<_>>() {
            let op = MapOp::DeleteBackend { id: member, target: id };
            maps.apply(&op)?;
            self.note(&op);
            *count += 1;
        }
        if self.targets.get(&id).is_some_and(|target| target.is_over()) {
            let op = MapOp::DeleteTarget { id };
            maps.apply(&op)?;
            self.note(&op);
            *count += 1;
        }
        Ok(())
    }
}
