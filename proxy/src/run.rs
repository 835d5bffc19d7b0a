//! `sheave-proxy run`: brings the parts up in order, waits, and takes them down.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::admin::{self, Admin, Listener};
use crate::config::Config;
use crate::datapath;
use crate::discovery::{Answerer, Book, Client};
use crate::disk::{self, Identity, Keeper};
use crate::lock::{self, Lock};
use crate::logging::LogLevel;
use crate::metrics::Metrics;
use crate::refused;
use crate::status::{Phase, Source, Status};
use crate::store::{Options, StoreHandle, StoreTask};
use crate::supervise::{Policy, Shutdown, Stop, Supervisor};

/// How long open connections may go on after SIGTERM. Short: while nobody listens, new connections wait for the next
/// process, and those that are open can't be handed to it.
const DRAIN: Duration = Duration::from_secs(1);

/// The parts that everything is built from.
struct Parts {
    config: Arc<Config>,
    metrics: Metrics,
    status: Status,
    shutdown: Shutdown,
    supervisor: Supervisor,
    admin: Admin,
}

/// Serves until a signal. 0 after SIGTERM, 1 where a part failed, 2 where flags or machine can't work.
pub(crate) async fn run(config: Config, log_level: LogLevel) -> anyhow::Result<ExitCode> {
    let config = Arc::new(config);
    let (metrics, status, shutdown) = (Metrics::with(config.compat_metrics)?, Status::default(), Shutdown::new());
    let admin = Admin::new(config.clone(), metrics.clone(), status.clone(), log_level, shutdown.clone());
    let supervisor = Supervisor::new(metrics.clone(), shutdown.clone());
    let parts = Parts { config, metrics, status, shutdown, supervisor, admin };
    parts.listen_to_signals()?;

    if let Err(line) = datapath::check(&parts.config) {
        return Ok(refused(&line));
    }
    let shown = serde_json::to_string(&*parts.config)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %shown, "starting");
    for listener in [Listener::Admin(parts.config.admin), Listener::Health(parts.config.health)] {
        let admin = parts.admin.clone();
        parts.supervisor.spawn("admin", Policy::Restart, move || admin::serve_tcp(admin.clone(), listener.clone()));
    }
    let waiting = |holder| {
        tracing::info!(?holder, "another process owns this node; waiting until it ends");
        parts.status.update(|state| state.phase = Phase::Waiting(holder));
    };
    tokio::select! {
        lock = lock::acquire(&parts.config.node.state_dir, waiting) => match lock {
            Ok(lock) => hold_to_the_end(lock),
            Err(error) => return Ok(refused(&error.to_string())),
        },
        stop = parts.shutdown.stopped() => return Ok(exit_code(stop)),
    }
    parts.own().await
}

/// Leaves the lock to the end of the process: threads that nobody waits for, such as the one that writes the kernel's maps,
/// end no sooner, and whoever takes over must find nobody else at work.
fn hold_to_the_end(lock: Lock) {
    std::mem::forget(lock);
}

impl Parts {
    fn listen_to_signals(&self) -> anyhow::Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("told to stop; what is in the kernel stays");
            shutdown.stop(Stop::Asked);
        });
        Ok(())
    }

    /// Owns the node until everything stops.
    async fn own(&self) -> anyhow::Result<ExitCode> {
        let identity = match Identity::current(&self.config.node.name) {
            Ok(identity) => Arc::new(identity),
            Err(error) => {
                return Ok(refused(&format!(
                    "boot id or namespace cookie can't be read: {error}; Linux 5.14 or newer is needed"
                )));
            }
        };
        let (store, stale) = self.start_store(&identity);
        let running = datapath::start(&self.config, &store, stale, &self.metrics, &self.supervisor);
        let running = match running {
            Ok(running) => running,
            Err(error) => return Ok(refused(&format!("{error:#}"))),
        };
        let choice = running.choice.clone();
        self.metrics.datapath_info.with_label_values(&[choice.mode, &choice.reason]).set(1);
        self.status.update(|state| {
            state.phase = Phase::Serving;
            state.datapath = Some((choice.mode, choice.reason));
        });
        self.admin.own(store.snapshots.clone(), running.refresh.clone());
        let (admin, socket) = (self.admin.clone(), Listener::Socket(self.config.node.admin_socket.clone()));
        self.supervisor
            .spawn("admin-socket", Policy::Restart, move || admin::serve_unix(admin.clone(), socket.clone()));
        let (freshness, programmed) = (self.admin.freshness.clone(), running.programmed.clone());
        let (snapshots, complete) = (store.snapshots.clone(), store.complete.clone());
        self.supervisor.spawn("health", Policy::Restart, move || {
            freshness.clone().follow(snapshots.clone(), programmed.clone(), complete.clone())
        });
        if let Some(compat) = self.metrics.compat.clone() {
            let (snapshots, programmed) = (store.snapshots.clone(), running.programmed.clone());
            self.supervisor.spawn("compat-metrics", Policy::Restart, move || {
                compat.clone().follow(snapshots.clone(), programmed.clone())
            });
        }
        let book = Book::open(&self.config.node.name, self.config.sources(), self.metrics.clone());
        let keepers = self.start_keepers(&store, identity, &book);
        let client = Client {
            node: self.config.node.name.clone(),
            book,
            proof: self.config.proof(),
            patience: self.config.exit_without_controller.map(Duration::from_secs),
            store,
            programmed: running.programmed.clone(),
            answerer: self.answerer(),
            metrics: self.metrics.clone(),
            status: self.status.clone(),
            shutdown: self.shutdown.clone(),
        };
        self.supervisor.spawn("discovery", Policy::Restart, move || client.clone().run());

        let stop = self.shutdown.stopped().await;
        self.status.update(|state| state.phase = Phase::Stopping);
        tokio::join!(running.shutdown(DRAIN), join_all(keepers));
        tracing::info!("stopped");
        Ok(exit_code(stop))
    }

    /// Reads the file and starts the task that owns the store. Returns whether the file is of another boot or namespace.
    fn start_store(&self, identity: &Identity) -> (StoreHandle, bool) {
        let saved = disk::load(&self.config.node.snapshot_path(), identity);
        let stale = saved.as_ref().is_some_and(|saved| saved.stale);
        if let Some(saved) = &saved {
            let age = saved.confirmed.elapsed().unwrap_or_default().as_secs();
            tracing::info!(resources = saved.delta.upserts.len(), age, stale, "serving the snapshot on disk");
            self.metrics.snapshot_stale.set(stale.into());
            self.status.update(|state| {
                state.source = if stale { Source::StaleDisk } else { Source::Disk };
                state.confirmed = Some(saved.confirmed);
                // The store applies it first of all.
                state.first = Some(1);
            });
        }
        let options =
            Options { node: self.config.node.name.as_str().into(), node_addresses: self.config.node_addresses.clone() };
        let delta = saved.map(|saved| saved.delta);
        let (task, handle) = StoreTask::new(options, delta, self.metrics.clone(), self.status.clone());
        self.supervisor.spawn_once("store", task.run());
        (handle, stale)
    }

    /// Answers operators by what the admin pages show.
    fn answerer(&self) -> Answerer {
        let admin = self.admin.clone();
        Arc::new(move |question| {
            let admin = admin.clone();
            Box::pin(async move { admin::answer(&admin, &question).await })
        })
    }

    /// Starts what saves. Each ends once it has saved its last.
    fn start_keepers(&self, store: &StoreHandle, identity: Arc<Identity>, book: &Book) -> [JoinHandle<()>; 2] {
        let status = self.status.clone();
        let confirmed = move || {
            let state = status.get();
            SystemTime::now() - state.age().unwrap_or_default()
        };
        let keeper = Keeper {
            path: self.config.node.snapshot_path(),
            identity,
            snapshots: store.snapshots.clone(),
            complete: store.complete.clone(),
            confirmed: Arc::new(confirmed),
            metrics: self.metrics.clone(),
            shutdown: self.shutdown.clone(),
        };
        let (book, shutdown) = (book.clone(), self.shutdown.clone());
        [
            self.supervisor.spawn_with("disk", Policy::Restart, disk::LAST_SAVE, move || disk::keep(keeper.clone())),
            self.supervisor
                .spawn_with("directory", Policy::Restart, disk::LAST_SAVE, move || book.clone().keep(shutdown.clone())),
        ]
    }
}

fn exit_code(stop: Stop) -> ExitCode {
    if stop == Stop::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::Attempt;

    #[test]
    fn the_lock_is_held_as_long_as_the_process_lives() {
        let dir = tempfile::tempdir().unwrap();
        let Attempt::Ours(lock) = lock::attempt(dir.path()).unwrap() else { panic!("nobody holds it") };
        hold_to_the_end(lock);
        assert!(matches!(lock::attempt(dir.path()).unwrap(), Attempt::HeldBy(_)));
    }
}
