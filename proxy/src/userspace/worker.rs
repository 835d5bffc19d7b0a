//! A listener thread: one single-threaded runtime with its own sockets, pipes and view of the snapshot.
//!
//! Threads share nothing on the way of a byte but counters and the table of UDP sessions. The kernel spreads connections
//! over them (SO_REUSEPORT).

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use prometheus::IntCounter;
use sheave_model::Snapshot;
use socket2::Socket;
use tokio::sync::watch;

use super::Stop;
use super::budget::Budget;
use super::metrics::ListenerMetrics;
use super::tcp::{self, Pipes};
use super::udp::{self, Buffers, Replies, Sessions};
use super::view::View;
use crate::l7::{self, Gateway};
use crate::metrics::ServiceMetrics;

/// HTTP requests that a thread carries at a time.
const REQUESTS: usize = 10_000;
/// For one try to reach a backend, as for TCP connections.
const CONNECT: Duration = Duration::from_secs(1);

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The mark of our own sockets.
    pub(crate) own_mark: u32,
    /// Descriptors that may be taken.
    pub(crate) budget: Arc<Budget>,
    /// What is counted.
    pub(crate) metrics: ListenerMetrics,
    /// Per Service port.
    pub(crate) services: Arc<ServiceMetrics>,
    /// Tasks that panicked.
    pub(crate) panics: IntCounter,
    /// UDP sessions.
    pub(crate) sessions: Sessions,
    /// The snapshots.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// What one thread's connections share.
pub(crate) struct Worker {
    /// With all threads.
    pub(crate) shared: Arc<Shared>,
    /// Who answers where.
    pub(crate) view: RefCell<View>,
    /// For splicing.
    pub(crate) pipes: Rc<Pipes>,
    /// For replies to UDP clients.
    pub(crate) replies: Replies,
    /// For receiving datagrams.
    pub(crate) buffers: Buffers,
    /// For HTTP; made when the first connection comes, because few nodes' Services ask for it.
    gateway: OnceCell<Rc<Gateway>>,
    /// Turns true when connections should end with the request they carry.
    ending: watch::Receiver<bool>,
    /// TCP connections that are open.
    pub(crate) open: Cell<usize>,
}

impl Worker {
    /// A thread's own part.
    fn new(shared: Arc<Shared>, replies: Replies, ending: watch::Receiver<bool>) -> Rc<Self> {
        let view = RefCell::new(View::new(shared.snapshots.clone(), shared.services.clone()));
        let pipes = Pipes::new(shared.metrics.pipes.clone());
        let (buffers, gateway, open) = (Buffers::new(), OnceCell::new(), Cell::new(0));
        Rc::new(Self { shared, view, pipes, replies, buffers, gateway, ending, open })
    }

    /// This thread's HTTP proxy.
    pub(crate) fn gateway(&self) -> Rc<Gateway> {
        let make = || {
            let options = l7::Options { mark_own: self.shared.own_mark, requests: REQUESTS, connect_timeout: CONNECT };
            let (snapshots, services) = (self.shared.snapshots.clone(), self.shared.services.clone());
            Rc::new(Gateway::new(options, snapshots, services, self.ending.clone()))
        };
        self.gateway.get_or_init(make).clone()
    }
}

/// How often a stopping thread looks whether its connections have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// A thread's sockets, bound and not yet listening.
#[derive(Debug)]
pub(crate) struct Sockets {
    tcp: Vec<Socket>,
    udp: Vec<Socket>,
    replies: Replies,
}

impl Sockets {
    /// Binds those of both families; IPv6's only where the kernel has it.
    ///
    /// # Errors
    /// Where the port is taken, or a privilege is missing.
    pub(crate) fn bind(port: u16, mark: u32) -> io::Result<Self> {
        let (tcp, udp) = (vec![tcp::bind(true, port, mark)?], vec![udp::bind(true, port, mark)?]);
        let mut sockets = Self { tcp, udp, replies: Replies::open(mark)? };
        match tcp::bind(false, port, mark).and_then(|tcp| Ok((tcp, udp::bind(false, port, mark)?))) {
            Ok((tcp, udp)) => {
                sockets.tcp.push(tcp);
                sockets.udp.push(udp);
            }
            Err(e) if no_ipv6(&e) => {}
            Err(e) => return Err(e),
        }
        Ok(sockets)
    }
}

/// Whether an error says that the kernel has no IPv6, or that it is switched off on lo.
fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Runs a thread: waits for the first snapshot, listens, says so by `opened`, and serves until it is stopped.
///
/// # Errors
/// Where the runtime or a listener can't be made.
pub(crate) fn run(
    shared: Arc<Shared>,
    sockets: Sockets,
    stopped: watch::Receiver<Stop>,
    opened: &mpsc::Sender<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(shared, sockets, stopped, opened))
}

async fn serve(
    shared: Arc<Shared>,
    sockets: Sockets,
    mut stopped: watch::Receiver<Stop>,
    opened: &mpsc::Sender<()>,
) -> io::Result<()> {
    let mut snapshots = shared.snapshots.clone();
    tokio::select! {
        first = snapshots.wait_for(|s| s.revision > 0) => if first.is_err() { return Ok(()) },
        _ = stopped.wait_for(|stop| *stop >= Stop::Drain) => return Ok(()),
    }
    let (end, ending) = watch::channel(false);
    let worker = Worker::new(shared, sockets.replies, ending);
    for socket in sockets.udp {
        drop(tokio::task::spawn_local(udp::serve(worker.clone(), socket)));
    }
    for socket in sockets.tcp {
        let listener = tcp::listen(socket)?;
        let mut stopped = stopped.clone();
        let stop = async move { drop(stopped.wait_for(|stop| *stop >= Stop::Drain).await) };
        drop(tokio::task::spawn_local(tcp::accept(worker.clone(), listener, stop)));
    }
    let _ = opened.send(()); // nobody waits any more where the proxy is stopping
    let _ = stopped.wait_for(|stop| *stop >= Stop::Drain).await;
    end.send_replace(true);
    tokio::task::yield_now().await; // lets the listeners take what is waiting
    while worker.open.get() > 0 && *stopped.borrow() < Stop::Now {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    Ok(())
}
