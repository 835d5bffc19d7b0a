//! The loop that keeps the kernel's maps in step with snapshots, and reads their counters when somebody scrapes.
//!
//! Which rows there should be and in which order they are written is `sheave-reconcile`'s business; this loop brings
//! snapshots, time and a kernel together. It runs on a thread of its own: filling maps takes a while, and neither the
//! stream nor the health page should wait for it.

use std::sync::Arc;
use std::time::Instant;

use sheave_model::Snapshot;
use sheave_reconcile::{Reconciler, Report};
use tokio::sync::{mpsc, watch};

use super::scrape::{Kernel, Numbers, Scrape};
use crate::metrics::Metrics;
use crate::supervise::Shutdown;

/// Tries after which a revision counts as programmed although some rows could not be written: their frontends are then
/// left to the listeners, which serve them, and are tried again for as long as it takes.
const ATTEMPTS: u32 = 3;

/// What the loop is given.
pub(crate) struct Follow {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether all of a controller's state has come since this process started.
    pub(crate) complete: watch::Receiver<bool>,
    /// Leave the maps as they are until then: they were found pinned and are newer than any file.
    pub(crate) hold: bool,
    /// Hears the revision that the maps have.
    pub(crate) programmed: watch::Sender<u64>,
    pub(crate) scrapes: mpsc::Receiver<Scrape>,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
}

/// The loop's state.
pub(crate) struct Follower<K> {
    kernel: K,
    reconciler: Reconciler,
    follow: Follow,
    /// Revision of the snapshot that was last given to the reconciler.
    written: u64,
    numbers: Numbers,
}

impl<K: Kernel> Follower<K> {
    /// A loop over `kernel`, whose maps hold what `reconciler` says.
    pub(crate) fn new(kernel: K, reconciler: Reconciler, follow: Follow) -> Self {
        let numbers = Numbers::new(follow.metrics.clone());
        Self { kernel, reconciler, follow, written: 0, numbers }
    }

    /// Runs until everything stops. The maps stay as they are then.
    pub(crate) async fn run(mut self) {
        let shutdown = self.follow.shutdown.clone();
        tokio::select! {
            () = self.follow() => {}
            _ = shutdown.stopped() => {}
        }
    }

    async fn follow(&mut self) {
        if self.follow.hold {
            // What was pinned is at least as new as the file that the store started with.
            let file = self.follow.snapshots.borrow_and_update().revision;
            self.follow.programmed.send_replace(file);
        }
        while self.follow.hold {
            let complete = tokio::select! {
                biased;
                complete = self.follow.complete.wait_for(|complete| *complete) => Some(complete.is_ok()),
                () = tokio::task::yield_now(), if self.numbers.are_read() => {
                    self.numbers.read_on(&self.kernel, &self.reconciler);
                    None
                }
                Some(scrape) = self.follow.scrapes.recv(), if !self.numbers.are_read() => {
                    self.numbers.read(&self.kernel, &self.reconciler, scrape);
                    None
                }
            };
            match complete {
                Some(true) => self.follow.hold = false,
                Some(false) => return,
                None => {}
            }
        }
        self.update();
        loop {
            let wake = self.reconciler.poll_timeout();
            let sleep = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into());
            // Snapshots before everything else; a scrape is read a slice at a time whenever nothing else is to be done.
            tokio::select! {
                biased;
                changed = self.follow.snapshots.changed() => match changed {
                    Ok(()) => self.update(),
                    Err(_) => return,
                },
                () = sleep, if wake.is_some() => self.catch_up(),
                () = tokio::task::yield_now(), if self.numbers.are_read() => {
                    self.numbers.read_on(&self.kernel, &self.reconciler);
                }
                Some(scrape) = self.follow.scrapes.recv(), if !self.numbers.are_read() => {
                    self.numbers.read(&self.kernel, &self.reconciler, scrape);
                }
            }
        }
    }

    fn update(&mut self) {
        let snapshot = self.follow.snapshots.borrow_and_update().clone();
        let started = Instant::now();
        let report = self.reconciler.update(&snapshot, started, &mut self.kernel);
        self.written = snapshot.revision;
        tracing::debug!(revision = snapshot.revision, writes = report.writes, took = ?started.elapsed(), "maps written");
        self.take_note(&report);
        // Not left to the loop: snapshots may come in so fast that nothing else has its turn.
        self.catch_up();
    }

    fn catch_up(&mut self) {
        let report = self.reconciler.handle_timeout(Instant::now(), &mut self.kernel);
        self.take_note(&report);
    }

    fn take_note(&self, report: &Report) {
        for failure in &report.failures {
            self.follow.metrics.reconcile_errors.inc();
            let service =
                failure.service.as_ref().map_or_else(|| "a Service that is gone".to_owned(), ToString::to_string);
            // The first time and then ever more rarely: it is tried again for as long as it takes.
            if failure.attempts.is_power_of_two() {
                tracing::warn!(
                    service, error = %failure.error, attempts = failure.attempts,
                    "its rows can't be written into the kernel's maps; the listeners serve it meanwhile, and it is tried again",
                );
            }
        }
        // What failed for an earlier revision counts as well, and a snapshot published meanwhile does not.
        if self.reconciler.failing(ATTEMPTS) == 0 {
            let revision = self.written;
            self.follow.programmed.send_if_modified(|now| std::mem::replace(now, revision) != revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::scrape::Fill;
    use crate::metrics::Path;
    use crate::store::tests::{delta, service};
    use crate::supervise::Stop;
    use sheave_abi::Counter;
    use sheave_model::Store;
    use sheave_reconcile::{Fake, MapError, MapOp, Maps, Usage};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use tokio::sync::oneshot;

    /// A fake kernel that the test can look into while the loop owns it.
    #[derive(Clone)]
    struct Shared(Arc<Mutex<Fake>>, Meanwhile, Arc<Watched>);

    /// How long reading a target's counter takes in microseconds, and how many were read.
    #[derive(Default)]
    struct Watched {
        takes: AtomicU64,
        read: AtomicU64,
    }

    /// Something that happens at each write.
    type Meanwhile = Arc<Mutex<Option<Box<dyn FnMut() + Send>>>>;

    impl Maps for Shared {
        fn apply(&mut self, op: &MapOp) -> Result<(), MapError> {
            if let Some(meanwhile) = self.1.lock().unwrap().as_mut() {
                meanwhile();
            }
            let mut fake = self.0.lock().unwrap();
            fake.now = Instant::now();
            fake.apply(op)
        }
    }

    impl Kernel for Shared {
        fn counters(&self) -> anyhow::Result<Vec<(Counter, u64)>> {
            Ok(vec![(Counter::TcpV4, 5), (Counter::Refused, 2)])
        }

        fn connections(&self, target: u32) -> anyhow::Result<u64> {
            std::thread::sleep(Duration::from_micros(self.2.takes.load(Ordering::Relaxed)));
            self.2.read.fetch_add(1, Ordering::Relaxed);
            Ok(if self.0.lock().unwrap().targets.contains_key(&target) { 3 } else { 0 })
        }

        fn fill(&self, usage: &Usage) -> Vec<Fill> {
            vec![Fill { map: "frontends", entries: usage.frontends as u64, capacity: 10 }]
        }
    }

    struct World {
        fake: Shared,
        store: Store,
        snapshots: watch::Sender<Arc<Snapshot>>,
        complete: watch::Sender<bool>,
        programmed: watch::Receiver<u64>,
        scrapes: mpsc::Sender<Scrape>,
        metrics: Metrics,
        shutdown: Shutdown,
    }

    impl World {
        fn start(fake: Fake, hold: bool) -> Self {
            let reconciler = Reconciler::new(&fake.restored());
            let fake = Shared(Arc::new(Mutex::new(fake)), Arc::default(), Arc::default());
            let (snapshots, complete) = (watch::Sender::new(Arc::default()), watch::Sender::new(false));
            let (programmed, revision) = watch::channel(0);
            let (scrapes, queue) = mpsc::channel(1);
            let (metrics, shutdown) = (Metrics::new().unwrap(), Shutdown::new());
            let follow = Follow {
                snapshots: snapshots.subscribe(),
                complete: complete.subscribe(),
                hold,
                programmed,
                scrapes: queue,
                metrics: metrics.clone(),
                shutdown: shutdown.clone(),
            };
            tokio::spawn(Follower::new(fake.clone(), reconciler, follow).run());
            let store = Store::default();
            Self { fake, store, snapshots, complete, programmed: revision, scrapes, metrics, shutdown }
        }

        fn publish(&mut self, names: &[(&str, &str)]) {
            let services = names.iter().map(|(name, ip)| service(name, ip)).collect();
            let snapshot = self.store.apply(delta(services)).clone();
            self.snapshots.send_replace(Arc::new(snapshot));
        }

        async fn programmed(&mut self, revision: u64) {
            let waited = self.programmed.wait_for(|now| *now == revision);
            tokio::time::timeout(Duration::from_secs(10), waited).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn maps_follow_snapshots_and_counters_reach_the_metrics() {
        let mut world = World::start(Fake::new(Instant::now()), false);
        world.publish(&[("a", "10.0.0.1")]);
        world.programmed(1).await;
        // The ClusterIP and the NodePort on 127.0.0.1.
        assert_eq!(world.fake.0.lock().unwrap().frontends.len(), 2);

        for _ in 0..2 {
            let (done, answered) = oneshot::channel();
            world.scrapes.send(done).await.unwrap();
            answered.await.unwrap();
        }
        assert_eq!(world.metrics.hook_translations.with_label_values(&["ipv4", "TCP"]).get(), 5);
        assert_eq!(world.metrics.hook_refused.get(), 2);
        assert_eq!(world.metrics.map_entries.with_label_values(&["frontends"]).get(), 2);
        let service = service("a", "10.0.0.1");
        let counters = world.metrics.services.existing(&service.key, &service.ports[0].name, service.ports[0].protocol);
        assert_eq!(counters.unwrap().connections_total(Path::Hook), 3);
        world.shutdown.stop(Stop::Asked);
    }

    #[tokio::test]
    async fn a_long_scrape_holds_up_no_snapshot() {
        let mut world = World::start(Fake::new(Instant::now()), false);
        let names: Vec<_> = (1..=200).map(|n| (format!("s{n}"), format!("10.0.0.{n}"))).collect();
        world.publish(&names.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect::<Vec<_>>());
        world.programmed(1).await;
        let before = world.fake.2.read.load(Ordering::Relaxed);
        world.fake.2.takes.store(1000, Ordering::Relaxed);
        let (done, mut answered) = oneshot::channel();
        world.scrapes.send(done).await.unwrap();
        while world.fake.2.read.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
        world.publish(&[("another", "10.0.1.1")]);
        world.programmed(2).await;
        assert!(answered.try_recv().is_err(), "the snapshot came first");
        tokio::time::timeout(Duration::from_secs(60), answered).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_published_while_maps_are_written_is_not_yet_programmed() {
        let mut world = World::start(Fake::new(Instant::now()), false);
        let newer = {
            let mut store = Store::default();
            store.apply(delta(vec![service("a", "10.0.0.1")]));
            Arc::new(store.apply(delta(vec![service("b", "10.0.0.2")])).clone())
        };
        let (snapshots, programmed) = (world.snapshots.clone(), world.programmed.clone());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = seen.clone();
        *world.fake.1.lock().unwrap() = Some(Box::new(move || {
            let mut seen = note.lock().unwrap();
            if seen.is_empty() {
                snapshots.send_replace(newer.clone());
            }
            seen.push(*programmed.borrow());
        }));
        world.publish(&[("a", "10.0.0.1")]);
        world.programmed(2).await;
        let seen = seen.lock().unwrap();
        assert_eq!(
            (seen.first(), seen.last()),
            (Some(&0), Some(&1)),
            "what was programmed at the first and last write"
        );
    }

    #[tokio::test]
    async fn pinned_maps_stand_until_the_first_complete_update() {
        let mut before = World::start(Fake::new(Instant::now()), false);
        before.publish(&[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
        before.programmed(1).await;
        before.shutdown.stop(Stop::Asked);
        let fake = before.fake.0.lock().unwrap().clone();
        let rows = fake.frontends.clone();
        assert_eq!(rows.len(), 3);

        let mut world = World::start(fake, true);
        tokio::task::yield_now().await;
        world.publish(&[("a", "10.0.0.1")]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(world.fake.0.lock().unwrap().frontends, rows);
        assert_eq!(*world.programmed.borrow(), 0, "only what the store started with counts as programmed");
        world.complete.send_replace(true);
        world.programmed(1).await;
        assert_eq!(world.fake.0.lock().unwrap().frontends.len(), 2);
    }

    #[tokio::test]
    async fn a_full_map_is_counted_and_holds_up_nobody_for_ever() {
        let mut fake = Fake::new(Instant::now());
        fake.slots_capacity = 0;
        let mut world = World::start(fake, false);
        world.publish(&[("a", "10.0.0.1")]);
        world.programmed(1).await;
        assert!(world.metrics.reconcile_errors.get() >= u64::from(ATTEMPTS));
    }
}
