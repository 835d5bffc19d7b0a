//! `sheave-controller run`: puts the parts together, waits for SIGTERM, and takes them apart.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::config::{Config, SourceConfig, TrustConfig};
use crate::engine::{Engine, Question};
use crate::leader::{self, StateLock};
use crate::logging::{self, LogLevel};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::serve::{self, BoundPath, Desk, Nodes, Server};
use crate::source::dir::{DirConfig, DirSource};
use crate::source::kube::{self, Backoff, KubeSource};
use crate::source::{Batch, Feed, Relist, Source};
use crate::supervise::Tasks;
use crate::trust::{self, Directory, Operators, Reviewer, Serving, Trust};

/// Worker threads at most: the work is one index task and short writes to many streams.
const MAX_WORKERS: usize = 4;

/// After SIGTERM, streams that haven't ended by then are cut.
const DRAIN: Duration = Duration::from_secs(3);

/// Questions of the admin page that wait for the index task.
const QUESTIONS: usize = 4;

/// Runs until a signal or a failure that time can't mend.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    let log_level = logging::start(config.log_json, &config.log_level)?;
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, MAX_WORKERS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = runtime.context("no runtime can be started")?;
    // Held until everything has ended: while streams drain, the source still reads the folder and writes the state.
    let mut lock = None;
    let result = runtime.block_on(async {
        let signalled = signalled()?;
        Controller::start_and_wait(config, log_level, signalled, &mut lock).await
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(lock);
    result
}

/// Resolves at SIGTERM or SIGINT, which are caught from this call on.
fn signalled() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be caught")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

struct Controller {
    config: Config,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    nodes: Arc<Nodes>,
    relist: Arc<Relist>,
    /// Whether this replica is the one that writes to the API server.
    leads: watch::Sender<bool>,
    /// What proxies are told about where replicas are and who signs for them: written by `trust`.
    directory: watch::Sender<Arc<Directory>>,
    stop: watch::Sender<bool>,
    /// Closes when everything that has to end in order has ended: each part holds a clone.
    serving: mpsc::Sender<()>,
    /// The unix sockets' files.
    bound: Vec<BoundPath>,
    /// Another controller has the state folder.
    waiting: Arc<AtomicBool>,
}

/// The index task's ends of what the source and the admin page write to, and the source's own end.
struct Inlet {
    feed: Feed,
    batches: mpsc::Receiver<Batch>,
    asked: mpsc::Receiver<Question>,
}

impl Controller {
    /// Nothing is bound and nothing runs yet. `serving` closes once everything has ended.
    fn new(config: Config, serving: mpsc::Sender<()>) -> (Self, Inlet, mpsc::Sender<Question>) {
        let metrics = Arc::new(Metrics::new());
        let (feed, batches, relist) = Feed::new(metrics.clone());
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let controller = Self {
            tasks: Tasks::new(metrics.clone()),
            publisher: Arc::new(Publisher::new(metrics.clone())),
            nodes: Arc::new(Nodes::new(metrics.clone())),
            relist,
            leads: watch::Sender::new(false),
            directory: watch::Sender::new(Arc::default()),
            stop: watch::Sender::new(false),
            serving,
            bound: Vec::new(),
            waiting: Arc::default(),
            metrics,
            config,
        };
        (controller, Inlet { feed, batches, asked }, questions)
    }

    /// Runs until `signalled`. A state folder that is used is locked by `lock` then, for the caller to hold to the end.
    async fn start_and_wait(
        config: Config,
        log_level: LogLevel,
        signalled: impl Future<Output = ()>,
        lock: &mut Option<StateLock>,
    ) -> anyhow::Result<()> {
        info!(version = env!("CARGO_PKG_VERSION"), config = %serde_json::to_string(&config)?, "starting");
        // Fails only if a provider is installed already, and then there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        std::fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("--state-dir {}: can't be made", config.state_dir.display()))?;

        let (serving, mut served) = mpsc::channel(1);
        let (mut controller, inlet, questions) = Self::new(config, serving);
        let admin = controller.admin(questions, log_level);
        let result = tokio::select! {
            result = controller.work(admin, inlet, lock) => result.map(|never| match never {}),
            () = signalled => Ok(()),
        };
        info!("ending");
        controller.stop.send_replace(true);
        drop(controller.serving);
        if tokio::time::timeout(DRAIN, served.recv()).await.is_err() {
            warn!("some streams haven't ended in time and are cut");
        }
        controller.bound.into_iter().for_each(BoundPath::remove);
        result
    }

    fn admin(&self, questions: mpsc::Sender<Question>, log_level: LogLevel) -> Arc<Admin> {
        Arc::new(Admin {
            config: self.config.clone(),
            metrics: self.metrics.clone(),
            publisher: self.publisher.clone(),
            nodes: self.nodes.clone(),
            questions,
            log_level,
            stopping: self.stop.subscribe(),
            waiting: self.waiting.clone(),
        })
    }

    /// Serves and reads the source until something fails that can't be mended. What another controller of the same state
    /// folder may be using (unix sockets, the discovery port) is bound once it has ended.
    async fn work(
        &mut self,
        admin: Arc<Admin>,
        inlet: Inlet,
        lock: &mut Option<StateLock>,
    ) -> anyhow::Result<Infallible> {
        let address = self.config.admin;
        let failed = || format!("--admin {address}: can't be bound; free the address or give another");
        let public = Arc::new(TcpListener::bind(address).await.with_context(failed)?);
        let public_admin = admin.clone();
        self.tasks.restarting("admin", move || admin::serve_tcp(public_admin.clone(), public.clone()));
        if matches!(self.config.source, SourceConfig::Dir { .. }) {
            self.waiting.store(true, Ordering::Relaxed);
            *lock = Some(StateLock::wait(&self.config.state_dir).await?);
            self.waiting.store(false, Ordering::Relaxed);
            self.metrics.leader.set(1);
        }
        match self.config.source.clone() {
            SourceConfig::Kube { kubeconfig, api_server, lease_namespace } => {
                let client = kube::client(kubeconfig.as_deref(), api_server.as_deref()).await?;
                let namespace = lease_namespace.unwrap_or_else(|| client.default_namespace().to_owned());
                self.serve(admin, Some((client.clone(), namespace.clone()))).await?;
                self.campaign(client.clone(), namespace.clone());
                let source = KubeSource::new(client);
                self.read(move || source.clone(), Some(namespace), inlet).await
            }
            SourceConfig::Dir { path, service_cidrs, node_ports } => {
                self.serve(admin, None).await?;
                let config = DirConfig { path, state_dir: self.config.state_dir.clone(), service_cidrs, node_ports };
                self.read(move || DirSource::new(config.clone()), None, inlet).await
            }
        }
    }

    /// Binds the rest and starts to serve: discovery answers once the source has been listed. `home` is a client of the API
    /// server and the controller's own namespace there.
    async fn serve(&mut self, admin: Arc<Admin>, home: Option<(::kube::Client, String)>) -> anyhow::Result<()> {
        let server = Server {
            reviewer: None,
            directory: self.directory.subscribe(),
            publisher: self.publisher.clone(),
            nodes: self.nodes.clone(),
            relist: self.relist.clone(),
            metrics: self.metrics.clone(),
            stopping: self.stop.subscribe(),
        };
        let desk = Desk::new(server.clone(), self.config.replica_name.clone(), admin.questions.clone());
        let (listener, bound) = serve::bind_unix(&self.config.admin_socket)?;
        self.bound.push(bound);
        let listener = Arc::new(listener);
        self.tasks.restarting("admin-socket", move || admin::serve_unix(admin.clone(), listener.clone()));
        match (self.config.listen.as_ref().map(|listen| (listen.address, listen.trust.clone())), home) {
            (Some((address, TrustConfig::Files { tls_dir })), _) => {
                let (address, serving) =
                    serve::serve_tls(server.clone(), Some(desk.clone()), address, &tls_dir).await?;
                info!(%address, "discovery over TLS, by certificates");
                self.tasks.fatal("discovery", until_ended(serving, &self.serving, &self.stop));
            }
            (Some((address, TrustConfig::Kube { advertise })), Some((client, namespace))) => {
                let reviewer = Arc::new(Reviewer::new(client.clone(), &namespace, self.metrics.clone()));
                let desk = desk.by_tokens(Arc::new(Operators::new(client.clone())));
                let (shown, server) =
                    (Arc::new(Serving::default()), Server { reviewer: Some(reviewer), ..server.clone() });
                let (address, serving) = serve::serve_trusted(server, Some(desk), address, shown.clone()).await?;
                info!(%address, %advertise, "discovery over TLS, by tokens");
                self.tasks.fatal("discovery", until_ended(serving, &self.serving, &self.stop));
                self.keep_trust(client, namespace, advertise, shown);
            }
            // Trust by an API server without one is refused with the flags.
            (Some((_, TrustConfig::Kube { .. })), None) | (None, _) => {}
        }
        if let Some(path) = &self.config.socket {
            let (listener, bound) = serve::bind_unix(path)?;
            self.bound.push(bound);
            info!(path = %path.display(), "discovery on a unix socket");
            let serving = serve::serve_unix(server, Some(desk), listener);
            self.tasks.fatal("discovery-socket", until_ended(serving, &self.serving, &self.stop));
        }
        Ok(())
    }

    fn keep_trust(&mut self, client: ::kube::Client, namespace: String, advertise: SocketAddr, serving: Arc<Serving>) {
        let trust = Trust {
            client,
            namespace,
            advertise,
            leads: self.leads.subscribe(),
            nodes: self.nodes.clone(),
            publisher: self.publisher.clone(),
            metrics: self.metrics.clone(),
            serving,
            directory: self.directory.clone(),
            stopping: self.stop.subscribe(),
        };
        let alive = self.serving.clone();
        self.tasks.restarting("trust", move || {
            let _alive_until_this_replica_is_off_the_list = &alive;
            trust::keep(trust.clone())
        });
    }

    fn campaign(&mut self, client: ::kube::Client, namespace: String) {
        let (identity, metrics, leads) = (self.config.replica_name.clone(), self.metrics.clone(), self.leads.clone());
        let (stop, alive) = (self.stop.clone(), self.serving.clone());
        self.tasks.restarting("leader", move || {
            let _alive_until_the_lease_is_given_back = &alive;
            let (client, namespace) = (client.clone(), namespace.clone());
            leader::campaign(client, namespace, identity.clone(), metrics.clone(), leads.clone(), stop.subscribe())
        });
    }

    /// Reads the source until something fails. `home` is the controller's own namespace there.
    async fn read<S: Source>(
        &mut self,
        mut source: impl FnMut() -> S + Send + 'static,
        home: Option<String>,
        inlet: Inlet,
    ) -> anyhow::Result<Infallible> {
        let mut first = source();
        let id = tokio::select! {
            id = identified(&mut first) => id,
            error = self.tasks.failed() => return Err(error),
        };
        let engine = Engine::new(id, home, self.publisher.clone(), self.metrics.clone());
        let Inlet { feed, batches, asked } = inlet;
        self.tasks.fatal("index", async move {
            engine.run(batches, asked).await;
            Ok(())
        });
        self.tasks.restarting("source", move || source().run(feed.clone()));
        Err(self.tasks.failed().await)
    }
}

/// A source's id, which may take until it can be reached.
async fn identified(source: &mut impl Source) -> String {
    let mut backoff = Backoff::default();
    loop {
        match source.identify().await {
            Ok(id) => return id,
            Err(error) => {
                if backoff.tries() % 10 == 0 {
                    warn!(error = format!("{error:#}"), "the source can't be identified; trying on");
                }
                backoff.wait().await;
            }
        }
    }
}

/// Serves; after a stop its end is no failure, so it then waits to be dropped.
fn until_ended(
    serving: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    alive: &mpsc::Sender<()>,
    stop: &watch::Sender<bool>,
) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
    let (alive, stopping) = (alive.clone(), stop.subscribe());
    async move {
        let result = serving.await;
        drop(alive);
        if *stopping.borrow() && result.is_ok() {
            std::future::pending::<()>().await;
        }
        result
    }
}
