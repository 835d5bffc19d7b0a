//! The thread that keeps the nftables table and the routing rule as the newest snapshot wants them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sheave_model::{Frontend, Protocol, Snapshot};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Stop;
use super::metrics::ListenerMetrics;
use super::nft::Table;
use super::rules;
use super::worker::Shared;

/// How long a failed transaction waits before it is tried again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// How often the table and the rule are looked after: programs that manage networks flush what they don't know.
const LOOK: Duration = Duration::from_secs(10);

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Program {
    /// The table.
    pub(crate) table: Table,
    /// Mark and routing table of the rule.
    pub(crate) route: (u32, u32),
    /// What is wanted.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// When to end.
    pub(crate) stopped: watch::Receiver<Stop>,
    /// Where to say which revision the kernel has.
    pub(crate) programmed: watch::Sender<u64>,
    /// What the listener threads share: the table of UDP sessions.
    pub(crate) shared: Arc<Shared>,
    /// What is counted.
    pub(crate) metrics: ListenerMetrics,
    /// How many times in a row the kernel refused the newest snapshot.
    pub(crate) refused: u32,
}

impl Program {
    /// Runs until it is stopped. The first snapshot is written after `listening` returns true, so that there is somebody to
    /// serve what the table sends; false says that a listener failed, and the proxy ends.
    ///
    /// # Errors
    /// Where the thread's runtime can't be made.
    pub(crate) fn run(mut self, listening: impl FnOnce() -> bool) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut stopped = self.stopped.clone();
        runtime.block_on(async {
            tokio::select! {
                first = self.snapshots.wait_for(|s| s.revision > 0) => if first.is_err() { return },
                _ = stopped.wait_for(|stop| *stop >= Stop::HoldBack) => return,
            }
            if listening() {
                self.follow(&mut stopped).await;
            }
        });
        Ok(())
    }

    async fn follow(&mut self, stopped: &mut watch::Receiver<Stop>) {
        let mut pause = RETRY.0;
        let mut look = Instant::now() + LOOK;
        loop {
            let written = self.write();
            let wake = if written { look } else { look.min(Instant::now() + pause) };
            pause = if written { RETRY.0 } else { (pause * 2).min(RETRY.1) };
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stop| *stop >= Stop::HoldBack) => return self.hold_back(),
                // Not after a refusal: the whole table is written then, which costs more than a pause.
                changed = self.snapshots.changed(), if written => if changed.is_err() {
                    // Everything stops, the store before us. The listeners still accept.
                    let _ = self.stopped.clone().wait_for(|stop| *stop >= Stop::HoldBack).await;
                    return self.hold_back();
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            // Not by the sleep alone: changes may come in so fast that it never ends.
            if Instant::now() >= look {
                self.look();
                look = Instant::now() + LOOK;
            }
        }
    }

    /// Writes the newest snapshot. False where the kernel refused.
    fn write(&mut self) -> bool {
        let snapshot = self.snapshots.borrow_and_update().clone();
        let gone = match self.table.program(&snapshot) {
            Ok(gone) => gone,
            Err(error) => {
                self.metrics.table_errors.inc();
                self.refused += 1;
                if self.refused.is_power_of_two() {
                    let (revision, times) = (snapshot.revision, self.refused);
                    tracing::warn!(%error, revision, times, "nftables refused a change; it is tried again");
                }
                return false;
            }
        };
        self.refused = 0;
        for (set, count) in self.table.counts() {
            self.metrics.table_elements.with_label_values(&[set]).set(count as i64);
        }
        self.programmed.send_replace(snapshot.revision);
        // No datagram reaches a frontend that is gone, so its sessions would only hold descriptors until they are idle.
        if gone {
            let is_gone = |address| snapshot.lookup(&Frontend { address, protocol: Protocol::Udp }).is_none();
            self.shared.sessions.end_gone(is_gone);
        }
        true
    }

    /// Nothing new comes to the listeners any more, unless they are to be cut off at once.
    fn hold_back(&mut self) {
        if *self.stopped.borrow() != Stop::HoldBack {
            return;
        }
        if let Err(error) = self.table.hold_back() {
            self.metrics.table_errors.inc();
            tracing::warn!(%error, "connections that come while the listeners close may be reset");
        }
    }

    /// Puts back what others have removed.
    fn look(&mut self) {
        if let Err(error) = self.table.probe() {
            self.metrics.table_errors.inc();
            tracing::warn!(%error, "the nftables table was removed by another program; it is made anew");
        }
        if let Err(error) = rules::install(self.route.0, self.route.1) {
            self.metrics.table_errors.inc();
            tracing::warn!(%error, "can't put back the routing rule for marked packets");
        }
    }
}
