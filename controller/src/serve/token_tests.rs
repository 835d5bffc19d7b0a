//! Who may subscribe with a token: the node that the API server's review names, over TLS with a certificate that may change.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sheave_api::proto::discovery_client::DiscoveryClient;
use sheave_api::proto::{self, from_controller, from_proxy};
use sheave_api::{content_hash, hash_to_bytes};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::{Nodes, Server, serve_trusted};
use crate::metrics::Metrics;
use crate::pki::{Authority, SERVER_NAME};
use crate::publish::{Publisher, Standing};
use crate::source::Relist;
use crate::trust::fake::{self, token};
use crate::trust::{Directory, Reviewer, Serving};

struct World {
    address: SocketAddr,
    serving: Arc<Serving>,
    directory: watch::Sender<Arc<Directory>>,
    nodes: Arc<Nodes>,
    metrics: Arc<Metrics>,
    _stop: watch::Sender<bool>,
}

/// The API server takes tokens of node `a` for good, and none else.
async fn world() -> World {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = Arc::new(Metrics::new());
    let publisher = Arc::new(Publisher::new(metrics.clone()));
    publisher.publish(Vec::new(), 0, Standing { ready: true, ..publisher.standing() });
    let (stop, stopping) = watch::channel(false);
    let client = fake::server(|_, review| match review["spec"]["token"].as_str() {
        Some(text) if text == token("a", u64::MAX) => fake::review("sheave-proxy", &["sheave-discovery"], Some("a")),
        _ => fake::not_authentic(),
    });
    let (nodes, serving) = (Arc::new(Nodes::new(metrics.clone())), Arc::new(Serving::default()));
    let directory = watch::Sender::new(Arc::new(Directory::default()));
    let server = Server {
        publisher,
        nodes: nodes.clone(),
        relist: Arc::new(Relist::default()),
        metrics: metrics.clone(),
        reviewer: Some(Arc::new(Reviewer::new(client, "sheave-system", metrics.clone()))),
        directory: directory.subscribe(),
        stopping,
    };
    let (address, serve) = serve_trusted(server, None, "127.0.0.1:0".parse().unwrap(), serving.clone()).await.unwrap();
    tokio::spawn(serve);
    World { address, serving, directory, nodes, metrics, _stop: stop }
}

struct Stream {
    send: mpsc::Sender<proto::FromProxy>,
    messages: Streaming<proto::FromController>,
}

impl World {
    /// Subscribes as `node` with a token, trusting `ca`.
    async fn subscribe(&self, ca: &Authority, token: Option<&str>, node: &str) -> Result<Stream, Status> {
        let tls =
            ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(ca.certificate()));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap().tls_config(tls).unwrap();
        let channel = endpoint.connect().await.map_err(|error| Status::unknown(error.to_string()))?;
        let (send, receive) = mpsc::channel(4);
        let hello = proto::Hello { node: node.into(), ..Default::default() };
        send.send(proto::FromProxy { message: Some(from_proxy::Message::Hello(hello)) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(receive));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let messages = DiscoveryClient::new(channel).stream(request).await?.into_inner();
        Ok(Stream { send, messages })
    }

    /// Subscribes and waits for the first message.
    async fn first(&self, ca: &Authority, token: Option<&str>, node: &str) -> Result<from_controller::Message, Status> {
        self.subscribe(ca, token, node).await?.next().await
    }
}

impl Stream {
    async fn next(&mut self) -> Result<from_controller::Message, Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.messages.message()).await;
        Ok(next.expect("a message comes in time")?.expect("the stream goes on").message.expect("it says something"))
    }
}

#[tokio::test]
async fn only_the_node_that_the_token_is_of_gets_a_stream() {
    let (world, ca, other) = (world().await, Authority::make().unwrap(), Authority::make().unwrap());
    let good = token("a", u64::MAX);
    assert_eq!(
        world.first(&ca, Some(&good), "a").await.unwrap_err().code(),
        Code::Unknown,
        "there is no certificate yet"
    );
    world.serving.sign(&ca, Instant::now()).unwrap();
    world.first(&ca, Some(&good), "a").await.unwrap();
    let refused = world.first(&ca, Some(&good), "b").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("\"a\"") && refused.message().contains("\"b\""), "{refused}");
    for bad in [None, Some("secret"), Some(token("b", 1).as_str())] {
        let refused = world.first(&ca, bad, "a").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{bad:?}: {refused}");
    }
    assert_eq!(world.metrics.streams_refused.with_label_values(&["identity"]).get(), 4);
    let stranger = world.first(&other, Some(&good), "a").await.unwrap_err();
    assert_eq!(stranger.code(), Code::Unknown, "the client doesn't take another CA's server: {stranger}");
    // Counted by the server's side, which hears of it after the client has given up.
    let counted = async {
        while world.metrics.handshakes_failed.get() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
}

#[tokio::test]
async fn a_certificate_changes_while_streams_stand() {
    let (world, one, other) = (world().await, Authority::make().unwrap(), Authority::make().unwrap());
    let good = token("a", u64::MAX);
    world.serving.sign(&one, Instant::now()).unwrap();
    let mut stream = world.subscribe(&one, Some(&good), "a").await.unwrap();
    stream.next().await.unwrap();
    world.serving.sign(&other, Instant::now()).unwrap();
    world.first(&other, Some(&good), "a").await.unwrap();
    assert_eq!(world.first(&one, Some(&good), "a").await.unwrap_err().code(), Code::Unknown);
    // The first stream stands and is told.
    world.directory.send_replace(Arc::new(Directory::new(vec![world.address], other.certificate().to_owned())));
    assert!(matches!(stream.next().await.unwrap(), from_controller::Message::Directory(_)));
}

#[tokio::test]
async fn the_directory_comes_first_and_its_acknowledgement_is_known() {
    let (world, ca) = (world().await, Authority::make().unwrap());
    world.serving.sign(&ca, Instant::now()).unwrap();
    world.directory.send_replace(Arc::new(Directory::new(vec![world.address], ca.certificate().to_owned())));
    let mut stream = world.subscribe(&ca, Some(&token("a", u64::MAX)), "a").await.unwrap();
    let from_controller::Message::Directory(directory) = stream.next().await.unwrap() else { panic!("no Directory") };
    assert_eq!((directory.controllers, directory.ca.as_str()), (vec![world.address.to_string()], ca.certificate()));
    assert!(matches!(stream.next().await.unwrap(), from_controller::Message::Update(_)));
    let hash = content_hash(ca.certificate().as_bytes());
    assert!(world.nodes.trusting(hash).is_empty());
    let remembered = proto::Remembered { ca_hash: hash_to_bytes(hash) };
    stream.send.send(proto::FromProxy { message: Some(from_proxy::Message::Remembered(remembered)) }).await.unwrap();
    let known = async {
        while world.nodes.trusting(hash) != ["a"] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.expect("the node trusts it");
}
