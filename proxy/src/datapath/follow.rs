//! The loop that keeps the kernel's maps in step with snapshots, and reads their counters when somebody scrapes.
//!
//! Which rows there should be and in which order they are written is `sheave-reconcile`'s business; this loop brings
//! snapshots, time and a kernel together. It runs on a thread of its own: filling maps takes a while, and neither the
//! stream nor the health page should wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use sheave_abi::Counter;
pub(crate) use sheave_loader::Fill;
use sheave_model::Snapshot;
use sheave_reconcile::{Maps, Reconciler, Report, Usage};
use tokio::sync::{mpsc, oneshot, watch};

use crate::metrics::{Metrics, Path};
use crate::supervise::Shutdown;

/// Tries after which a revision counts as programmed although some rows could not be written: their frontends are then
/// left to the listeners, which serve them, and are tried again for as long as it takes.
const ATTEMPTS: u32 = 3;

/// Maps that also count.
pub(crate) trait Kernel: Maps {
    /// The node-wide counters, summed over all CPUs.
    ///
    /// # Errors
    /// What the kernel said.
    fn counters(&self) -> anyhow::Result<Vec<(Counter, u64)>>;

    /// Connections of a target since it was made.
    ///
    /// # Errors
    /// What the kernel said.
    fn connections(&self, target: u32) -> anyhow::Result<u64>;

    /// How full the maps are, of which `usage` rows are ours.
    ///
    /// # Errors
    /// What the kernel said.
    fn fill(&self, usage: &Usage) -> anyhow::Result<Vec<Fill>>;
}

/// Asks the loop to bring its numbers into the metrics; answered when that is done.
pub(crate) type Scrape = oneshot::Sender<()>;

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
    counters: HashMap<Index, u64>,
    connections: HashMap<u32, u64>,
}

/// A [`Counter`] by its index.
type Index = u32;

impl<K: Kernel> Follower<K> {
    /// A loop over `kernel`, whose maps hold what `reconciler` says.
    pub(crate) fn new(kernel: K, reconciler: Reconciler, follow: Follow) -> Self {
        Self { kernel, reconciler, follow, written: 0, counters: HashMap::new(), connections: HashMap::new() }
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
            let scrape = tokio::select! {
                complete = self.follow.complete.wait_for(|complete| *complete) => {
                    if complete.is_err() {
                        return;
                    }
                    self.follow.hold = false;
                    None
                }
                scrape = self.follow.scrapes.recv() => scrape,
            };
            if let Some(scrape) = scrape {
                self.scrape(scrape);
            }
        }
        self.update();
        loop {
            let wake = self.reconciler.poll_timeout();
            let sleep = tokio::time::sleep_until(wake.unwrap_or_else(Instant::now).into());
            tokio::select! {
                changed = self.follow.snapshots.changed() => match changed {
                    Ok(()) => self.update(),
                    Err(_) => return,
                },
                () = sleep, if wake.is_some() => {
                    let report = self.reconciler.handle_timeout(Instant::now(), &mut self.kernel);
                    self.take_note(&report);
                }
                Some(scrape) = self.follow.scrapes.recv() => self.scrape(scrape),
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

    fn scrape(&mut self, done: Scrape) {
        if let Err(error) = self.read_counters() {
            tracing::warn!(error = %format!("{error:#}"), "the kernel's counters can't be read");
        }
        // Whoever asked may have gone meanwhile.
        let _ = done.send(());
    }

    fn read_counters(&mut self) -> anyhow::Result<()> {
        let metrics = self.follow.metrics.clone();
        for (counter, total) in self.kernel.counters()? {
            let grown = grown(&mut self.counters, counter as u32, total);
            match counter {
                Counter::TcpV4 => metrics.hook_translations.with_label_values(&["ipv4", "TCP"]).inc_by(grown),
                Counter::TcpV6 => metrics.hook_translations.with_label_values(&["ipv6", "TCP"]).inc_by(grown),
                Counter::UdpV4 => metrics.hook_translations.with_label_values(&["ipv4", "UDP"]).inc_by(grown),
                Counter::UdpV6 => metrics.hook_translations.with_label_values(&["ipv6", "UDP"]).inc_by(grown),
                Counter::Refused => metrics.hook_refused.inc_by(grown),
                Counter::Missed => metrics.hook_passed.with_label_values(&["missed"]).inc_by(grown),
                Counter::Listener => metrics.hook_passed.with_label_values(&["listener"]).inc_by(grown),
                Counter::Untracked => metrics.hook_passed.with_label_values(&["untracked"]).inc_by(grown),
            }
        }
        for (target, key) in self.reconciler.targets() {
            let grown = grown(&mut self.connections, target, self.kernel.connections(target)?);
            if grown > 0 {
                metrics.services.of(&key.service, &key.port, key.protocol).connections(Path::Hook, grown);
            }
        }
        self.connections.retain(|target, _| self.reconciler.target_of(*target).is_some());
        for fill in self.kernel.fill(&self.reconciler.usage())? {
            metrics.map_entries.with_label_values(&[fill.map]).set(i64::try_from(fill.entries).unwrap_or(i64::MAX));
            metrics.map_capacity.with_label_values(&[fill.map]).set(i64::try_from(fill.capacity).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}

/// By how much a counter has grown since it was last read. One that became smaller was made anew.
fn grown(last: &mut HashMap<u32, u64>, key: u32, total: u64) -> u64 {
    let before = last.insert(key, total).unwrap_or_default();
    if total >= before { total - before } else { total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{delta, service};
    use crate::supervise::Stop;
    use sheave_model::Store;
    use sheave_reconcile::{Fake, MapError, MapOp};
    use std::sync::Mutex;

    /// A fake kernel that the test can look into while the loop owns it.
    #[derive(Clone)]
    struct Shared(Arc<Mutex<Fake>>, Meanwhile);

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
            Ok(if self.0.lock().unwrap().targets.contains_key(&target) { 3 } else { 0 })
        }

        fn fill(&self, usage: &Usage) -> anyhow::Result<Vec<Fill>> {
            Ok(vec![Fill { map: "frontends", entries: usage.frontends as u64, capacity: 10 }])
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
            let fake = Shared(Arc::new(Mutex::new(fake)), Arc::default());
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
            tokio::time::timeout(std::time::Duration::from_secs(10), waited).await.unwrap().unwrap();
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
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
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
