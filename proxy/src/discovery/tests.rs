//! The client against a controller that does what a test tells it, over a real unix socket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::discovery_server::{Discovery, DiscoveryServer};
use proto::{from_controller, from_proxy};
use sheave_api::{encode_resource, known_to_pair, name_of_key, proto, view_to_proto};
use sheave_model::{Resource, ResourceKey, Service, ServiceKey, View};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status as GrpcStatus, Streaming};

use super::stream::SILENCE;
use super::{Book, Client, Proof, Sources};
use crate::config::Endpoint;
use crate::metrics::Metrics;
use crate::status::{Source, Status};
use crate::store::tests::service;
use crate::store::{Options, StoreTask};
use crate::supervise::Shutdown;

const PATIENCE: Duration = Duration::from_secs(20);

/// One stream as the controller sees it.
struct Session {
    from_proxy: Streaming<proto::FromProxy>,
    to_proxy: mpsc::Sender<Result<proto::FromController, GrpcStatus>>,
}

impl Session {
    async fn next(&mut self) -> from_proxy::Message {
        let message = timeout(PATIENCE, self.from_proxy.next()).await.expect("a message comes");
        message.expect("the stream stands").expect("it is whole").message.expect("it says something")
    }

    async fn hello(&mut self) -> proto::Hello {
        match self.next().await {
            from_proxy::Message::Hello(hello) => hello,
            other => panic!("not Hello: {other:?}"),
        }
    }

    async fn ack(&mut self) -> proto::Ack {
        match self.next().await {
            from_proxy::Message::Ack(ack) => ack,
            other => panic!("not an Ack: {other:?}"),
        }
    }

    async fn silent(&mut self) {
        let waited = timeout(Duration::from_millis(150), self.from_proxy.next()).await;
        assert!(waited.is_err(), "nothing was expected: {waited:?}");
    }

    async fn send(&self, update: proto::Update) {
        let message = proto::FromController { message: Some(from_controller::Message::Update(update)) };
        self.to_proxy.send(Ok(message)).await.expect("the stream stands");
    }
}

struct Fake(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Discovery for Fake {
    type StreamStream = ReceiverStream<Result<proto::FromController, GrpcStatus>>;

    async fn stream(
        &self,
        request: Request<Streaming<proto::FromProxy>>,
    ) -> Result<Response<Self::StreamStream>, GrpcStatus> {
        let (to_proxy, queue) = mpsc::channel(16);
        let session = Session { from_proxy: request.into_inner(), to_proxy };
        self.0.send(session).await.map_err(|_| GrpcStatus::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

/// A controller at a socket. Dropping it ends the server and all its streams.
struct Controller {
    sessions: mpsc::Receiver<Session>,
    server: tokio::task::JoinHandle<()>,
}

impl Controller {
    fn start(socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, sessions) = mpsc::channel(4);
        let server = tonic::transport::Server::builder().add_service(DiscoveryServer::new(Fake(sender)));
        let serve = server.serve_with_incoming(UnixListenerStream::new(listener));
        let server = tokio::spawn(async move { serve.await.unwrap() });
        Self { sessions, server }
    }

    async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("the proxy dials").expect("the server stands")
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A client with its store, at sockets in a folder of its own.
struct World {
    dir: tempfile::TempDir,
    programmed: watch::Sender<u64>,
    client: Client,
}

impl World {
    fn new(replicas: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().unwrap();
        let status = Status::default();
        let options = Options { node: "n1".into(), node_addresses: Vec::new() };
        let (task, store) = StoreTask::new(options, None, metrics.clone(), status.clone());
        tokio::spawn(task.run());
        let programmed = watch::Sender::new(0);
        let given = (0..replicas).map(|n| Endpoint::Unix(dir.path().join(n.to_string()))).collect();
        let sources = Sources { given, ..Sources::default() };
        let client = Client {
            node: "n1".to_owned(),
            book: Book::open("n1", sources, metrics.clone()),
            proof: Proof::None,
            patience: None,
            store,
            programmed: programmed.subscribe(),
            answerer: Arc::new(|question| {
                let parts = vec![proto::NodeAnswer { error: question.node, ..proto::NodeAnswer::default() }; 2];
                Box::pin(async move { Box::new(parts.into_iter()) as _ })
            }),
            metrics,
            status,
            shutdown: Shutdown::new(),
        };
        tokio::spawn(client.clone().run());
        Self { dir, programmed, client }
    }

    /// Data paths that have everything at once.
    fn programs_at_once(&self) {
        let (mut snapshots, programmed) = (self.client.store.snapshots.clone(), self.programmed.clone());
        tokio::spawn(async move {
            while snapshots.changed().await.is_ok() {
                programmed.send_replace(snapshots.borrow_and_update().revision);
            }
        });
    }

    fn socket(&self, n: usize) -> PathBuf {
        self.dir.path().join(n.to_string())
    }

    async fn holds(&mut self, names: &[&str]) {
        let held = |snapshot: &Arc<sheave_model::Snapshot>| {
            snapshot.services.keys().map(|key| key.name.to_string()).collect::<Vec<_>>() == names
        };
        let waited = timeout(PATIENCE, self.client.store.snapshots.wait_for(held)).await;
        waited.expect("the snapshot comes").expect("the store stands");
    }
}

fn upsert(service: Service) -> proto::Upsert {
    let resource = Resource::Service(service);
    let encoded = encode_resource(&resource);
    proto::Upsert {
        name: Some(name_of_key(&resource.key())),
        hash: sheave_api::hash_to_bytes(encoded.hash),
        resource: encoded.bytes,
    }
}

fn update(nonce: u64, pods: u64, upserts: Vec<proto::Upsert>) -> proto::Update {
    let view = View { source: "s".into(), versions: [("Pod".to_owned(), pods)].into() };
    proto::Update {
        nonce,
        upserts,
        removals: Vec::new(),
        last_of_initial: true,
        view: Some(view_to_proto(&view, Duration::ZERO)),
        observed_unix_nanos: 1,
    }
}

#[tokio::test]
async fn an_update_is_acknowledged_once_it_is_programmed() {
    let mut world = World::new(1);
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    let hello = session.hello().await;
    assert_eq!((hello.node.as_str(), hello.known.len()), ("n1", 0));

    session.send(update(7, 1, vec![upsert(service("a", "10.0.0.1"))])).await;
    world.holds(&["a"]).await;
    session.silent().await;
    world.programmed.send_replace(1);
    assert_eq!(session.ack().await, proto::Ack { nonce: 7, nacks: Vec::new() });
    assert_eq!(world.client.metrics.programming_latency.get_sample_count(), 1);
    assert_eq!(world.client.status.get().source, Source::Controller);
    assert_eq!(world.client.metrics.stream_connected.get(), 1);
}

#[tokio::test]
async fn an_operators_question_is_answered_while_an_update_waits_to_be_programmed() {
    let mut world = World::new(1);
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    session.hello().await;
    session.send(update(7, 1, vec![upsert(service("a", "10.0.0.1"))])).await;
    world.holds(&["a"]).await;
    let question = proto::NodeQuestion { node: "n1".to_owned(), what: None };
    let question = proto::Question { id: 3, question: Some(question) };
    let message = proto::FromController { message: Some(from_controller::Message::Question(question)) };
    session.to_proxy.send(Ok(message)).await.unwrap();
    let mut lasts = Vec::new();
    for _ in 0..3 {
        let message = session.next().await;
        let from_proxy::Message::Answer(answer) = message else { panic!("no answer: {message:?}") };
        assert!(answer.id == 3 && answer.part.is_none_or(|part| part.error == "n1"));
        lasts.push(answer.last);
    }
    assert_eq!(lasts, [false, false, true]);
    world.programmed.send_replace(1);
    assert_eq!(session.ack().await.nonce, 7);
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_the_others_are_applied() {
    let mut world = World::new(1);
    world.programs_at_once();
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    session.hello().await;
    let mut bad = upsert(service("bad", "10.0.0.2"));
    bad.resource = bytes::Bytes::from_static(&[0xff; 9]);
    session.send(update(1, 1, vec![upsert(service("a", "10.0.0.1")), bad, upsert(service("b", "10.0.0.3"))])).await;
    world.holds(&["a", "b"]).await;
    let ack = session.ack().await;
    assert_eq!(ack.nacks.len(), 1);
    assert_eq!(ack.nacks[0].name, Some(name_of_key(&ResourceKey::Service(ServiceKey::new("ns", "bad")))));
    assert_eq!(world.client.metrics.nacks.get(), 1);
    assert!(world.client.status.get().refused.contains_key("service ns/bad"));
}

#[tokio::test]
async fn a_cut_stream_is_resumed_with_what_is_held() {
    let mut world = World::new(1);
    world.programs_at_once();
    let mut controller = Controller::start(&world.socket(0));
    for round in 0..5 {
        let mut session = controller.session().await;
        let hello = session.hello().await;
        assert_eq!(hello.known.len(), round as usize);
        for known in &hello.known {
            known_to_pair(known).unwrap();
        }
        if round > 0 {
            assert_eq!(hello.view.unwrap().versions["Pod"], round);
        }
        let name = format!("s{round}");
        session.send(update(1, round + 1, vec![upsert(service(&name, &format!("10.0.0.{}", round + 1)))])).await;
        let names: Vec<String> = (0..=round).map(|n| format!("s{n}")).collect();
        world.holds(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    assert_eq!(world.client.metrics.stream_reconnects.get(), 4);
}

#[tokio::test]
async fn a_replica_that_lags_is_left_for_the_next_and_nothing_goes_back() {
    let mut world = World::new(2);
    world.programs_at_once();
    let mut first = Controller::start(&world.socket(0));
    let mut session = first.session().await;
    session.hello().await;
    session.send(update(1, 9, vec![upsert(service("new", "10.0.0.1"))])).await;
    world.holds(&["new"]).await;
    drop((session, first));

    let mut lagging = Controller::start(&world.socket(1));
    let mut session = lagging.session().await;
    assert_eq!(session.hello().await.known.len(), 1);
    let mut old = update(1, 8, vec![upsert(service("old", "10.0.0.2"))]);
    old.removals = vec![name_of_key(&ResourceKey::Service(ServiceKey::new("ns", "new")))];
    session.send(old).await;

    let mut fresh = Controller::start(&world.socket(0));
    let mut session = fresh.session().await;
    session.hello().await;
    session.send(update(1, 9, Vec::new())).await;
    session.ack().await;
    world.holds(&["new"]).await;
    assert_eq!(world.client.metrics.stream_refused.get(), 1);
}

#[tokio::test]
async fn a_source_that_went_back_is_believed_when_nobody_says_otherwise() {
    let mut world = World::new(1);
    world.programs_at_once();
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    session.hello().await;
    session.send(update(1, 9, vec![upsert(service("new", "10.0.0.1"))])).await;
    world.holds(&["new"]).await;
    drop(session);
    for round in 0..4 {
        let mut session = controller.session().await;
        assert_eq!(session.hello().await.view.unwrap().versions["Pod"], 9);
        let mut restored = update(1, 2, vec![upsert(service("old", "10.0.0.2"))]);
        restored.removals = vec![name_of_key(&ResourceKey::Service(ServiceKey::new("ns", "new")))];
        session.send(restored).await;
        if round == 3 {
            session.ack().await;
        }
    }
    world.holds(&["old"]).await;
    assert_eq!(world.client.metrics.stream_refused.get(), 3);
    assert_eq!(world.client.store.snapshots.borrow().view.versions["Pod"], 2);
}

#[tokio::test]
async fn parts_of_the_first_series_are_acknowledged_before_they_are_programmed() {
    let world = World::new(1);
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    session.hello().await;
    let mut part = update(1, 1, vec![upsert(service("a", "10.0.0.1"))]);
    part.last_of_initial = false;
    session.send(part).await;
    assert_eq!(session.ack().await.nonce, 1);
    session.send(update(2, 1, Vec::new())).await;
    session.silent().await;
    world.programmed.send_replace(2);
    assert_eq!(session.ack().await.nonce, 2);
}

#[tokio::test]
async fn a_controller_that_falls_silent_is_left_for_the_next() {
    let world = World::new(2);
    world.programs_at_once();
    let (mut silent, mut next) = (Controller::start(&world.socket(0)), Controller::start(&world.socket(1)));
    let mut session = silent.session().await;
    session.hello().await;
    session.send(update(1, 1, vec![upsert(service("a", "10.0.0.1"))])).await;
    session.ack().await;
    // The HTTP/2 connection stands all the time.
    tokio::time::pause();
    tokio::time::advance(SILENCE + Duration::from_secs(1)).await;
    tokio::time::resume();
    let mut session = next.session().await;
    assert_eq!(session.hello().await.known.len(), 1);
}

#[tokio::test]
async fn a_view_that_is_old_is_not_in_step_and_its_age_is_shown() {
    let world = World::new(2);
    world.programs_at_once();
    let old = |nonce| {
        let mut old = update(nonce, 1, vec![upsert(service("a", "10.0.0.1"))]);
        let view = View { source: "s".into(), versions: [("Pod".to_owned(), 1)].into() };
        old.view = Some(view_to_proto(&view, Duration::from_secs(7200)));
        old
    };
    let mut first = Controller::start(&world.socket(0));
    let mut session = first.session().await;
    session.hello().await;
    session.send(old(1)).await;
    let mut second = Controller::start(&world.socket(1));
    let mut session = second.session().await;
    assert!(world.client.status.get().controller.is_none(), "never in step with the first");
    session.hello().await;
    session.send(old(1)).await;
    // Both are as old, so the first of them serves in the end.
    let mut session = first.session().await;
    session.hello().await;
    session.send(old(1)).await;
    session.ack().await;
    let state = world.client.status.get();
    assert!(state.controller.is_some());
    assert!(state.age().unwrap() >= Duration::from_secs(7200));
}

#[tokio::test]
async fn a_part_of_the_first_series_is_named_after_a_cut_though_nothing_was_published() {
    let world = World::new(1);
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    session.hello().await;
    let mut part = update(1, 1, vec![upsert(service("a", "10.0.0.1"))]);
    part.last_of_initial = false;
    session.send(part).await;
    session.ack().await;
    drop(session);
    let mut session = controller.session().await;
    let hello = session.hello().await;
    assert_eq!((hello.known.len(), hello.view.unwrap().versions["Pod"]), (1, 1));
    assert_eq!(world.client.store.snapshots.borrow().revision, 0);
}

#[tokio::test]
async fn removals_wait_for_the_end_of_the_first_series() {
    let mut world = World::new(1);
    world.programs_at_once();
    let mut controller = Controller::start(&world.socket(0));
    let mut session = controller.session().await;
    session.hello().await;
    session.send(update(1, 1, vec![upsert(service("a", "10.0.0.1"))])).await;
    world.holds(&["a"]).await;
    drop(session);

    let mut session = controller.session().await;
    session.hello().await;
    let mut early = update(1, 2, vec![upsert(service("b", "10.0.0.2"))]);
    early.removals = vec![name_of_key(&ResourceKey::Service(ServiceKey::new("ns", "a")))];
    early.last_of_initial = false;
    session.send(early).await;
    world.holds(&["a", "b"]).await;
    session.send(update(2, 2, Vec::new())).await;
    world.holds(&["b"]).await;
}
