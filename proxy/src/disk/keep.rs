//! The task that saves: at most once a second, at most a twentieth of a core, and once more at the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sheave_model::Snapshot;
use tokio::sync::watch;

use super::{SharedIdentity, save};
use crate::metrics::Metrics;
use crate::supervise::Shutdown;

/// Shortest time from one save to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a save is at least this many times as long as the save took.
const PAUSE_FACTOR: u32 = 20;
/// A file that nothing changed in is written anew after this time, so that its age says when this node was last in touch.
const REFRESH: Duration = Duration::from_secs(600);

/// What the task needs.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) path: PathBuf,
    pub(crate) identity: SharedIdentity,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Nothing is saved before a controller has confirmed everything: until then the file is the better one.
    pub(crate) complete: watch::Receiver<bool>,
    pub(crate) confirmed: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

/// Saves what changes until everything stops.
pub(crate) async fn keep(mut keeper: Keeper) {
    let shutdown = keeper.shutdown.clone();
    let mut complete = keeper.complete.clone();
    tokio::select! {
        known = complete.wait_for(|complete| *complete) => if known.is_err() { return },
        _ = shutdown.stopped() => return,
    }
    let mut dirty = true;
    loop {
        let pause = if dirty { keeper.save_now().await } else { Duration::ZERO };
        dirty = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            _ = shutdown.stopped() => break,
        };
        tokio::select! {
            changed = keeper.snapshots.changed() => match changed {
                Ok(()) => dirty = true,
                Err(_) => break,
            },
            () = tokio::time::sleep(REFRESH) => dirty = true,
            _ = shutdown.stopped() => break,
        }
    }
    if dirty || keeper.snapshots.has_changed().unwrap_or(false) {
        keeper.save_now().await;
    }
}

impl Keeper {
    /// Saves, and returns how long to wait before the next time.
    async fn save_now(&mut self) -> Duration {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let (path, identity, confirmed) = (self.path.clone(), self.identity.clone(), (self.confirmed)());
        let started = Instant::now();
        let saved = tokio::task::spawn_blocking(move || save(&path, &snapshot, &identity, confirmed)).await;
        let error = match saved {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            self.metrics.disk_errors.inc();
            tracing::warn!(file = %self.path.display(), error, "the snapshot can't be saved; is the disk full?");
        }
        INTERVAL.max(started.elapsed() * PAUSE_FACTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Identity, load};
    use crate::store::tests::{delta, service};
    use crate::supervise::Stop;
    use sheave_model::Store;

    #[tokio::test]
    async fn nothing_is_saved_before_it_is_complete_and_the_last_state_is_saved_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        let identity = Arc::new(Identity { node: "n1".into(), boot_id: "b".into(), netns_cookie: 1 });
        let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
        let complete = watch::Sender::new(false);
        let keeper = Keeper {
            path: path.clone(),
            identity: identity.clone(),
            snapshots: snapshots.subscribe(),
            complete: complete.subscribe(),
            confirmed: Arc::new(SystemTime::now),
            metrics: Metrics::new().unwrap(),
            shutdown: Shutdown::new(),
        };
        let shutdown = keeper.shutdown.clone();
        let task = tokio::spawn(keep(keeper));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!path.exists());

        complete.send_replace(true);
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut store = Store::default();
        store.apply(delta(vec![service("a", "10.0.0.1")]));
        snapshots.send_replace(Arc::new(store.snapshot().clone()));
        shutdown.stop(Stop::Asked);
        task.await.unwrap();
        assert_eq!(load(&path, &identity).unwrap().delta, store.snapshot().to_delta());
    }
}
