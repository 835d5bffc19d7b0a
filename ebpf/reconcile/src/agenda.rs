//! What is to be done later, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use sheave_abi::FrontendKey;

/// How long a row that no frontend leads to any more is left standing: far longer than a socket hook runs, so no program
/// that read the old frontend row misses what it names.
pub const GRACE: Duration = Duration::from_secs(1);

/// First wait before a failed target is tried again; doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(64);

/// Something to do later. At most one of each kind waits for each target and frontend, which bounds the agenda.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Task {
    /// Write a target's rows again.
    Settle(u32),
    /// Write or delete a frontend's row again, where it has no target.
    Frontend(FrontendKey),
    /// Delete a target's rows whose grace is over.
    Sweep(u32),
}

/// Tasks by time.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    at: BTreeMap<Task, Instant>,
    order: BTreeSet<(Instant, Task)>,
    failures: BTreeMap<Task, u32>,
}

impl Agenda {
    /// Puts a task at a time, in place of the time it had.
    pub(crate) fn set(&mut self, task: Task, at: Instant) {
        if let Some(old) = self.at.insert(task, at) {
            self.order.remove(&(old, task));
        }
        self.order.insert((at, task));
    }

    /// Takes a task off: there is nothing left to do, or to fail.
    pub(crate) fn clear(&mut self, task: Task) {
        self.failures.remove(&task);
        self.take(task);
    }

    fn take(&mut self, task: Task) {
        if let Some(old) = self.at.remove(&task) {
            self.order.remove(&(old, task));
        }
    }

    /// The time of the next task.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes the next task whose time has come.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Task> {
        let &(at, task) = self.order.first()?;
        if at > now {
            return None;
        }
        self.take(task);
        Some(task)
    }

    /// A task failed: it comes again, later each time. Returns how often it has failed in a row.
    pub(crate) fn failed(&mut self, task: Task, now: Instant) -> u32 {
        let failures = self.failures.entry(task).or_default();
        *failures += 1;
        let count = *failures;
        let wait = FIRST_WAIT.saturating_mul(1 << (count - 1).min(16)).min(LONGEST_WAIT);
        self.set(task, now + wait);
        count
    }

    /// How many tasks are waiting to be tried again after fewer than `attempts` failures in a row.
    pub(crate) fn failing(&self, attempts: u32) -> usize {
        self.failures.values().filter(|failures| **failures < attempts).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_task_waits_longer_each_time_and_no_longer_than_the_longest() {
        let mut agenda = Agenda::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            agenda.failed(Task::Settle(1), now);
            let next = agenda.next().unwrap();
            assert_eq!(agenda.pop(next - Duration::from_millis(1)), None);
            assert_eq!(agenda.pop(next), Some(Task::Settle(1)));
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        agenda.clear(Task::Settle(1));
        agenda.failed(Task::Settle(1), now);
        assert_eq!(agenda.next(), Some(now + FIRST_WAIT));
    }

    #[test]
    fn a_task_waits_once() {
        let mut agenda = Agenda::default();
        let now = Instant::now();
        agenda.set(Task::Sweep(1), now + GRACE);
        agenda.set(Task::Sweep(1), now);
        assert_eq!(agenda.pop(now), Some(Task::Sweep(1)));
        assert_eq!(agenda.next(), None);
    }
}
