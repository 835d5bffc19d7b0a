//! HTTP/1.1 for Service ports that ask for it: a backend is chosen for each request, upstream connections are pooled.
//!
//! pingora carries the protocol inside our own runtimes (its `Server`, which owns signals and threads, is not used); tower
//! layers carry policy (`policy`), so that what a mesh adds later is a layer and no new path. One [`Gateway`] per runtime:
//! its pool of upstream connections never crosses cores. Backends see the node's address; the client's is in X-Forwarded-For.

mod exchange;
mod policy;

use std::sync::Arc;
use std::time::Duration;

use pingora_core::apps::ServerApp as _;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::protocols::{GetSocketDigest as _, SocketDigest};
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use sheave_model::Snapshot;
use std::os::fd::AsRawFd as _;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::metrics::ServiceMetrics;
use exchange::Exchange;

/// Idle upstream connections kept per runtime.
const POOL: usize = 512;

/// How upstream connections are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// SO_MARK of our own sockets, which rules and hooks skip.
    pub(crate) mark_own: u32,
    /// Requests that one runtime carries at a time; more are answered with 503.
    pub(crate) requests: usize,
    /// Per try to connect.
    pub(crate) connect_timeout: Duration,
}

/// Serves HTTP on accepted connections.
pub(crate) struct Gateway {
    proxy: Arc<HttpProxy<Exchange>>,
    stop: watch::Receiver<bool>,
}

impl Gateway {
    /// A gateway that reads frontends from `snapshots` at each request. After `stop` turns true, connections end with
    /// the request they carry.
    pub(crate) fn new(
        options: Options,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        services: Arc<ServiceMetrics>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let conf = ServerConf { upstream_keepalive_pool_size: POOL, threads: 1, ..ServerConf::default() };
        let exchange = Exchange::new(options, snapshots, services);
        Self { proxy: Arc::new(http_proxy(&Arc::new(conf), exchange)), stop }
    }

    /// Carries a connection's requests until either side ends it. The socket's own address says which frontend was meant.
    pub(crate) async fn serve(&self, socket: TcpStream) {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        let mut stream = Stream::from(socket);
        stream.set_socket_digest(digest);
        self.proxy.process_new(Box::new(stream), &self.stop).await;
    }
}
