//! Serves discovery: one gRPC stream per proxy, over TLS with client certificates and over a unix socket.

mod auth;
mod gate;
mod listen;
mod nodes;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
mod unix;

use std::sync::Arc;
use std::time::Duration;

use sheave_api::proto::discovery_server::Discovery;
use sheave_api::proto::{FromController, FromProxy};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::auth::Peer;
pub(crate) use self::listen::{serve_tls, serve_unix};
pub(crate) use self::nodes::Nodes;
pub(crate) use self::unix::{BoundPath, bind_unix};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::source::Relist;

/// Proxies that may be connected at a time: a large cluster, with room for reconnects.
const MAX_SUBSCRIBERS: i64 = 10_000;

/// Messages that wait between a subscriber's task and its connection. More would only age there.
const OUTGOING: usize = 1;

/// How long a proxy may take to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a replica that lags behind a proxy may take to catch up.
const CATCH_UP: Duration = Duration::from_secs(10);

/// What every stream needs.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) relist: Arc<Relist>,
    pub(crate) metrics: Arc<Metrics>,
    /// True once the program ends.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Server {
    /// Counts a refusal on its way out.
    fn refuse(&self, reason: &'static str, status: Status) -> Status {
        self.metrics.streams_refused.with_label_values(&[reason]).inc();
        status
    }
}

#[tonic::async_trait]
impl Discovery for Server {
    type StreamStream = ReceiverStream<Result<FromController, Status>>;

    async fn stream(&self, request: Request<Streaming<FromProxy>>) -> Result<Response<Self::StreamStream>, Status> {
        let peer = Peer::of(request.extensions()).map_err(|status| self.refuse("identity", status))?;
        if self.nodes.len() >= MAX_SUBSCRIBERS {
            return Err(self.refuse("too_many", Status::resource_exhausted("this replica serves all that it may")));
        }
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let server = self.clone();
        let incoming = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = stream::run(&server, &peer, incoming, &outgoing).await {
                // The proxy may be gone.
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
