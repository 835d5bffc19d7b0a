//! What this process is doing, as health checks and /debug show it. Tasks write their part; nobody decides by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Refused resources that are remembered by name; all are counted.
const REFUSED_LIMIT: usize = 256;

/// How far the start has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Checks its flags and its machine.
    #[default]
    Starting,
    /// Another process owns this node; its id, where known.
    Waiting(Option<u32>),
    /// Owns this node.
    Serving,
    /// Was told to stop.
    Stopping,
}

/// Where what is served comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: nothing is known yet.
    #[default]
    Nothing,
    /// The file of this boot and network namespace.
    Disk,
    /// The file of another one: this node's own endpoints are left out.
    StaleDisk,
    /// A controller has sent all of its state.
    Controller,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) phase: Phase,
    pub(crate) source: Source,
    /// The first revision worth serving: the file's, or the first complete one.
    pub(crate) first: Option<u64>,
    /// The controller's endpoint while a stream is up and complete.
    pub(crate) controller: Option<String>,
    /// When a controller last confirmed what is served.
    pub(crate) confirmed: Option<SystemTime>,
    /// The data path chosen and why.
    pub(crate) datapath: Option<(&'static str, String)>,
    /// Resources refused, by name, with the reason.
    pub(crate) refused: BTreeMap<String, String>,
}

impl State {
    /// Time since a controller confirmed what is served. While a stream is up that is the age of the replica's own view,
    /// and at most the time between two of its messages more.
    pub(crate) fn age(&self) -> Option<Duration> {
        Some(SystemTime::now().duration_since(self.confirmed?).unwrap_or_default())
    }

    /// A replica whose view has this age has sent all that it knows.
    pub(crate) fn confirm(&mut self, age: Duration) {
        let now = SystemTime::now();
        let seen = now.checked_sub(age).unwrap_or(UNIX_EPOCH);
        // What a fresher replica has confirmed stays so; what seems to come from the future says that the clock went back.
        self.confirmed = self.confirmed.filter(|before| *before <= now).max(Some(seen));
    }

    /// Why this node can't be relied on yet, given the revision that every data path has; nothing where it can.
    pub(crate) fn not_ready(&self, applied: u64) -> Option<String> {
        match (&self.phase, self.source) {
            (Phase::Starting, _) => Some("starting".to_owned()),
            (Phase::Stopping, _) => Some("stopping".to_owned()),
            (Phase::Waiting(Some(pid)), _) => Some(format!("waiting: process {pid} owns this node")),
            (Phase::Waiting(None), _) => Some("waiting: another process owns this node".to_owned()),
            (Phase::Serving, Source::Nothing) => Some("no controller and no snapshot on disk yet".to_owned()),
            (Phase::Serving, _) if self.datapath.is_none() => Some("data path not started yet".to_owned()),
            (Phase::Serving, _) if self.first.is_some_and(|first| applied < first) => {
                Some("data path has not taken in the first snapshot yet".to_owned())
            }
            (Phase::Serving, _) => None,
        }
    }
}

/// Shared by everyone who reports or shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status(Arc<Mutex<State>>);

impl Status {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy.
    pub(crate) fn get(&self) -> State {
        self.lock().clone()
    }

    /// Changes it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
    }

    /// Remembers why a resource was refused; the oldest by name goes where there are too many.
    pub(crate) fn refused(&self, name: String, reason: String) {
        let mut state = self.lock();
        state.refused.insert(name, reason);
        if state.refused.len() > REFUSED_LIMIT {
            state.refused.pop_first();
        }
    }

    /// Forgets a refusal, because the resource came again and was good, or is gone.
    pub(crate) fn accepted<'a>(&self, names: impl Iterator<Item = &'a sheave_model::ResourceKey>) {
        let mut state = self.lock();
        if !state.refused.is_empty() {
            for name in names {
                state.refused.remove(&name.to_string());
            }
        }
    }
}

/// Nanoseconds since 1970 by this node's clock.
pub(crate) fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_the_lock_a_snapshot_and_a_data_path() {
        let status = Status::default();
        let reason = || status.get().not_ready(3).unwrap_or_default();
        assert_eq!(reason(), "starting");
        status.update(|s| s.phase = Phase::Waiting(Some(7)));
        assert!(reason().contains("process 7"));
        status.update(|s| s.phase = Phase::Serving);
        assert!(reason().contains("no snapshot"));
        status.update(|s| s.source = Source::StaleDisk);
        assert!(reason().contains("data path"));
        status.update(|s| s.datapath = Some(("userspace", String::new())));
        status.update(|s| s.first = Some(4));
        assert!(reason().contains("first snapshot"));
        status.update(|s| s.first = Some(3));
        assert_eq!(reason(), "");
    }

    #[test]
    fn the_age_is_that_of_the_freshest_view() {
        let mut state = State { controller: Some("unix:/x".to_owned()), ..State::default() };
        assert_eq!(state.age(), None);
        let minutes = |state: &State| state.age().unwrap().as_secs() / 60;
        for (age, expected) in [(120, 120), (5, 5), (60, 5), (0, 0)] {
            state.confirm(Duration::from_secs(age * 60));
            assert_eq!(minutes(&state), expected);
        }
        state.confirmed = Some(SystemTime::now() + Duration::from_secs(3600));
        state.confirm(Duration::from_secs(600));
        assert_eq!(minutes(&state), 10, "the clock went back");
    }

    #[test]
    fn refusals_are_bounded_and_forgotten() {
        let status = Status::default();
        for n in 0..REFUSED_LIMIT + 9 {
            status.refused(format!("{n:05}"), "why".to_owned());
        }
        assert_eq!(status.get().refused.len(), REFUSED_LIMIT);
        status.refused("cluster".to_owned(), "why".to_owned());
        status.accepted([sheave_model::ResourceKey::Cluster].iter());
        assert!(!status.get().refused.contains_key("cluster"));
    }
}
