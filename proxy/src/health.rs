//! Whether the data paths keep up with what is received. A proxy that doesn't is taken out of load balancers by
//! /healthz and restarted by /livez, as kube-proxy is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sheave_model::Snapshot;
use tokio::sync::watch;
use tokio::time::Instant;

/// A received update may stay unapplied for this long. kube-proxy's own default is twice its sync period, 60 s.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

/// Since when something received has not been applied, without any progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Freshness(Arc<Mutex<Lag>>);

#[derive(Debug, Default)]
struct Lag {
    received: u64,
    applied: u64,
    since: Option<Instant>,
}

/// What /healthz shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) received: u64,
    pub(crate) applied: u64,
    /// How long nothing of what is missing has been applied.
    pub(crate) lagging: Duration,
}

impl Report {
    /// Whether traffic may be sent here.
    pub(crate) fn healthy(&self) -> bool {
        self.lagging < TIMEOUT
    }
}

impl Freshness {
    fn note(&self, received: u64, applied: u64, complete: bool) {
        let mut lag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = applied > lag.applied;
        (lag.received, lag.applied) = (received, applied);
        lag.since = match lag.since {
            // Data paths may wait for the end of a first series, which no restart would bring.
            _ if applied >= received || !complete => None,
            Some(since) if !progress => Some(since),
            _ => Some(Instant::now()),
        };
    }

    /// As of now.
    pub(crate) fn report(&self) -> Report {
        let lag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lagging = lag.since.map_or(Duration::ZERO, |since| since.elapsed());
        Report { received: lag.received, applied: lag.applied, lagging }
    }

    /// Follows both revisions, and whether a controller's whole state has come, until one of them ends.
    pub(crate) async fn follow(
        self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut applied: watch::Receiver<u64>,
        mut complete: watch::Receiver<bool>,
    ) {
        loop {
            let whole = *complete.borrow_and_update();
            self.note(snapshots.borrow_and_update().revision, *applied.borrow_and_update(), whole);
            let changed = tokio::select! {
                changed = snapshots.changed() => changed,
                changed = applied.changed() => changed,
                changed = complete.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_stays_unapplied_past_the_timeout_is_unhealthy_until_it_is_applied() {
        let freshness = Freshness::default();
        freshness.note(1, 0, true);
        tokio::time::advance(TIMEOUT - Duration::from_secs(1)).await;
        freshness.note(2, 0, true);
        assert!(freshness.report().healthy());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!freshness.report().healthy());
        freshness.note(3, 1, true);
        assert!(freshness.report().healthy(), "there was progress");
        tokio::time::advance(TIMEOUT * 2).await;
        freshness.note(3, 3, true);
        assert_eq!(freshness.report(), Report { received: 3, applied: 3, lagging: Duration::ZERO });
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_cut_first_series_brought_is_not_judged_before_the_rest_has_come() {
        let freshness = Freshness::default();
        let (snapshots, applied) = (watch::Sender::new(Arc::default()), watch::Sender::new(0));
        let complete = watch::Sender::new(false);
        tokio::spawn(freshness.clone().follow(snapshots.subscribe(), applied.subscribe(), complete.subscribe()));
        let mut store = sheave_model::Store::default();
        snapshots.send_replace(Arc::new(store.apply(sheave_model::Delta::default()).clone()));
        tokio::time::sleep(TIMEOUT * 2).await;
        assert!(freshness.report().healthy());
        complete.send_replace(true);
        tokio::time::sleep(TIMEOUT / 2).await;
        assert!(freshness.report().healthy());
        tokio::time::sleep(TIMEOUT).await;
        assert!(!freshness.report().healthy());
    }
}
