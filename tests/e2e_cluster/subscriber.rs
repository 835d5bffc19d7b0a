//! A proxy's end of discovery and nothing else: subscribes as some node with some token, and says what a controller sent.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sheave_api::proto::discovery_client::DiscoveryClient;
use sheave_api::proto::{self, from_controller, from_proxy, resource_name};
use tokio::runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// The name in every replica's certificate.
const SERVER_NAME: &str = "controller.sheave";
/// A whole first series, with a review of the token before it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A controller's first series.
#[derive(Debug, Default)]
pub(crate) struct First {
    /// Services, by namespace and name.
    pub(crate) services: BTreeSet<String>,
    /// Nodes whose facts were in it.
    pub(crate) nodes: BTreeSet<String>,
}

impl First {
    fn note(&mut self, update: &proto::Update) {
        for name in update.upserts.iter().filter_map(|upsert| upsert.name.as_ref()?.name.as_ref()) {
            match name {
                resource_name::Name::Service(it) => drop(self.services.insert(format!("{}/{}", it.namespace, it.name))),
                resource_name::Name::Node(it) => drop(self.nodes.insert(it.clone())),
                resource_name::Name::Cluster(_) => {}
            }
        }
    }
}

/// Subscribes at `controller`, which a CA of `ca` (PEM) signed for; the inner error is the controller's refusal.
pub(crate) fn subscribe(
    controller: SocketAddr,
    ca: &str,
    token: Option<&str>,
    node: &str,
) -> Result<Result<First, Status>> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let tls = ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(ca));
    let asked = async {
        let channel = Endpoint::from_shared(format!("https://{controller}"))?.tls_config(tls)?.connect().await?;
        anyhow::Ok(first(DiscoveryClient::new(channel), token, node).await)
    };
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, asked).await })
        .with_context(|| format!("{controller} has not sent a first series within {PATIENCE:?}"))?
}

async fn first(
    mut client: DiscoveryClient<tonic::transport::Channel>,
    token: Option<&str>,
    node: &str,
) -> Result<First, Status> {
    let (send, receive) = mpsc::channel(4);
    let say = async |message| {
        send.send(proto::FromProxy { message: Some(message) }).await.map_err(|_| Status::cancelled("the stream ended"))
    };
    say(from_proxy::Message::Hello(proto::Hello { node: node.to_owned(), ..Default::default() })).await?;
    let mut request = Request::new(ReceiverStream::new(receive));
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().map_err(|_| Status::invalid_argument("no token at all"))?;
        request.metadata_mut().insert("authorization", value);
    }
    let mut messages = client.stream(request).await?.into_inner();
    let mut first = First::default();
    while let Some(message) = messages.message().await? {
        let Some(from_controller::Message::Update(update)) = message.message else { continue };
        first.note(&update);
        if update.last_of_initial {
            return Ok(first);
        }
        say(from_proxy::Message::Ack(proto::Ack { nonce: update.nonce, nacks: Vec::new() })).await?;
    }
    Err(Status::cancelled("the stream ended before its first series"))
}
