//! UDP: datagrams to every frontend come in on two transparent sockets per thread, go to the backend of their session, and
//! replies go back with the frontend as their source.

mod packet;
mod reply;
mod session;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;

use sheave_model::{Frontend, Protocol};
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::budget::Share;
use super::sys::{self, BATCH, Outgoing, ReceiveBatch, Received, send_batch};
use super::tcp::loopback;
use super::view::Target;
use super::worker::Worker;
use crate::metrics::{Direction, Path, Reason};
use session::{Found, Session};

pub(crate) use reply::Replies;
pub(crate) use session::{Flow, MOST, Sessions};

/// Bytes that may wait in a listener's socket while its thread is busy; the kernel's default holds some 250 datagrams.
const RECEIVE_BUFFER: i32 = 4 << 20;

/// A thread's buffers.
pub(crate) struct Buffers(RefCell<ReceiveBatch>);

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffers")
    }
}

impl Buffers {
    /// Empty ones.
    pub(crate) fn new() -> Self {
        Self(RefCell::new(ReceiveBatch::new()))
    }
}

/// How much a task has done since it last let others run. A socket that is never empty would keep them all waiting:
/// finding it ready takes no turn in the runtime.
#[derive(Debug, Default)]
struct Turn(usize);

impl Turn {
    /// Notes datagrams. True when others are to run, which a batch's worth brings about.
    fn over(&mut self, datagrams: usize) -> bool {
        self.0 += datagrams;
        let over = self.0 >= BATCH;
        if over {
            self.0 = 0;
        }
        over
    }

    /// Notes that the task waits now.
    fn rest(&mut self) -> bool {
        self.0 = 0;
        false
    }
}

/// The ports that sockets get which ask for none: `net.ipv4.ip_local_port_range`.
pub(crate) fn local_ports() -> RangeInclusive<u16> {
    const LINUX: RangeInclusive<u16> = 32_768..=60_999;
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().map(str::parse);
    match (ends.next(), ends.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => LINUX,
    }
}

/// A family's transparent socket. Datagrams wait in it until somebody receives.
///
/// # Errors
/// Where the port is taken, or the family or a privilege is missing.
pub(crate) fn bind(v4: bool, port: u16, mark: u32) -> io::Result<Socket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(socket2::Protocol::UDP))?;
    if v4 {
        socket.set_ip_transparent_v4(true)?;
        sys::set_option(&socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
        sys::set_option(&socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_mark(mark)?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
    socket.bind(&SocketAddr::new(loopback(v4), port).into())?;
    Ok(socket)
}

/// Receives from clients for as long as the thread runs.
///
/// # Errors
/// Where the socket can't be watched.
pub(crate) async fn serve(worker: Rc<Worker>, socket: Socket) -> io::Result<Infallible> {
    let socket = sys::watch(Arc::new(socket))?;
    let mut turn = Turn::default();
    loop {
        let mut ready = socket.ready(sys::DATAGRAMS).await?;
        let over = {
            let mut batch = worker.buffers.0.borrow_mut();
            match ready.try_io(|socket| batch.receive(socket.get_ref().socket())) {
                Ok(Ok(count)) => {
                    forward(&worker, &batch);
                    turn.over(count)
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "receiving from clients");
                    turn.over(BATCH)
                }
                Err(_) => turn.rest(), // nothing there: waits for more
            }
        };
        if over {
            tokio::task::yield_now().await;
        }
    }
}

/// Sends a batch on, each run of datagrams of one session in one call.
fn forward(worker: &Rc<Worker>, batch: &ReceiveBatch) {
    let mut run: Option<(Arc<Session>, Vec<Outgoing<'_>>)> = None;
    for datagram in batch.datagrams() {
        let Some((flow, body)) = flow(&datagram) else { continue };
        let Some(session) = session(worker, flow) else { continue };
        let outgoing = Outgoing { head: &[], body, to: None };
        match &mut run {
            Some((current, list)) if Arc::ptr_eq(current, &session) => list.push(outgoing),
            _ => {
                if let Some((session, list)) = run.replace((session, vec![outgoing])) {
                    send(worker, &session, &list);
                }
            }
        }
    }
    if let Some((session, list)) = run {
        send(worker, &session, &list);
    }
}

fn flow<'a>(datagram: &Received<'a>) -> Option<(Flow, &'a [u8])> {
    Some((Flow { client: datagram.from?, frontend: datagram.to? }, datagram.payload))
}

fn send(worker: &Worker, session: &Session, list: &[Outgoing<'_>]) {
    session.touch(worker.shared.sessions.now(), false);
    let mut rest = list;
    let mut refused = false;
    while !rest.is_empty() {
        match send_batch(session.socket().as_ref(), rest) {
            Ok(count) => {
                let bytes: usize = rest[..count].iter().map(|d| d.body.len()).sum();
                session.counters.bytes(Direction::In, bytes as u64);
                rest = &rest[count..];
            }
            // What an earlier datagram met is told once, in place of sending; the next call sends.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && !refused => {
                refused = true;
                tell_refused(worker, session);
            }
            Err(error) => {
                tracing::debug!(backend = %session.backend, %error, "a datagram was lost");
                rest = &rest[1..];
            }
        }
    }
}

/// Nobody listens at the backend: the client learns it as it would without a proxy. The session stands.
fn tell_refused(worker: &Worker, session: &Session) {
    session.counters.error(Reason::Refused);
    worker.replies.unreachable(session.flow.frontend, session.flow.client);
}

/// The session of a flow; begins one where there is none.
fn session(worker: &Rc<Worker>, flow: Flow) -> Option<Arc<Session>> {
    let frontend = Frontend { address: flow.frontend, protocol: Protocol::Udp };
    let metrics = &worker.shared.metrics.udp;
    let Some(target) = worker.view.borrow_mut().target(&frontend) else {
        metrics.unknown.inc();
        worker.replies.unreachable(flow.frontend, flow.client); // one of the node's own, to a VIP's other port
        return None;
    };
    let mut share = None;
    let begin = || {
        let taken = worker.shared.budget.take(1).ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
        share = Some(taken);
        begin(worker, flow, &target)
    };
    match worker.shared.sessions.find(flow, |backend| target.standing.binary_search(&backend).is_ok(), begin) {
        Ok(Found::Old(session)) => Some(session),
        Ok(Found::New(session)) => {
            metrics.accepts.inc();
            target.counters.connections(Path::Listener, 1);
            session.touch(worker.shared.sessions.now(), false);
            if let Some(share) = share {
                drop(tokio::task::spawn_local(receive(worker.clone(), session.clone(), share)));
            }
            Some(session)
        }
        Ok(Found::Full) => {
            metrics.limited.inc();
            target.counters.error(Reason::Limit);
            None
        }
        Err(error) => {
            let reason = match error.raw_os_error() {
                _ if target.backends.is_empty() => Reason::NoEndpoint,
                Some(libc::EMFILE | libc::ENFILE) => {
                    metrics.limited.inc();
                    Reason::Limit
                }
                _ => Reason::Unreachable,
            };
            target.counters.error(reason);
            if matches!(reason, Reason::NoEndpoint) {
                worker.replies.unreachable(flow.frontend, flow.client);
            }
            tracing::debug!(?flow, %error, "no session");
            None
        }
    }
}

/// Makes a session's socket, connected to a backend of the target's.
fn begin(worker: &Worker, flow: Flow, target: &Target) -> io::Result<Session> {
    let count = target.backends.len();
    let chosen = target.backends.get(rand::random_range(0..count.max(1)));
    let backend = *chosen.ok_or(io::ErrorKind::ConnectionRefused)?;
    let keeps = worker.view.borrow_mut().keeps_client(target.kind, flow.client.ip(), backend);
    let mark = worker.shared.own_mark;
    let socket = match keeps {
        true => {
            let any = SocketAddr::new(flow.client.ip(), 0);
            // A port that a program chose, as where peers have one port at both ends, also carries what it says straight to
            // that backend, and our socket would take the answers away.
            let source = if worker.shared.sessions.is_local(flow.client.port()) { flow.client } else { any };
            match upstream(backend, Some(source), mark) {
                Ok(socket) => (socket, None),
                // Its port is taken, by a session of the same client socket with another frontend.
                Err(_) => (upstream(backend, Some(any), mark)?, None),
            }
        }
        false => {
            // The node's programs need ports too: half of them is theirs.
            let port = worker.shared.sessions.port().ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))?;
            (upstream(backend, None, mark)?, Some(port))
        }
    };
    Ok(Session::new(flow, backend, socket, target.counters.clone()))
}

fn upstream(backend: SocketAddr, source: Option<SocketAddr>, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(backend), Type::DGRAM.nonblocking(), Some(socket2::Protocol::UDP))?;
    socket.set_mark(mark)?;
    if backend.is_ipv4() {
        // Routers may fragment what is too large for a link further on, as they may a client's own datagrams.
        sys::set_option(&socket, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    }
    if let Some(source) = source {
        if source.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        socket.bind(&source.into())?;
    }
    socket.connect(&backend.into())?;
    Ok(socket)
}

/// A session in the gauges, until it is dropped.
struct Counted(Rc<Worker>, Arc<Session>);

impl Counted {
    fn new(worker: Rc<Worker>, session: Arc<Session>) -> Self {
        worker.shared.metrics.udp.active.inc();
        worker.shared.metrics.udp_sessions.inc();
        Self(worker, session)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let shared = &self.0.shared;
        shared.sessions.remove(&self.1);
        shared.metrics.udp.active.dec();
        shared.metrics.udp_sessions.dec();
        if std::thread::panicking() {
            shared.panics.inc();
        }
    }
}

/// Passes a session's replies to its client until it has been idle for long enough or has lost its place.
async fn receive(worker: Rc<Worker>, session: Arc<Session>, _share: Share) {
    let counted = Counted::new(worker, session);
    let Counted(worker, session) = &counted;
    let Ok(socket) = sys::watch(session.socket().clone()) else { return };
    let sessions = &worker.shared.sessions;
    let left = |session: &Session| session.ends().saturating_sub(sessions.now());
    let idle = tokio::time::sleep(left(session));
    tokio::pin!(idle);
    let mut turn = Turn::default();
    loop {
        tokio::select! {
            ready = socket.ready(sys::DATAGRAMS) => {
                let Ok(mut ready) = ready else { return };
                let over = {
                    let mut batch = worker.buffers.0.borrow_mut();
                    match ready.try_io(|socket| batch.receive(socket.get_ref().socket())) {
                        Ok(Ok(count)) => {
                            pass(worker, session, &batch);
                            turn.over(count)
                        }
                        Ok(Err(error)) => {
                            lost(worker, session, &error);
                            turn.over(BATCH)
                        }
                        Err(_) => turn.rest(), // nothing there: waits for more
                    }
                };
                if over {
                    tokio::task::yield_now().await;
                }
            }
            () = session.closed.notified() => return,
            () = &mut idle => {
                let left = left(session);
                if left.is_zero() {
                    return;
                }
                idle.as_mut().reset(Instant::now() + left);
            }
        }
    }
}

/// What the network says about datagrams that went to the backend.
fn lost(worker: &Worker, session: &Session, error: &io::Error) {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        tell_refused(worker, session);
    } else {
        tracing::debug!(backend = %session.backend, %error, "receiving replies");
    }
}

fn pass(worker: &Worker, session: &Session, batch: &ReceiveBatch) {
    session.touch(worker.shared.sessions.now(), true);
    let bytes: usize = batch.datagrams().map(|d| d.payload.len()).sum();
    session.counters.bytes(Direction::Out, bytes as u64);
    let payloads = batch.datagrams().map(|d| d.payload);
    let lost = worker.replies.send(session.flow.frontend, session.flow.client, payloads);
    worker.shared.metrics.udp_lost.inc_by(lost);
}
