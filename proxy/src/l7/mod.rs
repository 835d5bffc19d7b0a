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

/// How long a connection without a request may still begin one once it should end: one may be on its way, the first of a
/// connection that was just accepted above all.
const LAST_REQUEST: Duration = Duration::from_millis(100);

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
    /// the request they carry, and soon where they carry none. Call it within a runtime.
    pub(crate) fn new(
        options: Options,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        services: Arc<ServiceMetrics>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let conf = ServerConf { upstream_keepalive_pool_size: POOL, threads: 1, ..ServerConf::default() };
        let exchange = Exchange::new(options, snapshots, services);
        let proxy = Arc::new(http_proxy(&Arc::new(conf), exchange));
        tokio::spawn(end_idle(proxy.clone(), stop.clone()));
        Self { proxy, stop }
    }

    /// Carries a connection's requests until either side ends it. The socket's own address says which frontend was meant.
    pub(crate) async fn serve(&self, socket: TcpStream) {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        let mut stream = Stream::from(socket);
        stream.set_socket_digest(digest);
        self.proxy.process_new(Box::new(stream), &self.stop).await;
    }
}

/// Ends the connections that wait for a request once `stop` turns true: pingora itself looks at that only when one comes.
async fn end_idle(proxy: Arc<HttpProxy<Exchange>>, mut stop: watch::Receiver<bool>) {
    // An error means that the thread ends, and its connections with it.
    if stop.wait_for(|stop| *stop).await.is_ok() {
        tokio::time::sleep(LAST_REQUEST).await;
        proxy.cleanup().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{delta, service};
    use sheave_model::Store;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::sync::Notify;

    /// A frontend at one address with one backend at another.
    fn snapshot(frontend: SocketAddr, backend: SocketAddr) -> watch::Receiver<Arc<Snapshot>> {
        let mut service = service("a", &frontend.ip().to_string());
        (service.ports[0].port, service.ports[0].node_port) = (frontend.port(), None);
        (service.endpoints[0].address, service.endpoints[0].ports) = (backend.ip(), vec![backend.port()]);
        let mut store = Store::default();
        store.apply(delta(vec![service]));
        watch::Sender::new(Arc::new(store.snapshot().clone())).subscribe()
    }

    /// Answers one request on each connection: says when it has come, and waits until it may answer.
    async fn backend(listener: TcpListener, come: Arc<Notify>, may_answer: watch::Receiver<bool>) {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (come, mut may_answer) = (come.clone(), may_answer.clone());
            tokio::spawn(async move {
                stream.read_exact(&mut [0]).await.unwrap();
                come.notify_one();
                may_answer.wait_for(|may| *may).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
            });
        }
    }

    /// All that comes until the connection ends.
    async fn rest(mut client: TcpStream) -> String {
        let mut all = String::new();
        let read = tokio::time::timeout(Duration::from_secs(10), client.read_to_string(&mut all)).await;
        read.expect("the connection ends").unwrap();
        all
    }

    #[tokio::test]
    async fn once_it_stops_idle_connections_end_and_requests_are_answered() {
        let any = || TcpListener::bind("127.0.0.1:0");
        let (clients, backends) = (any().await.unwrap(), any().await.unwrap());
        let frontend = clients.local_addr().unwrap();
        let snapshots = snapshot(frontend, backends.local_addr().unwrap());
        let (come, may_answer, stop) = (Arc::new(Notify::new()), watch::Sender::new(false), watch::Sender::new(false));
        tokio::spawn(backend(backends, come.clone(), may_answer.subscribe()));
        let options = Options { mark_own: 1, requests: 9, connect_timeout: Duration::from_secs(1) };
        let gateway = Arc::new(Gateway::new(options, snapshots, ServiceMetrics::new(1), stop.subscribe()));
        let connect = async || {
            let client = TcpStream::connect(frontend).await.unwrap();
            let (accepted, gateway) = (clients.accept().await.unwrap().0, gateway.clone());
            tokio::spawn(async move { gateway.serve(accepted).await });
            client
        };
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let (mut under_way, idle, mut late) = (connect().await, connect().await, connect().await);
        under_way.write_all(request).await.unwrap();
        come.notified().await;

        stop.send_replace(true);
        late.write_all(request).await.unwrap();
        assert_eq!(rest(idle).await, "");
        may_answer.send_replace(true);
        for client in [under_way, late] {
            let answer = rest(client).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
        }
    }
}
