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
    fn note(&self, received: u64, applied: u64) {
        let mut lag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let progress = applied > lag.applied;
        (lag.received, lag.applied) = (received, applied);
        lag.since = match lag.since {
            _ if applied >= received => None,
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

    /// Follows both revisions until one of them ends.
    pub(crate) async fn follow(self, mut snapshots: watch::Receiver<Arc<Snapshot>>, mut applied: watch::Receiver<u64>) {
        loop {
            self.note(snapshots.borrow_and_update().revision, *applied.borrow_and_update());
            let changed = tokio::select! {
                changed = snapshots.changed() => changed,
                changed = applied.changed() => changed,
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
        freshness.note(1, 0);
        tokio::time::advance(TIMEOUT - Duration::from_secs(1)).await;
        freshness.note(2, 0);
        assert!(freshness.report().healthy());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(!freshness.report().healthy());
        freshness.note(3, 1);
        assert!(freshness.report().healthy(), "there was progress");
        tokio::time::advance(TIMEOUT * 2).await;
        freshness.note(3, 3);
        assert_eq!(freshness.report(), Report { received: 3, applied: 3, lagging: Duration::ZERO });
    }
}
