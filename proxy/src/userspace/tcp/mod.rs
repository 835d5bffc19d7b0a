//! TCP: accepts connections to every frontend on two transparent listeners per thread and carries them to a backend.

mod connect;
mod pipes;
mod relay;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use sheave_model::{AppProtocol, Frontend, Protocol};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::budget::Share;
use super::view::Target;
use super::worker::Worker;
use crate::metrics::Path;
use connect::Source;
use relay::Relay;

pub(crate) use pipes::Pipes;
pub(crate) use relay::reset;

/// Descriptors of a connection: its two sockets.
const DESCRIPTORS: u64 = 2;
/// Connections that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How long accepting pauses where the system is out of descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// The loopback address that a family's listeners are bound to. tproxy names it; clients never see it.
pub(crate) const fn loopback(v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) }
}

/// A bound socket that doesn't listen yet: until it does, connections to frontends are delayed and not refused.
///
/// # Errors
/// Where the port is taken, or the family or a privilege is missing.
pub(crate) fn bind(v4: bool, port: u16, mark: u32) -> io::Result<Socket> {
    let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(socket2::Protocol::TCP))?;
    if v4 {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit what is set here.
    socket.set_mark(mark)?;
    connect::tune(&socket)?;
    socket.bind(&SocketAddr::new(loopback(v4), port).into())?;
    Ok(socket)
}

/// Starts to listen on a bound socket.
///
/// # Errors
/// Where the kernel refuses.
pub(crate) fn listen(socket: Socket) -> io::Result<TcpListener> {
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `stop` says so, then takes what is already waiting and closes the listener.
pub(crate) async fn accept(worker: Rc<Worker>, listener: TcpListener, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => take(&worker, stream, client),
                Err(e) if exhausted(&e) => {
                    worker.shared.metrics.tcp.limited.inc();
                    tokio::time::sleep(EXHAUSTED).await;
                }
                Err(e) => tracing::debug!(error = %e, "a connection ended before it was accepted"),
            },
            () = &mut stop => return,
        }
    }
}

fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Starts what an accepted connection needs, or resets it.
fn take(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr) {
    let metrics = &worker.shared.metrics.tcp;
    metrics.accepts.inc();
    let Ok(local) = stream.local_addr() else {
        return; // it is gone already
    };
    let frontend = Frontend::new(local.ip(), local.port(), Protocol::Tcp);
    let Some(target) = worker.view.borrow_mut().target(&frontend) else {
        metrics.unknown.inc();
        return reset(&stream);
    };
    let Some(share) = worker.shared.budget.take(DESCRIPTORS) else {
        metrics.limited.inc();
        target.counters.error(crate::metrics::Reason::Limit);
        return reset(&stream);
    };
    target.counters.connections(Path::Listener, 1);
    let open = Open::new(worker.clone(), share);
    match target.app {
        AppProtocol::Opaque => drop(tokio::task::spawn_local(carry(open, stream, client, frontend, target))),
        AppProtocol::Http => drop(tokio::task::spawn_local(async move {
            let gateway = open.worker.gateway();
            gateway.serve(stream).await;
            drop(open); // counted until here
        })),
    }
}

/// A connection that is open: counted, and its descriptors taken, until it is dropped.
struct Open {
    worker: Rc<Worker>,
    _share: Share,
}

impl Open {
    fn new(worker: Rc<Worker>, share: Share) -> Self {
        worker.shared.metrics.tcp.active.inc();
        worker.open.set(worker.open.get() + 1);
        Self { worker, _share: share }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.shared.metrics.tcp.active.dec();
        self.worker.open.set(self.worker.open.get() - 1);
        if std::thread::panicking() {
            self.worker.shared.panics.inc();
        }
    }
}

async fn carry(open: Open, stream: TcpStream, client: SocketAddr, frontend: Frontend, target: Rc<Target>) {
    let worker = &open.worker;
    let mark = worker.shared.own_mark;
    let mut first = Some(target.clone());
    let backends = || {
        // Each round sees the endpoints of its time; a frontend that is gone has none.
        let now = first.take().or_else(|| worker.view.borrow_mut().target(&frontend));
        now.map(|target| target.backends.to_vec()).unwrap_or_default()
    };
    let begin = |backend, tries| {
        let keeps = worker.view.borrow_mut().keeps_client(target.kind, client.ip(), backend);
        let source = match (keeps, tries) {
            (false, _) => Source::Node,
            (true, 0) => Source::Client(client),
            // A connection of the client's own, straight to the backend, may have its port there.
            (true, _) => Source::ClientAddress(client.ip()),
        };
        connect::begin(backend, source, mark)
    };
    let connected = connect::connect(backends, begin).await;
    match connected {
        Ok((upstream, _)) => {
            let relay = Relay::new(stream, upstream, worker.pipes.clone());
            if let Err(error) = relay.run(&target.counters).await {
                tracing::debug!(%client, %frontend, %error, "connection broken");
            }
        }
        Err(reason) => {
            target.counters.error(reason);
            tracing::debug!(%client, %frontend, ?reason, service = %target.service, "no backend reached");
            reset(&stream);
        }
    }
}
