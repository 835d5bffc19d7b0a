//! Serves discovery: one gRPC stream per proxy, over TLS with client certificates or tokens, and over a unix socket. Beside it,
//! what operators ask (`operations`), of proxies too (`relay`).

mod auth;
mod gate;
mod handshake;
mod listen;
mod nodes;
mod operations;
#[cfg(test)]
mod operations_tests;
mod relay;
mod stream;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
#[cfg(test)]
mod token_tests;
mod unix;

use std::sync::Arc;
use std::time::Duration;

use sheave_api::proto::discovery_server::Discovery;
use sheave_api::proto::{FromController, FromProxy};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::Extensions;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::warn;

use self::auth::Peer;
pub(crate) use self::listen::{serve_tls, serve_trusted, serve_unix};
pub(crate) use self::nodes::Nodes;
pub(crate) use self::operations::Desk;
pub(crate) use self::unix::{BoundPath, bind_unix};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::source::Relist;
use crate::trust::{Directory, Reviewer};

/// Streams at a time, from their first moment on: a large cluster, with room for reconnects.
const MAX_SUBSCRIBERS: usize = 10_000;

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
    /// Says which node a token is of; none where proxies show certificates.
    pub(crate) reviewer: Option<Arc<Reviewer>>,
    /// Where replicas are and who signs for them; nothing where proxies are told otherwise.
    pub(crate) directory: watch::Receiver<Arc<Directory>>,
    /// True once the program ends.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Server {
    /// Counts a refusal on its way out.
    fn refuse(&self, reason: &'static str, status: Status) -> Status {
        self.metrics.streams_refused.with_label_values(&[reason]).inc();
        status
    }

    /// The same for somebody who is not who they should be, and says so in the log.
    fn refuse_peer(&self, reason: &'static str, status: Status) -> Status {
        if self.nodes.may_complain() {
            warn!(reason = status.message(), "a proxy is refused");
        }
        self.refuse(reason, status)
    }

    /// Who asks, and for whom that may speak.
    async fn peer(&self, metadata: &MetadataMap, extensions: &Extensions) -> Result<Peer, Status> {
        let peer = match &self.reviewer {
            Some(reviewer) => Peer::by_token(reviewer, metadata, extensions).await,
            None => Peer::of(extensions),
        };
        peer.map_err(|status| {
            let reason = if status.code() == Code::Unavailable { "unreviewed" } else { "identity" };
            self.refuse_peer(reason, status)
        })
    }
}

#[tonic::async_trait]
impl Discovery for Server {
    type StreamStream = ReceiverStream<Result<FromController, Status>>;

    async fn stream(&self, request: Request<Streaming<FromProxy>>) -> Result<Response<Self::StreamStream>, Status> {
        let full = || self.refuse("too_many", Status::resource_exhausted("this replica serves all that it may"));
        let place = self.nodes.place().ok_or_else(full)?;
        // Before Hello is read, which names all that a proxy holds: another replica may well be ready.
        if !self.publisher.is_ready() {
            let why = "this replica hasn't listed everything yet";
            return Err(self.refuse("not_ready", Status::unavailable(why)));
        }
        let peer = self.peer(request.metadata(), request.extensions()).await?;
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let server = self.clone();
        let incoming = request.into_inner();
        tokio::spawn(async move {
            let _place = place;
            if let Err(status) = stream::run(&server, &peer, incoming, &outgoing).await {
                // The proxy may be gone.
                let _ = outgoing.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
