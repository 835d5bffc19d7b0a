//! The [`Reconciler`]: takes snapshots, has the maps written, remembers what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use sheave_abi::{FRONTEND_LISTENER, FrontendKey, FrontendRow};
use sheave_model::{Frontend, ServiceKey, Snapshot};

use crate::agenda::{Agenda, Task};
use crate::diff::{self, Lead};
use crate::key::{frontend_flags, frontend_key};
use crate::plan::{self, Desired};
use crate::realized::Realized;
use crate::target::Target;
use crate::{Failure, MapError, MapOp, Maps, Report, Restored, TargetKey, Usage};

/// Keeps the maps in step with snapshots. One task owns it, together with the maps.
#[derive(Debug, Default)]
pub struct Reconciler {
    realized: Realized,
    /// The snapshot that the maps follow; empty before the first.
    applied: Snapshot,
    /// Whether anything was found at the start that no snapshot has been compared with yet.
    restored: bool,
    /// Ids of targets by key.
    ids: BTreeMap<TargetKey, u32>,
    /// Ids of targets by Service.
    of_service: BTreeMap<ServiceKey, BTreeSet<u32>>,
    /// Restored targets by what their rows say of whose they are; never more than were found at the start.
    identities: BTreeMap<[u8; 16], u32>,
    /// Where each frontend should lead: a target, or (None) the listeners.
    wanted: BTreeMap<FrontendKey, Option<u32>>,
    agenda: Agenda,
    /// When an update left rows whose grace hasn't begun.
    updated: Option<Instant>,
}

/// Why a target's rows are not what they should be.
enum Unsettled {
    /// The set could not be written; frontends lead to an older one.
    Set(MapError),
    /// The set is there, but not every frontend leads to it, or a mark on a backend that left is missing.
    Rest(MapError),
}

impl Reconciler {
    /// Starts from what is in the maps; writes nothing.
    pub fn new(restored: &Restored) -> Self {
        let (realized, identities) = crate::restore::restore(restored);
        Self { realized, identities, restored: true, ..Self::default() }
    }

    /// Makes the maps follow a snapshot. The first one must be complete: what it doesn't have is removed.
    ///
    /// Costs what differs from the one before. What fails is in the report and tried again by [`Self::handle_timeout`].
    pub fn update(&mut self, next: &Snapshot, now: Instant, maps: &mut impl Maps) -> Report {
        let changes = diff::changes(&self.applied, next);
        self.applied = next.clone();
        let mut targets = BTreeSet::new();
        let mut frontends = BTreeSet::new();
        for service in &changes.services {
            targets.extend(self.of_service.get(service).into_iter().flatten());
        }
        for frontend in &changes.frontends {
            self.point(frontend, &mut targets, &mut frontends);
        }
        if std::mem::take(&mut self.restored) {
            targets.extend(self.realized.targets.keys());
            frontends.extend(self.realized.frontends.keys());
        }
        let mut report = Report::default();
        for &id in &targets {
            self.settle(id, now, maps, &mut report);
        }
        for key in &frontends {
            self.settle_frontend(key, now, maps, &mut report);
        }
        self.realized.loosened.append(&mut targets);
        self.updated = Some(now);
        report
    }

    /// When [`Self::handle_timeout`] wants to be called next: at once after an update. Changes with every call that takes
    /// `&mut self`.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.updated.into_iter().chain(self.agenda.next()).min()
    }

    /// Sweeps rows whose grace is over and tries again what failed, as far as their time has come. The grace of rows that an
    /// update left unused begins here, since the update itself may have taken long.
    pub fn handle_timeout(&mut self, now: Instant, maps: &mut impl Maps) -> Report {
        let mut report = Report::default();
        self.updated = None;
        // First: a sweep that is due must not take rows that the update has brought into use again.
        self.retire(BTreeSet::new(), now);
        while let Some(task) = self.agenda.pop(now) {
            match task {
                Task::Settle(id) => {
                    self.settle(id, now, maps, &mut report);
                    self.retire(BTreeSet::from([id]), now); // at once, as above
                }
                Task::Frontend(key) => self.settle_frontend(&key, now, maps, &mut report),
                Task::Sweep(id) => self.sweep(id, now, maps, &mut report),
            }
        }
        self.retire(BTreeSet::new(), now);
        report
    }

    /// Whose a target is, by the id in the maps. None for one that is only waiting to be swept after a restart.
    pub fn target_of(&self, id: u32) -> Option<&TargetKey> {
        self.realized.targets.get(&id)?.key.as_ref()
    }

    /// Every target that is somebody's, with its id: for reading their counters.
    pub fn targets(&self) -> impl Iterator<Item = (u32, &TargetKey)> {
        self.realized.targets.iter().filter_map(|(id, target)| target.key.as_ref().map(|key| (*id, key)))
    }

    /// How many rows the maps hold.
    pub fn usage(&self) -> Usage {
        Usage {
            targets: self.realized.targets.values().filter(|target| target.known).count(),
            frontends: self.realized.frontends.len(),
            slots: self.realized.targets.values().map(|target| target.slots.len()).sum(),
            backends: self.realized.backend_ids.len(),
        }
    }

    /// How many targets and frontends are not as they should be and have failed fewer than `attempts` times in a row; with
    /// `u32::MAX`, 0 says that all is programmed.
    pub fn failing(&self, attempts: u32) -> usize {
        self.agenda.failing(attempts)
    }

    /// Notes where a frontend should lead from now on, and collects whose rows have to be looked at for it.
    fn point(&mut self, frontend: &Frontend, targets: &mut BTreeSet<u32>, frontends: &mut BTreeSet<FrontendKey>) {
        let key = frontend_key(frontend);
        let want = match diff::lead(&self.applied, frontend) {
            Lead::Nowhere => None,
            Lead::Listener => Some(None),
            Lead::Target(target) => Some(Some(self.claim(&target))),
        };
        let old = match want {
            Some(want) => self.wanted.insert(key, want),
            None => self.wanted.remove(&key),
        };
        if let Some(Some(old)) = old
            && old != want.flatten().unwrap_or(0)
        {
            self.realized.target(old).wanted.remove(&key);
            targets.insert(old);
        }
        match want.flatten() {
            Some(id) => {
                self.realized.target(id).wanted.insert(key);
                self.agenda.clear(Task::Frontend(key));
                targets.insert(id);
            }
            None => {
                frontends.insert(key);
            }
        }
    }

    /// The id of a target: the one it has, the one it had before a restart, or a new one.
    fn claim(&mut self, key: &TargetKey) -> u32 {
        if let Some(&id) = self.ids.get(key) {
            return id;
        }
        // One that was swept unclaimed is still named there.
        let unclaimed = |id: &u32| self.realized.targets.get(id).is_some_and(|target| target.key.is_none());
        let restored = self.identities.remove(&key.identity()).filter(unclaimed);
        let id = restored.unwrap_or_else(|| self.realized.target_ids.next());
        let target = self.realized.target(id);
        if restored.is_some() {
            target.key = Some(key.clone());
        } else {
            *target = Target::new(key.clone());
        }
        self.ids.insert(key.clone(), id);
        self.of_service.entry(key.service.clone()).or_default().insert(id);
        id
    }

    /// Writes a target's rows. Where that fails, frontends that don't lead to its newest set are left to the listeners, so that
    /// they don't go on leading to endpoints that may be gone.
    fn settle(&mut self, id: u32, now: Instant, maps: &mut impl Maps, report: &mut Report) {
        let (error, set) = match self.try_settle(id, maps, report) {
            Ok(()) => return self.agenda.clear(Task::Settle(id)),
            Err(Unsettled::Set(error)) => (error, false),
            Err(Unsettled::Rest(error)) => (error, true),
        };
        let attempts = self.agenda.failed(Task::Settle(id), now);
        let service = self.target_of(id).map(|key| key.service.clone());
        report.failures.push(Failure { service, error, attempts });
        let Some(target) = self.realized.targets.get(&id) else { return };
        let base = target.base;
        for key in target.wanted.iter().copied().collect::<Vec<_>>() {
            let row = self.realized.frontends.get(&key);
            let is_right = set && row == Some(&plan::commit(&key, id, base));
            // An error here is the one reported: the row stays as it was, and all it names stays too.
            if row.is_some_and(|row| row.target != 0) && !is_right && self.leave_to_listener(&key, maps).is_ok() {
                report.writes += 1;
            }
        }
    }

    fn try_settle(&mut self, id: u32, maps: &mut impl Maps, report: &mut Report) -> Result<(), Unsettled> {
        let Realized { targets, backend_ids, .. } = &mut self.realized;
        let Some(target) = targets.get_mut(&id) else { return Ok(()) };
        let desired = match &target.key {
            Some(key) if !target.wanted.is_empty() => Desired::of(&self.applied, key),
            _ => Desired::default(),
        };
        let plan = plan::plan(id, &desired, target, backend_ids);
        let wanted: Vec<_> = target.wanted.iter().copied().collect();
        let base = target.base;
        let before = report.writes;
        if let Err(error) = self.apply_all(&plan.prepare, maps, report) {
            // What can't be taken back either is swept.
            let _ = self.apply_all(&plan.undo(report.writes - before, base), maps, report);
            return Err(Unsettled::Set(error));
        }
        let target = self.realized.target(id);
        target.base = plan.base;
        target.standing = plan.standing;
        // Each frontend by itself: one that there is no room for is no reason to leave another at an older set.
        let mut result = Ok(());
        for key in wanted {
            let row = plan::commit(&key, id, plan.base);
            if self.realized.frontends.get(&key) != Some(&row) {
                result = result.and(self.apply_all(&[MapOp::PutFrontend { key, row }], maps, report));
            }
        }
        result.and_then(|()| self.apply_all(&plan.after, maps, report)).map_err(Unsettled::Rest)
    }

    /// Deletes a frontend's row, or leaves it to the listeners, where it has no target.
    fn settle_frontend(&mut self, key: &FrontendKey, now: Instant, maps: &mut impl Maps, report: &mut Report) {
        let task = Task::Frontend(*key);
        let result = match self.wanted.get(key) {
            Some(Some(_)) => Ok(false), // its target's business
            Some(None) => self.leave_to_listener(key, maps),
            None if self.realized.frontends.contains_key(key) => self.apply(&MapOp::DeleteFrontend { key: *key }, maps),
            None => Ok(false),
        };
        match result {
            Ok(written) => {
                report.writes += usize::from(written);
                self.agenda.clear(task);
            }
            Err(error) => {
                let attempts = self.agenda.failed(task, now);
                report.failures.push(Failure { service: None, error, attempts });
            }
        }
    }

    fn leave_to_listener(&mut self, key: &FrontendKey, maps: &mut impl Maps) -> Result<bool, MapError> {
        let row = FrontendRow { flags: FRONTEND_LISTENER | frontend_flags(key), ..FrontendRow::default() };
        if self.realized.frontends.get(key) == Some(&row) {
            return Ok(false);
        }
        self.apply(&MapOp::PutFrontend { key: *key, row }, maps)
    }

    /// Puts the sweeping of targets on the agenda: of these and of those that lost a frontend.
    fn retire(&mut self, mut targets: BTreeSet<u32>, now: Instant) {
        targets.append(&mut self.realized.loosened);
        for id in targets {
            self.retire_one(id, now);
        }
    }

    fn retire_one(&mut self, id: u32, now: Instant) {
        match self.realized.retire(id, now) {
            Some(at) => self.agenda.set(Task::Sweep(id), at),
            None => self.agenda.clear(Task::Sweep(id)),
        }
    }

    fn sweep(&mut self, id: u32, now: Instant, maps: &mut impl Maps, report: &mut Report) {
        let key = self.target_of(id).cloned();
        let (writes, result) = self.realized.sweep(id, now, maps);
        report.writes += writes;
        if let Err(error) = result {
            let attempts = self.agenda.failed(Task::Sweep(id), now);
            report.failures.push(Failure { service: key.map(|key| key.service), error, attempts });
            return;
        }
        self.agenda.clear(Task::Sweep(id));
        if self.realized.targets.contains_key(&id) {
            self.retire_one(id, now);
        } else {
            self.forget(id, key);
        }
    }

    /// A target's last row is gone.
    fn forget(&mut self, id: u32, key: Option<TargetKey>) {
        self.agenda.clear(Task::Settle(id));
        let Some(key) = key else { return };
        self.ids.remove(&key);
        if let Some(targets) = self.of_service.get_mut(&key.service) {
            targets.remove(&id);
            if targets.is_empty() {
                self.of_service.remove(&key.service);
            }
        }
    }

    fn apply(&mut self, op: &MapOp, maps: &mut impl Maps) -> Result<bool, MapError> {
        maps.apply(op)?;
        self.realized.note(op);
        Ok(true)
    }

    fn apply_all(&mut self, ops: &[MapOp], maps: &mut impl Maps, report: &mut Report) -> Result<(), MapError> {
        for op in ops {
            self.apply(op, maps)?;
            report.writes += 1;
        }
        Ok(())
    }
}
