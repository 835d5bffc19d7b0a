//! Reads the kernel's numbers into the metrics when somebody scrapes.
//!
//! With 10,000 Services that is one system call for each of 20,000 targets, which would hold up the loop that programs the
//! maps. So it is done in slices, between which the loop looks for snapshots. Rows of flows, which programs write, are counted by `flows`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sheave_abi::Counter;
pub(super) use sheave_loader::Fill;
use sheave_reconcile::{Maps, Reconciler, Usage};
use tokio::sync::oneshot;

use crate::metrics::{Metrics, Path};

/// How long the loop reads without looking for a snapshot: little of the 15 ms in which a change is to be programmed.
const SLICE: Duration = Duration::from_millis(1);

/// Maps that also count.
pub(super) trait Kernel: Maps {
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
    fn fill(&self, usage: &Usage) -> Vec<Fill>;
}

/// Asks the loop to bring its numbers into the metrics; answered when that is done.
pub(super) type Scrape = oneshot::Sender<()>;

/// What was read so far.
pub(super) struct Numbers {
    metrics: Metrics,
    counters: HashMap<u32, u64>,
    connections: HashMap<u32, u64>,
    reading: Option<Reading>,
}

/// A scrape that is under way.
struct Reading {
    asked: Scrape,
    /// Those that are still to be read.
    targets: Vec<u32>,
}

impl Numbers {
    /// Nothing was read yet.
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { metrics, counters: HashMap::new(), connections: HashMap::new(), reading: None }
    }

    /// Whether a scrape is under way.
    pub(super) fn are_read(&self) -> bool {
        self.reading.is_some()
    }

    /// Begins with what takes no time. Not while another scrape is under way.
    pub(super) fn read(&mut self, kernel: &impl Kernel, reconciler: &Reconciler, asked: Scrape) {
        if let Err(error) = self.read_counters(kernel) {
            unreadable(&error);
        }
        let targets = reconciler.targets().map(|(target, _)| target).collect();
        self.reading = Some(Reading { asked, targets });
    }

    /// Reads a slice more.
    pub(super) fn read_on(&mut self, kernel: &impl Kernel, reconciler: &Reconciler) {
        let Some(mut reading) = self.reading.take() else { return };
        let started = Instant::now();
        while let Some(target) = reading.targets.pop() {
            if let Err(error) = self.read_connections(kernel, reconciler, target) {
                // The others would fail as well, and one line is enough.
                unreadable(&error);
                reading.targets.clear();
            }
            if started.elapsed() >= SLICE {
                self.reading = Some(reading);
                return;
            }
        }
        self.connections.retain(|target, _| reconciler.target_of(*target).is_some());
        show(&self.metrics, &kernel.fill(&reconciler.usage()));
        // Whoever asked may have gone meanwhile, so that nobody hears the answer.
        let _ = reading.asked.send(());
    }

    fn read_counters(&mut self, kernel: &impl Kernel) -> anyhow::Result<()> {
        let metrics = &self.metrics;
        for (counter, total) in kernel.counters()? {
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
        Ok(())
    }

    fn read_connections(&mut self, kernel: &impl Kernel, reconciler: &Reconciler, target: u32) -> anyhow::Result<()> {
        // It may have gone since the scrape began.
        let Some(key) = reconciler.target_of(target) else { return Ok(()) };
        let grown = grown(&mut self.connections, target, kernel.connections(target)?);
        if grown > 0 {
            self.metrics.services.of(&key.service, &key.port, key.protocol).connections(Path::Hook, grown);
        }
        Ok(())
    }
}

fn unreadable(error: &anyhow::Error) {
    tracing::warn!(error = %format!("{error:#}"), "the kernel's counters can't be read");
}

/// Brings how full maps are into the metrics.
pub(super) fn show(metrics: &Metrics, fills: &[Fill]) {
    for fill in fills {
        metrics.map_entries.with_label_values(&[fill.map]).set(i64::try_from(fill.entries).unwrap_or(i64::MAX));
        metrics.map_capacity.with_label_values(&[fill.map]).set(i64::try_from(fill.capacity).unwrap_or(i64::MAX));
    }
}

/// By how much a counter has grown since it was last read. One that became smaller was made anew.
fn grown(last: &mut HashMap<u32, u64>, key: u32, total: u64) -> u64 {
    let before = last.insert(key, total).unwrap_or_default();
    if total >= before { total - before } else { total }
}
