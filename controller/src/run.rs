//! `sheave-controller run`: puts the parts together, waits for SIGTERM, and takes them apart.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::admin::{self, Admin};
use crate::config::{Config, SourceConfig};
use crate::engine::{Engine, Question};
use crate::leader::{self, StateLock};
use crate::logging::{self, LogLevel};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::serve::{self, Nodes, Server};
use crate::source::dir::{DirConfig, DirSource};
use crate::source::kube::{self, Backoff, KubeSource};
use crate::source::{Batch, Feed, Relist, Source};
use crate::supervise::Tasks;

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
    let result = runtime.block_on(Controller::start_and_wait(config, log_level));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

struct Controller {
    config: Config,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    publisher: Arc<Publisher>,
    relist: Arc<Relist>,
    stop: watch::Sender<bool>,
    /// Closes when everything that has to end in order has ended: each part holds a clone.
    serving: mpsc::Sender<()>,
}

impl Controller {
    async fn start_and_wait(config: Config, log_level: LogLevel) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can't be caught")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can't be caught")?;
        info!(version = env!("CARGO_PKG_VERSION"), config = %serde_json::to_string(&config)?, "starting");
        // Fails only if a provider is installed already, and then there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        std::fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("--state-dir {}: can't be made", config.state_dir.display()))?;

        let metrics = Arc::new(Metrics::new());
        let (feed, batches, relist) = Feed::new(metrics.clone());
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (serving, mut served) = mpsc::channel(1);
        let mut controller = Self {
            tasks: Tasks::new(metrics.clone()),
            publisher: Arc::new(Publisher::new(metrics.clone())),
            relist,
            stop: watch::Sender::new(false),
            serving,
            metrics,
            config,
        };
        controller.serve(questions, log_level).await?;
        let socket = controller.config.socket.clone();
        let admin_socket = controller.config.admin_socket.clone();
        let result = tokio::select! {
            error = controller.work(feed, batches, asked) => Err(error),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        };
        info!("ending");
        controller.stop.send_replace(true);
        drop(controller.serving);
        if tokio::time::timeout(DRAIN, served.recv()).await.is_err() {
            warn!("some streams haven't ended in time and are cut");
        }
        for path in [socket, admin_socket].into_iter().flatten() {
            // Gone already, or replaced on the next start.
            let _ = std::fs::remove_file(path);
        }
        result
    }

    /// Binds everything and starts to serve: discovery answers once the source has been listed.
    async fn serve(&mut self, questions: mpsc::Sender<Question>, log_level: LogLevel) -> anyhow::Result<()> {
        let nodes = Arc::new(Nodes::new(self.metrics.clone()));
        let server = Server {
            publisher: self.publisher.clone(),
            nodes: nodes.clone(),
            relist: self.relist.clone(),
            metrics: self.metrics.clone(),
            stopping: self.stop.subscribe(),
        };
        let admin = Arc::new(Admin {
            config: self.config.clone(),
            metrics: self.metrics.clone(),
            publisher: self.publisher.clone(),
            nodes,
            questions,
            log_level,
            stopping: self.stop.subscribe(),
        });
        if let Some(address) = self.config.admin {
            let listener = TcpListener::bind(address).await;
            let listener = Arc::new(listener.with_context(|| format!("--admin {address}: can't be bound"))?);
            let admin = admin.clone();
            self.tasks.restarting("admin", move || admin::serve_tcp(admin.clone(), listener.clone()));
        }
        if let Some(path) = &self.config.admin_socket {
            let listener = Arc::new(serve::bind_unix(path)?);
            self.tasks.restarting("admin-socket", move || admin::serve_unix(admin.clone(), listener.clone()));
        }
        if let Some(listen) = &self.config.listen {
            let (address, serving) = serve::serve_tls(server.clone(), listen).await?;
            info!(%address, "discovery over TLS");
            self.tasks.fatal("discovery", until_ended(serving, &self.serving, &self.stop));
        }
        if let Some(path) = &self.config.socket {
            let serving = serve::serve_unix(server, path)?;
            info!(path = %path.display(), "discovery on a unix socket");
            self.tasks.fatal("discovery-socket", until_ended(serving, &self.serving, &self.stop));
        }
        Ok(())
    }

    /// Reads the source until something fails that can't be mended, and returns what.
    async fn work(
        &mut self,
        feed: Feed,
        batches: mpsc::Receiver<Batch>,
        asked: mpsc::Receiver<Question>,
    ) -> anyhow::Error {
        match self.start_source(feed, batches, asked).await {
            // The lock is held until the program ends.
            Ok(_lock) => self.tasks.failed().await,
            Err(error) => error,
        }
    }

    async fn start_source(
        &mut self,
        feed: Feed,
        batches: mpsc::Receiver<Batch>,
        asked: mpsc::Receiver<Question>,
    ) -> anyhow::Result<Option<StateLock>> {
        match self.config.source.clone() {
            SourceConfig::Kube { kubeconfig, lease_namespace } => {
                let client = kube::client(kubeconfig.as_deref()).await?;
                let (identity, metrics) = (self.config.replica_name.clone(), self.metrics.clone());
                let (stop, campaigner, alive) = (self.stop.clone(), client.clone(), self.serving.clone());
                self.tasks.restarting("leader", move || {
                    let _alive_until_the_lease_is_given_back = &alive;
                    let (client, namespace) = (campaigner.clone(), lease_namespace.clone());
                    leader::campaign(client, namespace, identity.clone(), metrics.clone(), stop.subscribe())
                });
                let mut source = KubeSource::new(client);
                self.start_engine(identified(&mut source).await, batches, asked);
                self.tasks.restarting("source", move || source.clone().run(feed.clone()));
                Ok(None)
            }
            SourceConfig::Dir { path, service_cidrs, node_ports } => {
                let lock = StateLock::wait(&self.config.state_dir).await?;
                self.metrics.leader.set(1);
                let config = DirConfig { path, state_dir: self.config.state_dir.clone(), service_cidrs, node_ports };
                let mut source = DirSource::new(config.clone());
                self.start_engine(identified(&mut source).await, batches, asked);
                self.tasks.restarting("source", move || DirSource::new(config.clone()).run(feed.clone()));
                Ok(Some(lock))
            }
        }
    }

    fn start_engine(&mut self, id: String, batches: mpsc::Receiver<Batch>, asked: mpsc::Receiver<Question>) {
        let engine = Engine::new(id, self.publisher.clone(), self.metrics.clone());
        self.tasks.fatal("index", async move {
            engine.run(batches, asked).await;
            Ok(())
        });
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
