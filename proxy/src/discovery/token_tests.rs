//! The client against replicas over TLS that take tokens: what it knows of them comes, changes, and is wrong in part.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use proto::discovery_server::{Discovery, DiscoveryServer};
use proto::{from_controller, from_proxy};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sheave_api::{content_hash, hash_to_bytes, proto};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status as GrpcStatus, Streaming};

use super::{Book, Client, Proof, Sources};
use crate::metrics::Metrics;
use crate::status::Status;
use crate::store::{Options, StoreTask};
use crate::supervise::{Shutdown, Stop};

const PATIENCE: Duration = Duration::from_secs(20);

/// A CA, and the replicas that it signs for.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }
}

/// One stream: the token that came with it, and both directions.
struct Session {
    token: String,
    from_proxy: Streaming<proto::FromProxy>,
    to_proxy: mpsc::Sender<Result<proto::FromController, GrpcStatus>>,
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
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let session = Session { token, from_proxy: request.into_inner(), to_proxy };
        self.0.send(session).await.map_err(|_| GrpcStatus::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

/// A replica. Dropping it ends its streams.
struct Replica {
    address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    server: tokio::task::JoinHandle<()>,
}

impl Replica {
    fn start(authority: &Authority) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["controller.sheave".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap().pem();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key.serialize_pem()));
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel(4);
        let router = Server::builder().tls_config(tls).unwrap().add_service(DiscoveryServer::new(Fake(sender)));
        let server = tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
        Self { address, sessions, server }
    }

    /// The next stream, after its Hello.
    async fn session(&mut self) -> Session {
        let mut session = timeout(PATIENCE, self.sessions.recv()).await.expect("the proxy dials").unwrap();
        assert!(matches!(session.next().await, from_proxy::Message::Hello(hello) if hello.node == "n1"));
        session
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Session {
    async fn next(&mut self) -> from_proxy::Message {
        let message = timeout(PATIENCE, self.from_proxy.next()).await.expect("a message comes");
        message.expect("the stream stands").expect("it is whole").message.expect("it says something")
    }

    async fn tell(&self, controllers: &[SocketAddr], ca: &str) {
        let controllers = controllers.iter().map(SocketAddr::to_string).collect();
        let directory = proto::Directory { controllers, ca: ca.to_owned() };
        let message = from_controller::Message::Directory(directory);
        self.to_proxy.send(Ok(proto::FromController { message: Some(message) })).await.unwrap();
    }
}

/// A node's folders, and the client in them while it runs.
struct World {
    folder: tempfile::TempDir,
    patience: Option<Duration>,
    last_resort: Option<SocketAddr>,
    /// Kept, because a client whose data paths have ended ends too.
    programmed: watch::Sender<u64>,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("mounted")).unwrap();
        std::fs::write(folder.path().join("token"), "first\n").unwrap();
        Self { folder, patience: None, last_resort: None, programmed: watch::Sender::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mount(&self, controllers: &[SocketAddr], ca: &str) {
        let lines: String = controllers.iter().map(|address| format!("{address}\n")).collect();
        std::fs::write(self.path("mounted/controllers"), lines).unwrap();
        std::fs::write(self.path("mounted/ca.crt"), ca).unwrap();
    }

    fn start(&self) -> Client {
        let (metrics, status, shutdown) = (Metrics::new().unwrap(), Status::default(), Shutdown::new());
        let options = Options { node: "n1".into(), node_addresses: Vec::new() };
        let (task, store) = StoreTask::new(options, None, metrics.clone(), status.clone());
        tokio::spawn(task.run());
        let sources = Sources {
            mounted: Some(self.path("mounted")),
            remembered: Some(self.path("discovery")),
            last_resort: self.last_resort,
            ..Sources::default()
        };
        let client = Client {
            node: "n1".to_owned(),
            book: Book::open("n1", sources, metrics.clone()),
            proof: Proof::Token(self.path("token")),
            patience: self.patience,
            store,
            programmed: self.programmed.subscribe(),
            answerer: std::sync::Arc::new(|_| Box::pin(async { Box::new(std::iter::empty()) as _ })),
            metrics,
            status,
            shutdown,
        };
        tokio::spawn(client.clone().run());
        tokio::spawn(client.book.clone().keep(client.shutdown.clone()));
        client
    }

    /// Waits until the next process would remember this.
    async fn remembers(&self, what: &str) {
        let kept = || std::fs::read_to_string(self.path("discovery")).unwrap_or_default();
        let wait = async {
            while !kept().contains(what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not remembered: {what}, but {}", kept()));
    }
}

/// Nobody listens there.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_proxy_starts_with_nothing_and_takes_the_config_map_when_it_comes() {
    let (world, authority) = (World::new(), Authority::new());
    let mut replica = Replica::start(&authority);
    let client = world.start();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(client.metrics.controllers_known.get(), 0);
    world.mount(&[replica.address], &authority.pem);
    let session = replica.session().await;
    assert_eq!((session.token.as_str(), client.metrics.controllers_known.get()), ("Bearer first", 1));
    std::fs::write(world.path("token"), "second").unwrap();
    drop(session);
    assert_eq!(replica.session().await.token, "Bearer second");
}

#[tokio::test]
async fn a_wrong_ca_or_stale_addresses_in_one_place_do_not_matter_while_another_is_right() {
    let (world, authority, wrong) = (World::new(), Authority::new(), Authority::new());
    let mut replica = Replica::start(&authority);
    world.mount(&[replica.address], &authority.pem);
    let client = world.start();
    let mut session = replica.session().await;
    session.tell(&[replica.address], &authority.pem).await;
    let hash = hash_to_bytes(content_hash(authority.pem.as_bytes()));
    assert!(matches!(session.next().await, from_proxy::Message::Remembered(word) if word.ca_hash == hash));
    world.remembers(&replica.address.to_string()).await;
    // The ConfigMap becomes wrong in both respects; the next process has it and what is remembered.
    world.mount(&[nobody()], &wrong.pem);
    client.shutdown.stop(Stop::Asked);
    drop(session);
    let client = world.start();
    let mut session = replica.session().await;
    // What is remembered becomes wrong, and the ConfigMap right.
    let stale = nobody();
    session.tell(&[stale], &wrong.pem).await;
    assert!(matches!(session.next().await, from_proxy::Message::Remembered(_)));
    world.remembers(&stale.to_string()).await;
    world.mount(&[replica.address], &authority.pem);
    client.shutdown.stop(Stop::Asked);
    drop(session);
    world.start();
    replica.session().await;
    let kept = std::fs::read_to_string(world.path("discovery")).unwrap();
    assert!(kept.contains(&stale.to_string()), "{kept}");
}

#[tokio::test]
async fn a_new_ca_that_the_stream_brought_is_trusted_by_the_next_connection() {
    let (world, old, new) = (World::new(), Authority::new(), Authority::new());
    let (mut first, mut second) = (Replica::start(&old), Replica::start(&new));
    world.mount(&[first.address], &old.pem);
    world.start();
    let mut session = first.session().await;
    session.tell(&[first.address, second.address], &format!("{}{}", new.pem, old.pem)).await;
    assert!(matches!(session.next().await, from_proxy::Message::Remembered(_)));
    drop((session, first));
    second.session().await;
}

#[tokio::test]
async fn a_word_that_cannot_be_used_is_not_acknowledged_and_changes_nothing() {
    let (world, authority) = (World::new(), Authority::new());
    let mut replica = Replica::start(&authority);
    world.mount(&[replica.address], &authority.pem);
    world.start();
    let mut session = replica.session().await;
    session.tell(&[], "nonsense").await;
    session.tell(&[replica.address], &authority.pem).await;
    let hash = hash_to_bytes(content_hash(authority.pem.as_bytes()));
    assert!(matches!(session.next().await, from_proxy::Message::Remembered(word) if word.ca_hash == hash));
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_no_word() {
    let (world, authority) = (World::new(), Authority::new());
    // A full pipe in the file's place.
    let (pipe, mut end) = std::io::pipe().unwrap();
    std::os::unix::fs::symlink(format!("/proc/self/fd/{}", end.as_raw_fd()), world.path("discovery.part")).unwrap();
    end.write_all(&[0; 64 << 10]).unwrap();
    let mut replica = Replica::start(&authority);
    world.mount(&[replica.address], &authority.pem);
    world.start();
    let mut session = replica.session().await;
    for last in 1..4 {
        let other = SocketAddr::from(([10, 0, 0, last], 15010));
        session.tell(&[replica.address, other], &authority.pem).await;
        assert!(matches!(session.next().await, from_proxy::Message::Remembered(_)));
    }
    assert!(!world.path("discovery").exists());
    drop(pipe);
}

#[tokio::test]
async fn with_nothing_to_serve_and_nobody_known_the_program_ends_where_that_is_asked_for() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = Authority::new().pem;
    // Nothing at all; a last resort that nobody serves, with and without a CA; and a replica without one.
    for (last_resort, replicas, ca) in
        [(None, None, ""), (Some(nobody()), None, ""), (Some(nobody()), None, &*ca), (None, Some(nobody()), "")]
    {
        let world = World { patience: Some(Duration::from_millis(10)), last_resort, ..World::new() };
        world.mount(replicas.as_slice(), ca);
        let client = world.start();
        let stopped = timeout(PATIENCE, client.shutdown.stopped()).await.expect("it ends");
        assert_eq!(stopped, Stop::Failed);
    }
}

#[tokio::test]
async fn the_program_does_not_end_while_the_last_resort_answers_or_a_replica_is_known() {
    let (patience, authority) = (Some(Duration::from_millis(10)), Authority::new());
    let mut replica = Replica::start(&authority);
    let world = World { patience, last_resort: Some(replica.address), ..World::new() };
    world.mount(&[], &authority.pem);
    let client = world.start();
    let session = replica.session().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!client.shutdown.is_stopped(), "its stream stands");
    drop(session);
    let world = World { patience, ..World::new() };
    world.mount(&[nobody()], &authority.pem);
    let client = world.start();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!client.shutdown.is_stopped(), "another start would find nothing new");
}
