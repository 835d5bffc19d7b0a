//! The threads of the userspace path, two for each core: one event loop for TCP (`tcp`), and one single-threaded runtime for
//! UDP sessions and HTTP.
//!
//! Threads share nothing on the way of a byte but counters and the table of UDP sessions. The kernel spreads connections
//! and clients over them (SO_REUSEPORT).

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::{Arc, mpsc as sync_mpsc};
use std::time::Duration;

use futures::FutureExt as _;
use prometheus::IntCounter;
use sheave_model::Snapshot;
use socket2::Socket;
use tokio::runtime::LocalOptions;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::Stop;
use super::budget::{Budget, Share};
use super::metrics::ListenerMetrics;
use super::sys::Waker;
use super::tcp::{self, Loop, Parts};
use super::udp::{self, Buffers, Replies, Sessions};
use super::view::View;
use crate::l7::{self, Gateway};
use crate::metrics::ServiceMetrics;

/// HTTP requests that a thread carries at a time.
const REQUESTS: usize = 10_000;
/// For one try to reach a backend, as for TCP connections.
const CONNECT: Duration = Duration::from_secs(1);
/// HTTP connections that may wait for their thread.
const HANDOVERS: usize = 1024;
/// How often a stopping thread looks whether its connections have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

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
    /// Tasks and connections that panicked.
    pub(crate) panics: IntCounter,
    /// UDP sessions.
    pub(crate) sessions: Sessions,
    /// The snapshots.
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A TCP connection that is open: counted, and its descriptors taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Open {
    shared: Arc<Shared>,
    _share: Share,
}

impl Open {
    /// Counts one.
    pub(crate) fn new(shared: Arc<Shared>, share: Share) -> Self {
        shared.metrics.tcp.active.inc();
        Self { shared, _share: share }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.metrics.tcp.active.dec();
    }
}

/// A connection that speaks HTTP, on its way to the runtime.
#[derive(Debug)]
pub(crate) struct Handover {
    /// The accepted socket.
    pub(crate) stream: std::net::TcpStream,
    /// Counts it.
    pub(crate) open: Open,
}

/// What the tasks of one runtime share.
pub(crate) struct Worker {
    /// With all threads.
    pub(crate) shared: Arc<Shared>,
    /// Who answers where.
    pub(crate) view: RefCell<View>,
    /// For replies to UDP clients.
    pub(crate) replies: Replies,
    /// For receiving datagrams.
    pub(crate) buffers: Buffers,
    /// For HTTP; made when the first connection comes, because few nodes' Services ask for it.
    gateway: OnceCell<Rc<Gateway>>,
    /// Turns true when HTTP connections should end with the request they carry.
    ending: watch::Receiver<bool>,
    /// HTTP connections that are open.
    open: Cell<usize>,
}

impl Worker {
    fn new(shared: Arc<Shared>, replies: Replies, ending: watch::Receiver<bool>) -> Rc<Self> {
        let view = RefCell::new(View::new(shared.snapshots.clone(), shared.services.clone()));
        let (buffers, gateway, open) = (Buffers::new(), OnceCell::new(), Cell::new(0));
        Rc::new(Self { shared, view, replies, buffers, gateway, ending, open })
    }

    /// This thread's HTTP proxy.
    fn gateway(&self) -> Rc<Gateway> {
        let make = || {
            let options = l7::Options { mark_own: self.shared.own_mark, requests: REQUESTS, connect_timeout: CONNECT };
            let (snapshots, services) = (self.shared.snapshots.clone(), self.shared.services.clone());
            Rc::new(Gateway::new(options, snapshots, services, self.ending.clone()))
        };
        self.gateway.get_or_init(make).clone()
    }

    /// Has a task carry an HTTP connection until it ends. It counts from here on: a thread that drains must not end before
    /// the task has begun.
    fn carry(self: &Rc<Self>, handover: Handover) {
        self.open.set(self.open.get() + 1);
        drop(tokio::task::spawn_local(self.clone().http(handover)));
    }

    async fn http(self: Rc<Self>, Handover { stream, open }: Handover) {
        let served = async {
            match tokio::net::TcpStream::from_std(stream) {
                Ok(stream) => self.gateway().serve(stream).await,
                Err(error) => tracing::debug!(%error, "a connection can't be watched"),
            }
        };
        if std::panic::AssertUnwindSafe(served).catch_unwind().await.is_err() {
            self.shared.panics.inc();
        }
        self.open.set(self.open.get() - 1);
        drop(open); // counted until here
    }
}

/// A core's sockets, bound and not yet listening.
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

/// A thread's work.
pub(crate) type Run = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A core's two threads, by name. Each waits for the first snapshot, starts to listen, says so by `opened`, and serves until
/// it is stopped; `waker` has the first one look at `stopped`.
pub(crate) fn pair(
    index: usize,
    shared: &Arc<Shared>,
    sockets: Sockets,
    waker: Arc<Waker>,
    stopped: &watch::Receiver<Stop>,
    opened: &sync_mpsc::Sender<()>,
) -> [(String, Run); 2] {
    let (http, handovers) = mpsc::channel(HANDOVERS);
    let Sockets { tcp: listeners, udp, replies } = sockets;
    let parts = Parts { shared: shared.clone(), listeners, waker, stopped: stopped.clone(), http };
    let (shared, stopped) = (shared.clone(), stopped.clone());
    let (first, second) = (opened.clone(), opened.clone());
    let run_tcp = move || {
        if !futures::executor::block_on(first_snapshot(&parts.shared, &parts.stopped)) {
            return Ok(());
        }
        parts.listeners.iter().try_for_each(tcp::listen)?;
        let serve = Loop::new(parts)?;
        let _ = first.send(()); // nobody waits any more where the proxy is stopping
        drop(first);
        serve.run()
    };
    let run_other = move || {
        // A local runtime and not a LocalSet: spawning on the latter wakes the thread by a system call each time.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default())?;
        runtime.block_on(async {
            if !first_snapshot(&shared, &stopped).await {
                return Ok(());
            }
            let _ = second.send(());
            drop(second);
            serve(shared, udp, replies, handovers, stopped).await
        })
    };
    [(format!("sheave-tcp-{index}"), Box::new(run_tcp)), (format!("sheave-{index}"), Box::new(run_other))]
}

/// Waits for a snapshot that says something. False where the proxy stops before it comes.
async fn first_snapshot(shared: &Shared, stopped: &watch::Receiver<Stop>) -> bool {
    let (mut snapshots, mut stopped) = (shared.snapshots.clone(), stopped.clone());
    tokio::select! {
        first = snapshots.wait_for(|s| s.revision > 0) => first.is_ok(),
        _ = stopped.wait_for(|stop| *stop >= Stop::HoldBack) => false,
    }
}

/// Serves UDP until the thread ends, and HTTP connections as they are handed over.
///
/// # Errors
/// Where UDP is served no longer.
async fn serve(
    shared: Arc<Shared>,
    udp: Vec<Socket>,
    replies: Replies,
    mut handovers: mpsc::Receiver<Handover>,
    mut stopped: watch::Receiver<Stop>,
) -> io::Result<()> {
    let (end, ending) = watch::channel(false);
    let worker = Worker::new(shared, replies, ending);
    let mut listening = JoinSet::new();
    for socket in udp {
        listening.spawn_local(udp::serve(worker.clone(), socket));
    }
    let mut until = stopped.clone();
    let draining = async move { drop(until.wait_for(|stop| *stop >= Stop::Drain).await) };
    tokio::pin!(draining);
    let mut serving = true;
    while serving {
        tokio::select! {
            biased;
            handover = handovers.recv() => match handover {
                Some(handover) => worker.carry(handover),
                None => serving = false, // the TCP thread has ended
            },
            Some(ended) = listening.join_next() => return ended.map_err(io::Error::other)?.map(|never| match never {}),
            () = &mut draining, if !*end.borrow() => drop(end.send_replace(true)),
            _ = stopped.wait_for(|stop| *stop >= Stop::Now) => serving = false,
        }
    }
    end.send_replace(true); // the TCP thread may have ended before this one was told to drain
    while worker.open.get() > 0 && *stopped.borrow() < Stop::Now {
        tokio::time::sleep(DRAIN_LOOK).await;
    }
    Ok(())
}
