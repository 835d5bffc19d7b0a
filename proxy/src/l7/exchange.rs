//! One HTTP exchange: asks the policy stack for a backend, tries another where one can't be reached, counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddr;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session};
use sheave_model::{Frontend, Protocol, Snapshot};
use tokio::sync::watch;

use super::Options;
use super::policy::{self, Admitted, Ask, Denied, Stack};
use crate::metrics::{Direction, Reason, ServiceMetrics};
use crate::userspace::keep_alive;

/// A pooled upstream connection is closed after this long without a request: well below the 60 s after which common
/// servers close theirs, so that a request seldom meets a connection that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// For all tries to connect of one request, as for a TCP connection.
const ALL_TRIES: Duration = Duration::from_secs(5);

/// Decides for every request; shared by all connections of a runtime.
pub(super) struct Exchange {
    stack: Stack,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    services: Arc<ServiceMetrics>,
    options: Options,
}

/// What one request carries along.
pub(super) struct Request {
    began: Instant,
    admitted: Option<Admitted>,
    tried: Vec<SocketAddr>,
    denied: Option<Denied>,
}

impl Exchange {
    pub(super) fn new(
        options: Options,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        services: Arc<ServiceMetrics>,
    ) -> Self {
        Self { stack: policy::stack(options.requests, snapshots.clone()), snapshots, services, options }
    }

    fn peer(&self, backend: SocketAddr) -> Box<HttpPeer> {
        let mut peer = HttpPeer::new(backend, false, String::new());
        peer.options.connection_timeout = Some(self.options.connect_timeout);
        peer.options.idle_timeout = Some(POOL_IDLE);
        let mark = self.options.mark_own;
        peer.options.upstream_tcp_sock_tweak_hook = Some(Arc::new(move |socket| {
            let socket = socket2::SockRef::from(socket);
            // An answer may take as long as it takes, but a backend that is gone must not keep request and client waiting.
            let prepared = keep_alive(&socket).and_then(|()| socket.set_mark(mark));
            prepared.map_err(|e| Error::because(ErrorType::SocketError, "preparing an upstream socket", e))
        }));
        Box::new(peer)
    }
}

/// The frontend that a session's client connected to.
fn frontend(session: &Session) -> Option<Frontend> {
    let address = inet(session.as_downstream().server_addr()?)?;
    Some(Frontend { address, protocol: Protocol::Tcp })
}

fn inet(address: &PeerAddr) -> Option<SocketAddr> {
    address.as_inet().copied()
}

#[async_trait]
impl ProxyHttp for Exchange {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request { began: Instant::now(), admitted: None, tried: Vec::new(), denied: None }
    }

    async fn upstream_peer(&self, session: &mut Session, request: &mut Request) -> Result<Box<HttpPeer>> {
        let Some(frontend) = frontend(session) else {
            return Error::e_explain(ErrorType::InternalError, "a connection without an address");
        };
        // A second try gives up its place first, so that it cannot be denied by itself.
        request.admitted = None;
        let ask = Ask { frontend, tried: request.tried.clone() };
        match policy::ask(&self.stack, ask).await {
            Ok(admitted) => {
                let peer = self.peer(admitted.backend);
                request.admitted = Some(admitted);
                Ok(peer)
            }
            Err(denied) => {
                request.denied = Some(denied);
                Error::e_explain(ErrorType::HTTPStatus(503), denied.to_string())
            }
        }
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Nothing has been sent yet, so another backend may have the request whatever its method.
        if let Some(admitted) = &request.admitted {
            request.tried.push(admitted.backend);
        }
        error.set_retry(request.began.elapsed() < ALL_TRIES);
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        _request: &mut Request,
    ) -> Result<()> {
        let client = session.as_downstream().client_addr().and_then(inet);
        if let Some(client) = client {
            upstream.append_header("x-forwarded-for", client.ip().to_canonical().to_string())?;
        }
        Ok(())
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        let Some(frontend) = frontend(session) else { return };
        let snapshot = self.snapshots.borrow().clone();
        let Some((route, state)) = snapshot.lookup(&frontend) else { return };
        let Some(port) = state.service.ports.get(route.port) else { return };
        let counters = self.services.of(&route.service, &port.name, port.protocol);
        counters.bytes(Direction::In, session.as_downstream().body_bytes_read() as u64);
        counters.bytes(Direction::Out, session.as_downstream().body_bytes_sent() as u64);
        match (request.denied, error) {
            (Some(Denied::NoEndpoint), _) => counters.error(Reason::NoEndpoint),
            (Some(Denied::AllTried), _) => counters.error(Reason::Unreachable),
            (Some(Denied::Busy), _) => counters.error(Reason::Limit),
            (None, Some(error)) if *error.esource() != ErrorSource::Downstream => counters.error(Reason::Broken),
            (None, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_backend_that_is_gone_is_noticed_by_its_upstream_socket() {
        let options = Options { mark_own: 1, requests: 1, connect_timeout: Duration::from_secs(1) };
        let exchange = Exchange::new(options, watch::Sender::default().subscribe(), ServiceMetrics::new(1));
        let peer = exchange.peer(([10, 0, 0, 1], 80).into());
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        peer.options.upstream_tcp_sock_tweak_hook.as_ref().unwrap()(&socket).unwrap();
        let socket = socket2::SockRef::from(&socket);
        assert!(socket.keepalive().unwrap());
        let (quiet, times) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_retries().unwrap());
        let noticed = quiet + socket.tcp_keepalive_interval().unwrap() * times;
        assert!(noticed <= Duration::from_secs(120), "{noticed:?}");
        assert_eq!(socket.mark().unwrap(), 1);
    }
}
