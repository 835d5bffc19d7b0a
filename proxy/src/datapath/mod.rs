//! Which data path forwards, and starting it. The userspace path always runs; in ebpf mode the socket hooks are on top.

mod flows;
mod follow;
mod kernel;
mod merge;
mod scrape;

use std::sync::Arc;

use anyhow::Context;
use futures::FutureExt;
use sheave_loader::Loader;
use sheave_reconcile::{Reconciler, Restored};
use tokio::sync::{mpsc, oneshot, watch};

use crate::admin::Refresh;
use crate::args::Datapath;
use crate::cgroup::{self, CgroupError};
use crate::config::{Config, NodeConfig};
use crate::metrics::Metrics;
use crate::store::StoreHandle;
use crate::supervise::{Stop, Supervisor};
use crate::userspace::{self, Userspace};
use follow::{Follow, Follower};
use scrape::Scrape;

/// Scrapes that may wait for the loop; more are answered without the kernel's numbers.
const SCRAPES: usize = 4;

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// As flags and metrics say it: `ebpf` or `userspace`.
    pub(crate) mode: &'static str,
    /// Why, for the log and the metric.
    pub(crate) reason: String,
}

/// Whether flags and machine let any data path work, before this process owns the node.
///
/// # Errors
/// One line: where userspace, which every mode needs, can't work, and where --cgroup is a mistake.
pub(crate) fn check(config: &Config) -> Result<(), String> {
    userspace::probe(&userspace_options(&config.node, config.threads)).map_err(|error| error.to_string())?;
    match (config.datapath, cgroup::check(&config.node.cgroup)) {
        (Datapath::Userspace, _) | (Datapath::Auto, Err(CgroupError::Unreadable { .. })) | (_, Ok(())) => Ok(()),
        (_, Err(error)) => Err(error.to_string()),
    }
}

/// Attaches the hooks where they are asked for or possible, and removes those of an earlier run otherwise.
fn choose(config: &Config) -> anyhow::Result<(Choice, Option<(Loader, Restored)>)> {
    let reason = match config.datapath {
        Datapath::Userspace => "asked for".to_owned(),
        Datapath::Ebpf => {
            let kernel = kernel::open(&config.node).context("--datapath ebpf")?;
            return Ok((Choice { mode: "ebpf", reason: "asked for".to_owned() }, Some(kernel)));
        }
        Datapath::Auto => match kernel::open_patiently(&config.node) {
            Ok(kernel) => {
                return Ok((Choice { mode: "ebpf", reason: "this machine can".to_owned() }, Some(kernel)));
            }
            Err(error) => format!("{error:#}").replace('\n', " "),
        },
    };
    if kernel::remove(&config.node).context("programs of an earlier run can't be removed")? {
        tracing::info!("programs of an earlier run in ebpf mode were removed");
    }
    Ok((Choice { mode: "userspace", reason }, None))
}

/// What runs.
pub(crate) struct Running {
    /// What was chosen.
    pub(crate) choice: Choice,
    /// The revision that every data path has.
    pub(crate) programmed: watch::Receiver<u64>,
    /// Brings the kernel's numbers into the metrics.
    pub(crate) refresh: Vec<Refresh>,
    userspace: Userspace,
}

/// Chooses and starts. `stale` says that the store holds a file of another boot or namespace.
///
/// # Errors
/// One line each: what the machine lacks, or what could not be loaded.
pub(crate) fn start(
    config: &Config,
    store: &StoreHandle,
    stale: bool,
    metrics: &Metrics,
    supervisor: &Supervisor,
) -> anyhow::Result<Running> {
    let (choice, kernel) = choose(config)?;
    tracing::info!(mode = choice.mode, reason = choice.reason, "data path chosen");
    let options = userspace_options(&config.node, config.threads);
    let userspace = userspace::start(&options, store.snapshots.clone(), metrics)?;
    let mut paths = vec![userspace.programmed()];
    let mut refresh = Vec::new();
    if let Some((loader, restored)) = kernel {
        let (programmed, scrapes) = start_ebpf(loader, &restored, store, stale, metrics, supervisor)?;
        paths.push(programmed);
        refresh.push(refresher(scrapes));
    }
    let (all, programmed) = watch::channel(0);
    watch_over(paths, all, userspace.failed(), metrics, supervisor);
    Ok(Running { choice, programmed, refresh, userspace })
}

/// Follows what the paths have, and ends the program where one of them ends by itself.
fn watch_over(
    paths: Vec<watch::Receiver<u64>>,
    all: watch::Sender<u64>,
    mut failed: watch::Receiver<bool>,
    metrics: &Metrics,
    supervisor: &Supervisor,
) {
    let mut applied = all.subscribe();
    let gauge = metrics.revision_applied.clone();
    supervisor.spawn_once("applied", async move {
        while applied.changed().await.is_ok() {
            gauge.set(i64::try_from(*applied.borrow_and_update()).unwrap_or(i64::MAX));
        }
    });
    let shutdown = supervisor.shutdown.clone();
    supervisor.spawn_once("programmed", async move {
        tokio::select! {
            _path = merge::lowest(paths, all) => {}
            // An error means that all of its threads have ended, as they do when everything stops.
            _ = failed.wait_for(|failed| *failed) => {}
        }
        if !shutdown.is_stopped() {
            tracing::error!("a data path ended by itself; the proxy ends, what is in the kernel stays");
            shutdown.stop(Stop::Failed);
        }
    });
}

impl Running {
    /// Stops listening; what is open may go on until `deadline`. What is in the kernel stays.
    pub(crate) async fn shutdown(self, deadline: std::time::Duration) {
        self.userspace.shutdown(deadline).await;
    }
}

/// Starts the thread that keeps the maps in step.
fn start_ebpf(
    mut loader: Loader,
    restored: &Restored,
    store: &StoreHandle,
    stale: bool,
    metrics: &Metrics,
    supervisor: &Supervisor,
) -> anyhow::Result<(watch::Receiver<u64>, mpsc::Sender<Scrape>)> {
    // Pinned maps of this boot and namespace are newer than any file; a file of another one says that they are not of it.
    let hold = !restored.frontends.is_empty() && !stale;
    tracing::info!(
        frontends = restored.frontends.len(),
        backends = restored.backends.len(),
        hold,
        "eBPF programs are attached"
    );
    let (programmed, revision) = watch::channel(0);
    let (scrapes, queue) = mpsc::channel(SCRAPES);
    let follow = Follow {
        snapshots: store.snapshots.clone(),
        complete: store.complete.clone(),
        hold,
        programmed,
        scrapes: queue,
        metrics: metrics.clone(),
        shutdown: supervisor.shutdown.clone(),
    };
    let rows = loader.take_flows().expect("a loader has its flows until they are taken, and it was just opened");
    supervisor.spawn_once("flows", flows::keep(rows, store.snapshots.clone(), store.complete.clone(), metrics.clone()));
    let follower = Follower::new(loader, Reconciler::new(restored), follow);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().context("no runtime")?;
    supervisor.thread("ebpf", move || runtime.block_on(follower.run())).context("no thread")?;
    Ok((revision, scrapes))
}

fn refresher(scrapes: mpsc::Sender<Scrape>) -> Refresh {
    Arc::new(move || {
        let (done, answered) = oneshot::channel();
        let asked = scrapes.try_send(done).is_ok();
        async move {
            if asked {
                // An error means that the loop has ended; the page then shows its last numbers.
                let _ = answered.await;
            }
        }
        .boxed()
    })
}

fn userspace_options(node: &NodeConfig, threads: usize) -> userspace::Options {
    userspace::Options {
        threads,
        proxy_port: node.proxy_port,
        mark_reply: node.mark_reply,
        mark_own: node.mark_own,
        route_table: node.route_table,
        ..userspace::Options::default()
    }
}

/// Removes everything of ours from this node's kernel, as far as that can be done; returns what went wrong. That something
/// is not there is no error.
pub(crate) fn clean(node: &NodeConfig) -> Vec<anyhow::Error> {
    // The hooks first: what they no longer translate still meets the listeners' table, and then nothing.
    let programs = kernel::remove(node).context("programs and pins can't be removed");
    let table =
        userspace::clean(&userspace_options(node, 1)).context("the nftables table, rules and routes can't be removed");
    [programs.err(), table.err()].into_iter().flatten().collect()
}
