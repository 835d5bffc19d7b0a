//! The stream over a real unix socket, in one process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sheave_api::proto::discovery_client::DiscoveryClient;
use sheave_api::proto::{self, from_controller, from_proxy};
use sheave_api::{
    Encoded, MAX_CHUNK_BYTES, content_hash, decode_update, encode_resource, known, name_of_key, view_to_proto,
};
use sheave_model::{ContentHash, NodeFacts, Resource, ResourceKey, ServiceKey, View};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};

use super::stream::IN_FLIGHT;
use super::{Desk, Nodes, Server, bind_unix, serve_unix};
use crate::engine::{Question, Wrong};
use crate::metrics::Metrics;
use crate::publish::{Change, Publisher, Standing};
use crate::source::Relist;

pub(super) struct World {
    publisher: Arc<Publisher>,
    pub(super) metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with_places(100)
    }

    fn with_places(places: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("discovery.sock");
        let metrics = Arc::new(Metrics::new());
        let world = Self {
            publisher: Arc::new(Publisher::new(metrics.clone())),
            stop: watch::Sender::new(false),
            metrics,
            path,
            _dir: dir,
        };
        let server = Server {
            publisher: world.publisher.clone(),
            nodes: Arc::new(Nodes::with_places(world.metrics.clone(), places)),
            relist: Arc::new(Relist::default()),
            metrics: world.metrics.clone(),
            reviewer: None,
            directory: watch::Sender::new(Arc::default()).subscribe(),
            stopping: world.stop.subscribe(),
        };
        let (questions, mut asked) = mpsc::channel::<Question>(1);
        // An index with which nothing is wrong.
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                let _ = question.send(Wrong::default());
            }
        });
        let desk = Desk::new(server.clone(), "test".to_owned(), questions);
        tokio::spawn(serve_unix(server, Some(desk), bind_unix(&world.path).unwrap().0));
        world
    }

    pub(super) fn publish(&self, version: u64, changes: Vec<Change>) {
        self.publisher.publish(changes, version, Standing { ready: true, view: view(version), ..Standing::new() });
    }

    pub(super) async fn connect(&self) -> Channel {
        let path = self.path.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        });
        Endpoint::from_static("http://controller.sheave").connect_with_connector(connect).await.unwrap()
    }

    pub(super) async fn subscribe(&self, held: &BTreeMap<ResourceKey, ContentHash>, at: View) -> Proxy {
        self.try_subscribe(held, at).await.unwrap()
    }

    async fn try_subscribe(&self, held: &BTreeMap<ResourceKey, ContentHash>, at: View) -> Result<Proxy, Status> {
        let channel = self.connect().await;
        let (send, receive) = mpsc::channel(16);
        let hello = proto::Hello {
            node: "n1".into(),
            known: held.iter().map(|(key, hash)| known(key, *hash)).collect(),
            view: Some(view_to_proto(&at, Duration::ZERO)),
            version: "test".into(),
        };
        send.send(proto::FromProxy { message: Some(from_proxy::Message::Hello(hello)) }).await.unwrap();
        let mut client = DiscoveryClient::new(channel).max_decoding_message_size(sheave_api::MAX_MESSAGE_BYTES);
        let updates = client.stream(ReceiverStream::new(receive)).await?.into_inner();
        Ok(Proxy { held: held.clone(), send, updates })
    }
}

fn view(version: u64) -> View {
    View { source: "a".into(), versions: [("Pod".to_owned(), version)].into() }
}

pub(super) struct Proxy {
    held: BTreeMap<ResourceKey, ContentHash>,
    pub(super) send: mpsc::Sender<proto::FromProxy>,
    pub(super) updates: Streaming<proto::FromController>,
}

impl Proxy {
    pub(super) async fn update(&mut self) -> Result<proto::Update, Status> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.updates.message());
        let message = next.await.expect("an update comes in time")?.expect("the stream goes on").message;
        let Some(from_controller::Message::Update(update)) = message else { panic!("only updates come") };
        for upsert in &update.upserts {
            let key = sheave_api::key_from_name(upsert.name.as_ref().unwrap()).unwrap();
            self.held.insert(key, content_hash(&upsert.resource));
        }
        for name in &update.removals {
            self.held.remove(&sheave_api::key_from_name(name).unwrap());
        }
        Ok(update)
    }

    pub(super) async fn ack(&self, nonce: u64, nacks: Vec<proto::Nack>) {
        let ack = proto::Ack { nonce, nacks };
        self.send.send(proto::FromProxy { message: Some(from_proxy::Message::Ack(ack)) }).await.unwrap();
    }

    /// Takes the first series and acknowledges it. Returns how many chunks it had.
    pub(super) async fn first(&mut self) -> usize {
        for count in 1.. {
            let update = self.update().await.unwrap();
            self.ack(update.nonce, Vec::new()).await;
            if update.last_of_initial {
                return count;
            }
            assert!(update.removals.is_empty(), "removals come with the last chunk");
        }
        unreachable!("the loop has no end")
    }
}

fn service(name: &str) -> ResourceKey {
    ResourceKey::Service(ServiceKey::new("ns", name))
}

fn blob(size: usize, fill: u8) -> Encoded {
    let bytes = Bytes::from(vec![fill; size]);
    Encoded { hash: content_hash(&bytes), bytes }
}

pub(super) fn node(name: &str) -> Change {
    let facts = Resource::Node(NodeFacts { name: name.into(), ..NodeFacts::default() });
    (facts.key(), Some(encode_resource(&facts)))
}

#[tokio::test]
async fn a_proxy_gets_its_own_node_all_services_and_then_what_changes() {
    let world = World::new();
    world.publish(1, vec![node("n1"), node("n2"), (service("a"), Some(blob(9, 1))), (service("b"), Some(blob(9, 2)))]);
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    assert_eq!(proxy.first().await, 1);
    let n1 = ResourceKey::Node("n1".into());
    assert_eq!(proxy.held.keys().cloned().collect::<Vec<_>>(), [service("a"), service("b"), n1.clone()]);

    world.publish(2, vec![(service("a"), None), (service("c"), Some(blob(9, 3)))]);
    let update = proxy.update().await.unwrap();
    let decoded = decode_update(update);
    assert_eq!((decoded.delta.view, decoded.delta.observed_unix_nanos), (view(2), 2));
    assert_eq!(decoded.delta.removals, [service("a")]);
    proxy.ack(decoded.nonce, Vec::new()).await;
    assert_eq!(proxy.held.keys().cloned().collect::<Vec<_>>(), [service("b"), service("c"), n1]);
}

#[tokio::test]
async fn a_proxy_that_comes_back_gets_differences_only() {
    let world = World::new();
    world.publish(5, vec![(service("a"), Some(blob(9, 1))), (service("b"), Some(blob(9, 2)))]);
    let held = [(service("a"), blob(9, 1).hash), (service("gone"), blob(9, 7).hash)].into();
    let mut proxy = world.subscribe(&held, view(4)).await;
    let update = proxy.update().await.unwrap();
    assert!(update.last_of_initial);
    assert_eq!(
        update.upserts.iter().map(|u| u.name.clone().unwrap()).collect::<Vec<_>>(),
        [name_of_key(&service("b"))]
    );
    assert_eq!(update.removals, [name_of_key(&service("gone"))]);
}

#[tokio::test]
async fn a_large_first_series_comes_in_chunks() {
    let world = World::new();
    let changes = (0..30).map(|n| (service(&n.to_string()), Some(blob(200_000, n))));
    world.publish(1, changes.chain([(service("huge"), Some(blob(2 * MAX_CHUNK_BYTES, 1)))]).collect());
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    assert_eq!(proxy.first().await, 9, "30 x 200 kB at four a chunk, and the huge one alone");
    assert_eq!(proxy.held.len(), 31);
}

#[tokio::test]
async fn a_slow_proxy_gets_the_latest_and_not_every_version() {
    let world = World::new();
    world.publish(1, vec![(service("a"), Some(blob(9, 0)))]);
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    assert!(proxy.update().await.unwrap().last_of_initial);
    // Nothing is acknowledged, so only so many updates come.
    let mut last = 1;
    for version in 1..=200 {
        world.publish(version, vec![(service("a"), Some(blob(9, version as u8)))]);
        tokio::task::yield_now().await;
    }
    for _ in 1..IN_FLIGHT {
        last = proxy.update().await.unwrap().nonce;
    }
    let early = tokio::time::timeout(Duration::from_millis(100), proxy.updates.message()).await;
    assert!(early.is_err(), "no more than {IN_FLIGHT} are in flight: {early:?}");
    proxy.ack(last, Vec::new()).await;
    if proxy.held[&service("a")] != blob(9, 200).hash {
        proxy.update().await.unwrap();
    }
    assert_eq!(proxy.held[&service("a")], blob(9, 200).hash);
}

#[tokio::test]
async fn a_refusal_is_counted_and_the_rest_goes_on() {
    let world = World::new();
    world.publish(1, vec![(service("a"), Some(blob(9, 0)))]);
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    let update = proxy.update().await.unwrap();
    let nack = proto::Nack { name: update.upserts[0].name.clone(), reason: "no".into() };
    proxy.ack(update.nonce, vec![nack]).await;
    world.publish(2, vec![(service("b"), Some(blob(9, 1)))]);
    let update = proxy.update().await.unwrap();
    proxy.ack(update.nonce, Vec::new()).await;
    world.publish(3, vec![(service("b"), Some(blob(9, 2)))]);
    proxy.update().await.unwrap();
    assert_eq!((world.metrics.nacks.get(), world.metrics.subscribers.get()), (1, 1));
}

#[tokio::test]
async fn a_replica_that_lags_serves_once_it_has_caught_up() {
    let world = World::new();
    world.publish(3, vec![(service("a"), Some(blob(9, 0)))]);
    let publisher = world.publisher.clone();
    let mut proxy = world.subscribe(&BTreeMap::new(), view(4)).await;
    let waiting = tokio::time::timeout(Duration::from_millis(100), proxy.updates.message()).await;
    assert!(waiting.is_err(), "nothing older is served: {waiting:?}");
    let mut standing = publisher.standing();
    standing.view = view(4);
    publisher.publish(vec![(service("a"), Some(blob(9, 1)))], 0, standing);
    assert_eq!(proxy.first().await, 1);
    assert_eq!(proxy.held[&service("a")], blob(9, 1).hash);
}

#[tokio::test]
async fn a_replica_that_is_not_ready_says_so_without_waiting_for_hello() {
    let world = World::new();
    let (_silent, hello) = mpsc::channel(1);
    let mut client = DiscoveryClient::new(world.connect().await);
    let asked = client.stream(ReceiverStream::new(hello));
    let refused = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("it answers at once").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(world.metrics.streams_refused.with_label_values(&["not_ready"]).get(), 1);
}

#[tokio::test]
async fn a_stream_counts_from_its_first_moment() {
    let world = World::with_places(1);
    world.publish(3, Vec::new());
    let lagging = world.subscribe(&BTreeMap::new(), view(4)).await;
    let refused = world.try_subscribe(&BTreeMap::new(), View::default()).await.err().expect("there is no place");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert_eq!(world.metrics.subscribers.get(), 0, "the other one still waits at the gate");
    world.publish(4, Vec::new());
    drop(lagging);
    let again = async {
        while world.try_subscribe(&BTreeMap::new(), View::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("its place is free again");
}

#[tokio::test]
async fn the_end_of_the_program_sends_proxies_elsewhere() {
    let world = World::new();
    world.publish(1, Vec::new());
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    proxy.first().await;
    world.stop.send_replace(true);
    assert_eq!(proxy.update().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_message_out_of_turn_ends_the_stream() {
    let world = World::new();
    world.publish(1, Vec::new());
    let mut proxy = world.subscribe(&BTreeMap::new(), View::default()).await;
    proxy.first().await;
    proxy.ack(77, Vec::new()).await;
    assert_eq!(proxy.update().await.unwrap_err().code(), Code::InvalidArgument);
}
