//! The userspace data path: every Service routed with no eBPF at all.
//!
//! nftables hands the packets of all frontends to a few transparent listeners (`nft`, `rules`); each listener thread
//! (`worker`) finds out which frontend was meant by the socket's own address (`view`) and carries TCP streams (`tcp`), UDP
//! datagrams (`udp`) and HTTP requests (`crate::l7`) to a backend.
//!
//! When this program ends, the table and rules stay: until another proxy listens, packets to frontends are dropped and
//! not refused, so that clients try again. Only [`clean`] removes them.

mod budget;
mod metrics;
mod netlink;
mod nft;
mod program;
mod rules;
mod source;
mod sys;
mod tcp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod udp;
mod view;
mod worker;

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::IntCounter;
use sheave_model::Snapshot;
use tokio::sync::watch;

use crate::metrics::Metrics;
use budget::Budget;
use metrics::ListenerMetrics;
use netlink::NetlinkError;
use nft::{Marks, Table};
use program::Program;
use sys::Waker;
pub(crate) use tcp::keep_alive;
use udp::Sessions;
use worker::{Shared, Sockets};

/// What the userspace path is configured with.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Listener threads; one per core serves best.
    pub(crate) threads: usize,
    /// Where the listeners are, on the loopback addresses.
    pub(crate) proxy_port: u16,
    /// The mark bit of packets for our listeners.
    pub(crate) mark_reply: u32,
    /// The mark bit of our own sockets' packets.
    pub(crate) mark_own: u32,
    /// The routing table that delivers marked packets locally.
    pub(crate) route_table: u32,
    /// The limit of open descriptors; `None` raises it as far as allowed and takes that.
    pub(crate) descriptors: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            proxy_port: 15001,
            mark_reply: 0x0010_0000,
            mark_own: 0x0020_0000,
            route_table: 15001,
            descriptors: None,
        }
    }
}

/// Why the userspace path can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// Not privileged.
    #[error("no CAP_NET_ADMIN or CAP_NET_RAW: run as root, or give the container NET_ADMIN and NET_RAW")]
    NoPermission,
    /// The kernel lacks nftables or a part of it.
    #[error("the kernel has no nftables ({0}): load nf_tables, nft_tproxy, nft_socket, nft_ct and nft_reject_inet")]
    NoNftables(NetlinkError),
    /// The routing rule was refused.
    #[error("can't add the routing rule for marked packets: {0}")]
    Rules(NetlinkError),
    /// A listener could not be opened.
    #[error("can't listen on loopback port {port}: {source}; choose another with --proxy-port")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("can't start a listener thread: {0}")]
    Thread(io::Error),
    /// A metric's name is taken.
    #[error("can't register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

impl StartError {
    fn listen(port: u16, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::NoPermission,
            _ => Self::Listen { port, source },
        }
    }
}

/// How long handshakes that are under way get before the listeners close: some round trips within a cluster.
const HANDSHAKE: Duration = Duration::from_millis(50);

/// The running userspace path.
#[derive(Debug)]
pub(crate) struct Userspace {
    programmed: watch::Receiver<u64>,
    failed: watch::Receiver<bool>,
    stop: watch::Sender<Stop>,
    wakers: Vec<Arc<Waker>>,
    program: JoinHandle<()>,
    threads: Vec<JoinHandle<()>>,
}

/// How far stopping has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// Serving.
    No,
    /// The table lets nothing new through to the listeners, which still accept what is on its way.
    HoldBack,
    /// Nothing new is accepted; what is open goes on.
    Drain,
    /// What is still open is cut.
    Now,
}

/// Finds out whether this machine lets the userspace path work, before this process owns the node. Touches no packet.
///
/// # Errors
/// One line each; see [`StartError`].
pub(crate) fn probe(options: &Options) -> Result<(), StartError> {
    open_table(options).map(drop)
}

fn open_table(options: &Options) -> Result<Table, StartError> {
    let marks = Marks { take: options.mark_reply, own: options.mark_own };
    Table::open(marks, options.proxy_port).map_err(|e| match e.code() {
        libc::EPERM | libc::EACCES => StartError::NoPermission,
        _ => StartError::NoNftables(e),
    })
}

/// Starts the listener threads and the thread that writes the table. Returns once it is sure that both can work; the first
/// snapshot after revision 0 opens the listeners and then the table, in that order.
///
/// # Errors
/// One line each; see [`StartError`].
pub(crate) fn start(
    options: &Options,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    metrics: &Metrics,
) -> Result<Userspace, StartError> {
    let table = open_table(options)?;
    rules::install(options.mark_reply, options.route_table).map_err(StartError::Rules)?;
    let listeners = ListenerMetrics::new(metrics.registry())?;
    let budget = Budget::of_limit(options.descriptors.unwrap_or_else(sys::raise_descriptor_limit));
    let most = udp::MOST.min(budget.most() as usize / 2); // the other half stays for TCP
    listeners.udp_capacity.set(most as i64);
    let shared = Arc::new(Shared {
        own_mark: options.mark_own,
        budget,
        sessions: Sessions::new(most, udp::local_ports()),
        metrics: listeners.clone(),
        services: metrics.services.clone(),
        panics: metrics.task_panics.with_label_values(&["connection"]),
        snapshots: snapshots.clone(),
    });
    let (stop, stopped) = watch::channel(Stop::No);
    let (opened, all_open) = std::sync::mpsc::channel();
    let (failed, failure) = watch::channel(false);
    let guard = Guard { failed, panics: metrics.task_panics.with_label_values(&["listener"]) };
    let (mut threads, mut wakers) = (Vec::new(), Vec::new());
    for index in 0..options.threads.max(1) {
        let sockets = Sockets::bind(options.proxy_port, options.mark_own)
            .map_err(|source| StartError::listen(options.proxy_port, source))?;
        let waker = Arc::new(Waker::new().map_err(StartError::Thread)?);
        wakers.push(waker.clone());
        for (name, run) in worker::pair(index, &shared, sockets, waker, &stopped, &opened) {
            threads.push(guard.spawn(name, run)?);
        }
    }
    let wanted = threads.len();
    let (programmed, revision) = watch::channel(0);
    let program = Program {
        table,
        route: (options.mark_reply, options.route_table),
        snapshots,
        stopped,
        programmed,
        shared,
        metrics: listeners,
        refused: 0,
    };
    // A thread that ends before it listens takes its sender along, so this waits for none that will never come.
    let opened = move || all_open.iter().take(wanted).count() == wanted;
    let program = guard.spawn("sheave-nft".into(), move || program.run(opened))?;
    Ok(Userspace { programmed: revision, failed: failure, stop, wakers, program, threads })
}

/// Notices when a thread ends that should not.
struct Guard {
    failed: watch::Sender<bool>,
    panics: IntCounter,
}

impl Guard {
    fn spawn(
        &self,
        name: String,
        run: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<JoinHandle<()>, StartError> {
        let (failed, panics) = (self.failed.clone(), self.panics.clone());
        let main = move || match std::panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "a thread of the userspace path ended; the proxy ends, what is in the kernel stays");
                failed.send_replace(true);
            }
            Err(_) => {
                tracing::error!("a thread of the userspace path panicked; the proxy ends, what is in the kernel stays");
                panics.inc();
                failed.send_replace(true);
            }
        };
        std::thread::Builder::new().name(name).spawn(main).map_err(StartError::Thread)
    }
}

impl Userspace {
    /// The revision of the newest snapshot that the table and the listeners have.
    pub(crate) fn programmed(&self) -> watch::Receiver<u64> {
        self.programmed.clone()
    }

    /// Turns true when a thread ended that should not: connections that it would have taken hang.
    pub(crate) fn failed(&self) -> watch::Receiver<bool> {
        self.failed.clone()
    }

    /// Stops accepting, lets what is open go on until it ends or the deadline comes, and cuts the rest. The table stays.
    /// New connections are held back before the listeners close, so that each is accepted or delayed and none is reset;
    /// not with a deadline of nothing, which is as if the program had crashed.
    pub(crate) async fn shutdown(self, deadline: Duration) {
        let Self { stop, wakers, program, threads, .. } = self;
        let tell = |how| {
            stop.send_replace(how);
            wakers.iter().for_each(|waker| waker.wake());
        };
        if !deadline.is_zero() {
            tell(Stop::HoldBack);
            let _ = tokio::task::spawn_blocking(|| program.join()).await;
            tokio::time::sleep(HANDSHAKE.min(deadline)).await;
        }
        tell(Stop::Drain);
        let join = || threads.into_iter().for_each(|thread| drop(thread.join()));
        let mut joined = tokio::task::spawn_blocking(join);
        if tokio::time::timeout(deadline, &mut joined).await.is_err() {
            tell(Stop::Now);
            let _ = joined.await;
        }
    }
}

/// Removes the table, the rules and the routes.
///
/// # Errors
/// What the kernel refused. That something is not there is no error.
pub(crate) fn clean(options: &Options) -> Result<(), NetlinkError> {
    // The table first: as long as it is there it marks packets, and without the rule those would leave by some other way.
    Table::remove()?;
    rules::remove(options.mark_reply, options.route_table)
}
