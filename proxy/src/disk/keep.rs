//! The task that saves: at most once a second, at most a twentieth of a core, and once more at the end.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use imbl::OrdMap;
use sheave_model::{ClusterFacts, ContentHash, NodeFacts, ServiceKey, ServiceState, Snapshot};
use tokio::sync::watch;

use super::{SharedIdentity, save};
use crate::metrics::Metrics;
use crate::supervise::Shutdown;

/// Shortest time from one save to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a save is at least this many times as long as the time of a core that it took; how long it waited for one
/// doesn't count, or a busy node would hardly ever save.
const PAUSE_FACTOR: u32 = 20;
/// A file that nothing changed in is written anew after this time, so that its age says when this node was last in touch.
const REFRESH: Duration = Duration::from_secs(600);

/// A save that failed is tried again after this time, whether or not anything changes: somebody may have made room on the disk.
pub(crate) const RETRY: Duration = Duration::from_secs(10);
/// How long the last save may take, once everything stops: enough for a slow disk, and half of what a pod gets before it is
/// killed (terminationGracePeriodSeconds in manifests/base/proxy.yaml).
pub(crate) const LAST_SAVE: Duration = Duration::from_secs(5);

/// How soon a save has to be done.
#[derive(Debug)]
enum Haste {
    /// Behind whatever else wants the core: encoding 10,000 endpoints must not hold up the change that follows. Given up
    /// when this turns true.
    Low(Arc<AtomicBool>),
    /// Now, since the program ends.
    Normal,
}

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
    let mut saved: Option<Content> = None;
    let mut revision = None;
    let mut tried = tokio::time::Instant::now();
    loop {
        let snapshot = keeper.snapshots.borrow_and_update().clone();
        let content = Content::of(&snapshot);
        // A heartbeat raises the revision and changes nothing else.
        let due = tried.elapsed() >= REFRESH || saved.as_ref().is_none_or(|saved| !saved.is(&content));
        let mut pause = Duration::ZERO;
        if due {
            let (written, wait) = keeper.save_behind(snapshot.clone()).await;
            (tried, pause) = (tokio::time::Instant::now(), wait);
            saved = written.then_some(content);
            revision = written.then_some(snapshot.revision);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.stopped() => break,
        }
        let again = tried + if saved.is_some() { REFRESH } else { RETRY };
        tokio::select! {
            changed = keeper.snapshots.changed() => if changed.is_err() { break },
            () = tokio::time::sleep_until(again) => {}
            _ = shutdown.stopped() => break,
        }
    }
    let last = keeper.snapshots.borrow_and_update().clone();
    if revision != Some(last.revision) {
        keeper.save_now(last, Haste::Normal).await;
    }
}

/// What a file holds of a snapshot, but for its view and age. Shares what the snapshot shares.
struct Content {
    services: OrdMap<ServiceKey, Arc<ServiceState>>,
    node: Option<(ContentHash, Arc<NodeFacts>)>,
    cluster: Option<(ContentHash, Arc<ClusterFacts>)>,
}

impl Content {
    fn of(snapshot: &Snapshot) -> Self {
        Self { services: snapshot.services.clone(), node: snapshot.node.clone(), cluster: snapshot.cluster.clone() }
    }

    /// Whether it is the very same. Looks at pointers only: what was replaced by its like is saved once too often.
    fn is(&self, other: &Self) -> bool {
        self.services.ptr_eq(&other.services)
            && same(self.node.as_ref(), other.node.as_ref())
            && same(self.cluster.as_ref(), other.cluster.as_ref())
    }
}

fn same<T>(one: Option<&(ContentHash, Arc<T>)>, other: Option<&(ContentHash, Arc<T>)>) -> bool {
    match (one, other) {
        (Some((_, one)), Some((_, other))) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl Keeper {
    /// Saves while nothing else wants the core. When everything stops, what is under way is given up: the last save is to
    /// come, and must not wait for a thread that stands back.
    async fn save_behind(&self, snapshot: Arc<Snapshot>) -> (bool, Duration) {
        let given_up = Arc::new(AtomicBool::new(false));
        let mut save = pin!(self.save_now(snapshot, Haste::Low(given_up.clone())));
        tokio::select! {
            done = &mut save => done,
            _ = self.shutdown.stopped() => {
                given_up.store(true, Ordering::Relaxed);
                // Awaited all the same, since both write the same file.
                save.await
            }
        }
    }

    /// Saves; returns whether it could, and how long to wait before the next time.
    async fn save_now(&self, snapshot: Arc<Snapshot>, haste: Haste) -> (bool, Duration) {
        let (path, identity, confirmed) = (self.path.clone(), self.identity.clone(), (self.confirmed)());
        let (low, given_up) = match haste {
            Haste::Low(given_up) => (true, given_up),
            Haste::Normal => (false, Arc::default()),
        };
        let stop = given_up.clone();
        let work = move || {
            if low {
                crate::sys::lower_priority();
            }
            let saved = save(&path, &snapshot, &identity, confirmed, &stop);
            saved.map(|()| crate::sys::thread_cpu_time())
        };
        let wait = move || {
            // A thread of its own, since a thread may not get its priority back.
            let thread = std::thread::Builder::new().name("save".to_owned()).spawn(work)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that saves panicked")))
        };
        let saved = tokio::task::spawn_blocking(wait).await.map_err(io::Error::other).flatten();
        if let Err(error) = &saved
            && !given_up.load(Ordering::Relaxed)
        {
            self.metrics.disk_errors.inc();
            tracing::warn!(file = %self.path.display(), %error, "the snapshot can't be saved; is the disk full?");
        }
        (saved.is_ok(), INTERVAL.max(saved.unwrap_or_default() * PAUSE_FACTOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Identity, load};
    use crate::store::tests::{delta, service};
    use crate::supervise::Stop;
    use sheave_model::{Delta, Store};
    use std::io::{PipeReader, Read};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn keeper(path: &Path, snapshots: &watch::Sender<Arc<Snapshot>>, complete: &watch::Sender<bool>) -> Keeper {
        Keeper {
            path: path.to_owned(),
            identity: Arc::new(Identity { node: "n1".into(), boot_id: "b".into(), netns_cookie: 1 }),
            snapshots: snapshots.subscribe(),
            complete: complete.subscribe(),
            confirmed: Arc::new(SystemTime::now),
            metrics: Metrics::new().unwrap(),
            shutdown: Shutdown::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_do_not_write_the_file_anew_but_changes_and_time_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        let mut store = Store::default();
        store.apply(delta(vec![service("a", "10.0.0.1")]));
        let snapshots = watch::Sender::new(Arc::new(store.snapshot().clone()));
        tokio::spawn(keep(keeper(&path, &snapshots, &watch::Sender::new(true))));
        // Each save makes a new file and renames it, so the file's number changes.
        let number = async || {
            tokio::time::sleep(Duration::from_secs(30)).await;
            std::fs::metadata(&path).unwrap().ino()
        };
        let first = number().await;
        for _ in 0..5 {
            snapshots.send_replace(Arc::new(store.apply(Delta::default()).clone()));
            assert_eq!(number().await, first);
        }
        snapshots.send_replace(Arc::new(store.apply(delta(vec![service("b", "10.0.0.2")])).clone()));
        let second = number().await;
        assert_ne!(second, first);
        tokio::time::sleep(REFRESH).await;
        assert_ne!(number().await, second);
    }

    #[tokio::test(start_paused = true)]
    async fn a_save_that_failed_is_tried_again_though_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not there yet").join("snapshot");
        let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
        let keeper = keeper(&path, &snapshots, &watch::Sender::new(true));
        let metrics = keeper.metrics.clone();
        tokio::spawn(keep(keeper));
        tokio::time::sleep(RETRY * 3).await;
        assert!((2..=3).contains(&metrics.disk_errors.get()), "{}", metrics.disk_errors.get());
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        tokio::time::sleep(RETRY * 2).await;
        assert!(path.exists());
    }

    #[tokio::test]
    async fn nothing_is_saved_before_it_is_complete_and_the_last_state_is_saved_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        let snapshots = watch::Sender::new(Arc::new(Snapshot::default()));
        let complete = watch::Sender::new(false);
        let keeper = keeper(&path, &snapshots, &complete);
        let identity = keeper.identity.clone();
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

    /// Reads so much from a pipe, beside the test.
    fn take(mut pipe: PipeReader, bytes: usize) -> tokio::task::JoinHandle<std::io::Result<PipeReader>> {
        tokio::task::spawn_blocking(move || pipe.read_exact(&mut vec![0; bytes]).map(|()| pipe))
    }

    #[tokio::test]
    async fn the_last_save_does_not_wait_for_the_rest_of_one_that_stands_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapshot");
        // A pipe in the file's place: the first save gets on only as far as something is read.
        let (pipe, end) = std::io::pipe().unwrap();
        let end_of_it = format!("/proc/self/fd/{}", end.as_raw_fd());
        std::os::unix::fs::symlink(end_of_it, path.with_extension("part")).unwrap();
        let mut store = Store::default();
        let services = (0..5_000).map(|n| {
            let mut service = service(&format!("s{n}"), &format!("10.0.{}.{}", n / 250, n % 250 + 1));
            service.ports[0].node_port = None;
            service
        });
        store.apply(delta(services.collect()));
        let snapshots = watch::Sender::new(Arc::new(store.snapshot().clone()));
        let keeper = keeper(&path, &snapshots, &watch::Sender::new(true));
        let (identity, shutdown, metrics) = (keeper.identity.clone(), keeper.shutdown.clone(), keeper.metrics.clone());
        let task = tokio::spawn(keep(keeper));
        let pipe = take(pipe, 1).await.unwrap().unwrap();

        shutdown.stop(Stop::Asked);
        tokio::time::sleep(Duration::from_millis(50)).await;
        // As much as lets it go on with the next resource, and far less than all.
        let _pipe = take(pipe, 100 << 10);
        tokio::time::timeout(LAST_SAVE, task).await.expect("it ends in time").unwrap();
        assert_eq!(load(&path, &identity).unwrap().delta, store.snapshot().to_delta());
        assert_eq!(metrics.disk_errors.get(), 0);
    }
}
