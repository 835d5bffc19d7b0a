//! Runs cases: a cluster for each pair of data path and source, a namespace for each case, proof by counters after it.

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sheave_harness::cluster::{Cluster, DataPath, Options};
use sheave_harness::kube::Kube;
use sheave_harness::metrics;
use sheave_harness::run::Run;
use sheave_harness::source::{Folder, Source};
use sheave_harness::wait::until;
use sheave_harness::world::World;

use crate::case::{Case, Proof};
use crate::context::{Context, Counts};
use crate::leftovers;

/// Two nodes show everything: an endpoint here and one there.
const NODES: u8 = 2;
/// A Lease is taken at once; the folder's lock too.
const LEADS: Duration = Duration::from_secs(20);
/// Lines of each log, of those written during the case, that a failure shows.
const LOG_LINES: usize = 12;

/// What has been counted so far.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: Vec<String>,
}

impl Tally {
    /// Prints one result.
    fn note(&mut self, name: &str, start: Instant, result: &Result<()>) {
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("{name} ... ok ({seconds:.1} s)");
            }
            Err(error) => {
                println!("{name} ... FAILED ({seconds:.1} s)\n    {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }
}

/// Runs the cases on every path and source; the last line is the summary.
pub(crate) fn run(run: &Run, cases: &[&Case], paths: &[DataPath], sources: &[&str]) -> Result<ExitCode> {
    let world = Arc::new(World::build(run, NODES)?);
    let mut kube = None;
    let mut tally = Tally::default();
    for &source in sources {
        let chosen: Vec<_> = cases.iter().copied().filter(|case| case.sources.include(source)).collect();
        if chosen.is_empty() {
            continue;
        }
        if source == "kube" && kube.is_none() {
            kube = Some(Arc::new(Kube::start(&world)?));
        }
        for &path in paths {
            let kube = kube.as_ref().filter(|_| source == "kube");
            let start = Instant::now();
            let suffix = format!("x {} x {source}", path.name());
            if let Err(error) = run_pair(&world, kube, path, &suffix, &chosen, &mut tally) {
                tally.note(&format!("cluster {suffix}"), start, &Err(error));
                println!("{}", Cluster::logs_of(run, &pair_name(path, source), LOG_LINES));
            }
        }
    }
    for name in &tally.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn pair_name(path: DataPath, source: &str) -> String {
    format!("{}-{source}", path.name())
}

fn run_pair(
    world: &Arc<World>,
    kube: Option<&Arc<Kube>>,
    path: DataPath,
    suffix: &str,
    cases: &[&Case],
    tally: &mut Tally,
) -> Result<()> {
    let name = pair_name(path, if kube.is_some() { "kube" } else { "dir" });
    let folder = match kube {
        None => Some(Arc::new(Folder::create(world.run.folder.join(&name).join("objects"))?)),
        Some(_) => None,
    };
    let source: Arc<dyn Source> = match (kube, &folder) {
        (Some(kube), _) => Arc::clone(kube) as _,
        (None, Some(folder)) => Arc::clone(folder) as _,
        (None, None) => unreachable!("a pair without API server has a folder"),
    };
    let options =
        Options { name: name.clone(), path, tls: kube.is_some(), replicas: if kube.is_some() { 2 } else { 1 } };
    let cluster = Arc::new(Cluster::start(world, source, options)?);
    let before = leftovers::entries(&cluster)?;
    until("the controller may write", LEADS, || {
        let leads = cluster.controller_metrics(0)?.sum("sheave_leader", &[]);
        ensure!(leads == 1.0, "sheave_leader is {leads}");
        Ok(())
    })?;
    for (number, case) in cases.iter().enumerate() {
        let start = Instant::now();
        let namespace = format!("{name}-{number}");
        let context = Context {
            cluster: Arc::clone(&cluster),
            namespace,
            kube: kube.cloned(),
            folder: folder.clone(),
            counts: Cell::default(),
        };
        let marks = cluster.log_marks();
        let result = run_case(&context, case);
        tally.note(&format!("{} {suffix}", case.name), start, &result);
        if result.is_err() {
            drop(context);
            println!("{}", cluster.logs_since(&marks, LOG_LINES));
            heal(&cluster, kube.map(AsRef::as_ref))?;
        }
    }
    let start = Instant::now();
    let result = leftovers::gone(&cluster, &before);
    tally.note(&format!("when_all_objects_are_gone_no_entry_is_left {suffix}"), start, &result);
    let start = Instant::now();
    let result = end(cluster).and_then(|()| world.nodes.iter().try_for_each(|node| leftovers::clean(node)));
    tally.note(&format!("clean_leaves_nothing_on_a_node {suffix}"), start, &result);
    Ok(())
}

/// Ends the programs and cleans the nodes; cases hold no cluster any more.
fn end(cluster: Arc<Cluster>) -> Result<()> {
    Arc::into_inner(cluster).context("a case still holds the cluster")?.stop()
}

/// After a failure: whatever a case has stopped runs again, so that the next one starts from a whole cluster.
fn heal(cluster: &Cluster, kube: Option<&Kube>) -> Result<()> {
    if let Some(kube) = kube.filter(|kube| !kube.serves()) {
        kube.start_server()?;
    }
    if !cluster.controller_runs(0) {
        cluster.start_controller(0)?;
    }
    if cluster.options.replicas > 1 && cluster.controller_runs(1) {
        cluster.kill_controller(1)?;
    }
    for node in &cluster.world.nodes {
        if cluster.wait_ready(node).is_err() {
            let _ = cluster.kill_proxy(node); // not running is what is being mended
            cluster.start_proxy(node)?;
            cluster.wait_ready(node)?;
        }
    }
    Ok(())
}

fn run_case(context: &Context, case: &Case) -> Result<()> {
    context.cluster.source.namespace(&context.namespace)?;
    context.counts.set((!matches!(case.proof, Proof::Own(_))).then(Counts::default));
    let result = (case.run)(context).and_then(|()| prove(context, case.proof));
    let cleanup = context.cluster.forget(&context.namespace).context("remove the case's objects");
    result.and(cleanup)
}

/// Which way the connections of a case went, by the proxies' own counters.
fn prove(context: &Context, proof: Proof) -> Result<()> {
    if context.path() == DataPath::Userspace {
        for node in &context.cluster.world.nodes {
            let programs = metrics::attached(node)?;
            ensure!(programs == 0, "{programs} programs are attached at {} in userspace mode", node.name);
        }
    }
    let Some(counts) = context.counts.get() else { return Ok(()) };
    if context.path() == DataPath::Userspace {
        ensure!(counts.accepted > 0.0 && counts.translated == 0.0, "not by the listeners: {counts:?}");
        return Ok(());
    }
    match proof {
        Proof::Hook => {
            let all = counts.translated >= counts.asked as f64;
            ensure!(counts.asked > 0 && all && counts.accepted == 0.0, "not by the hook alone: {counts:?}");
        }
        Proof::Listener(why) => ensure!(counts.accepted > 0.0, "no listener took part, though {why}: {counts:?}"),
        Proof::Own(_) => {}
    }
    Ok(())
}
