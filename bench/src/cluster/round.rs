//! One round inside a cluster's world: part after part, and what was found as JSON on standard output. A part that fails is
//! said so, and the next goes on.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sheave_harness::kube::Api;
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::kubelets::workload;
use sheave_harness::wait::until;

use super::found::{Arm, Found, Timed};
use super::{Part, changes, idle, join, objects, rollout, update};

/// Everything of a small cluster, ready again after a node came.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
/// Ten pods with five seconds each to end.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// What a round is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Who serves Services.
    #[arg(long, value_enum)]
    arm: Arm,
    /// The parts to measure, by their names.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
    /// When the cluster was started, in seconds since 1970.
    #[arg(long)]
    started: f64,
    /// The running cluster's folder.
    #[arg(long, default_value_os_t = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster"))]
    state: PathBuf,
}

/// What every part gets.
pub(super) struct Context {
    /// Who serves Services.
    pub(super) arm: Arm,
    /// An administrator's client.
    pub(super) api: Api,
    /// The running cluster's folder.
    pub(super) state: PathBuf,
    /// When the round began.
    start: Instant,
}

impl Context {
    /// Says what is being done now.
    pub(super) fn say(&self, what: &str) {
        crate::rows::say(self.start, what);
    }

    /// Waits until all that the cluster itself runs is ready.
    pub(super) fn settled(&self) -> Result<()> {
        let (namespace, name) = self.arm.daemon_set();
        until("the cluster's own workloads", SETTLED_WITHIN, || {
            ensure!(objects::current(&self.api, "DaemonSet", namespace, name)?, "{name} is not ready everywhere");
            ensure!(objects::current(&self.api, "Deployment", "kube-system", "coredns")?, "coredns is not ready");
            let controllers = self.arm != Arm::Sheave
                || objects::current(&self.api, "Deployment", "sheave-system", "sheave-controller")?;
            ensure!(controllers, "sheave-controller is not ready");
            Ok(())
        })
    }
}

/// Measures one part and notes how that went.
fn part<T>(it: &Context, name: &str, run: impl FnOnce() -> Result<T>) -> Timed<T> {
    it.say(name);
    let start = Instant::now();
    let result = run().map_err(|error| format!("{error:#}"));
    if let Err(error) = &result {
        it.say(&format!("failed: {name}: {error}"));
    }
    Timed { seconds: start.elapsed().as_secs_f64(), result }
}

/// Runs a round and prints what it found.
#[expect(clippy::print_stdout, reason = "the answer to the program that started the round")]
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let state = arguments.state.canonicalize().context("the cluster's folder; run: make cluster-up")?;
    let api = Api::from_kubeconfig(&state.join("admin.kubeconfig"))?;
    let it = Context { arm: arguments.arm, api, state, start: Instant::now() };
    let wants = |part: Part| arguments.parts.iter().any(|name| name == part.name());
    let mut found = Found::default();
    if wants(Part::Start) {
        found.start = Some(part(&it, "CoreDNS' readiness", || objects::coredns_ready(&it.api, arguments.started)));
    }
    if wants(Part::Idle) {
        found.idle = Some(part(&it, "a minute of nothing", || idle::measure(&it)));
    }
    if wants(Part::Join) {
        found.join = Some(part(&it, "a node comes", || join::measure(&it)));
    }
    if [Part::Update, Part::Rollout, Part::Changes].into_iter().any(wants) {
        with_clients(&it, &wants, &mut found);
    }
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// The parts that need clients in the cluster.
fn with_clients(it: &Context, wants: &dyn Fn(Part) -> bool, found: &mut Found) {
    it.say("clients on every node");
    let fixture = it.settled().and_then(|()| Fixture::start(&it.state)).context("clients on every node");
    if wants(Part::Update) {
        let run = |fixture: &_, namespace: &_| update::measure(it, fixture, namespace);
        found.update = Some(part(it, "the proxies are updated", || in_namespace(it, &fixture, "bench-update", run)));
    }
    if wants(Part::Rollout) {
        let run = |fixture: &_, namespace: &_| rollout::measure(it, fixture, namespace);
        found.rollout = Some(part(it, "a Deployment is updated", || in_namespace(it, &fixture, "bench-rollout", run)));
    }
    if wants(Part::Changes) {
        let run = |fixture: &_, namespace: &_| changes::measure(it, fixture, namespace);
        found.changes = Some(part(it, "endpoints come and go", || in_namespace(it, &fixture, "bench-changes", run)));
    }
}

/// Gives a part a namespace of its own, and waits until its pods are gone again.
fn in_namespace<T>(
    it: &Context,
    fixture: &Result<Fixture>,
    namespace: &str,
    run: impl FnOnce(&Fixture, &str) -> Result<T>,
) -> Result<T> {
    let fixture = fixture.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    workload::namespace(&it.api, namespace)?;
    let result = run(fixture, namespace);
    it.api.delete("Namespace", "", namespace, 0)?;
    until("the part's pods are gone", GONE_WITHIN, || {
        let left = it.api.list("Pod", namespace)?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })?;
    result
}
