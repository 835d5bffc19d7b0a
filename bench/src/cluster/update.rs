//! The proxies are replaced by a rolling update, and replaced back, while every node makes new connections and holds some.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_harness::agent::Agent;
use sheave_harness::kubelets::check;
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::kubelets::service::Service;
use sheave_harness::kubelets::workload::Deployment;
use sheave_harness::metrics;
use sheave_harness::testpod::protocol::{Hold, HoldReport, Kind, LoadReport};
use sheave_harness::wait::until;

use super::found::{Arm, Served, Update};
use super::objects;
use super::round::Context;

/// Pods that answer, on both nodes.
const SERVERS: usize = 4;
/// New connections a second of each node.
const RATE: u32 = 500;
/// Connections that each node holds.
const HELD: u32 = 200;
/// Milliseconds between two round trips of a held connection.
const BEAT_MS: u64 = 1_000;
/// Before the first update, and after each.
const CALM: Duration = Duration::from_secs(3);
/// Two nodes, one after the other, on a loaded machine.
const UPDATED_WITHIN: Duration = Duration::from_secs(120);

/// Measures it.
pub(super) fn measure(it: &Context, fixture: &Fixture, namespace: &str) -> Result<Update> {
    let web = Deployment::start(&it.api, namespace, "web", SERVERS)?;
    let target = Service::apply(&it.api, namespace, "web", "ClusterIP")?.sockets(80)[0];
    let clients: Vec<&Agent> = fixture.nodes.iter().map(|node| &node.pod).collect();
    for agent in &clients {
        check::served_by(agent, Kind::Tcp, target, &web.names()?)?;
    }
    by_ebpf(it, fixture)?;
    let start = Instant::now();
    let ask = check::question(Kind::Tcp, target);
    let hold = || Hold { ask: ask.clone(), count: HELD, every: BEAT_MS };
    let held = clients.iter().map(|agent| agent.hold_start(hold())).collect::<Result<Vec<_>>>()?;
    let loads = clients.iter().map(|agent| agent.load_start(ask.clone(), RATE)).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let took = there_and_back(it);
    let span = begun.elapsed();
    let loads = clients.iter().zip(loads).map(|(agent, id)| agent.load_stop(id)).collect::<Result<Vec<_>>>()?;
    let held = clients.iter().zip(held).map(|(agent, id)| agent.hold_stop(id)).collect::<Result<Vec<_>>>()?;
    it.say(&format!("load and connections for {:.0} s", start.elapsed().as_secs_f64()));
    let took = took?;
    by_ebpf(it, fixture)?;
    Ok(Update { new: new(&loads, RATE, span, target)?, held: kept(&held)?, took })
}

/// The limit is one of the eBPF path. kube-proxy has but one.
fn by_ebpf(it: &Context, fixture: &Fixture) -> Result<()> {
    if it.arm != Arm::Sheave {
        return Ok(());
    }
    for node in &fixture.nodes {
        let metrics = metrics::read(SocketAddr::new(node.addresses[0], 15020))?;
        ensure!(metrics.has("sheave_datapath_info", &[("mode", "ebpf")]), "{}: not on the eBPF path", node.name);
        let listened = metrics.sum("sheave_service_connections_total", &[("service", "web"), ("path", "listener")]);
        ensure!(listened == 0.0, "{}: {listened} connections went to a listener", node.name);
    }
    Ok(())
}

/// Both updates; the seconds that each took.
fn there_and_back(it: &Context) -> Result<Vec<f64>> {
    thread::sleep(CALM);
    let (namespace, name) = it.arm.daemon_set();
    let update = |mark: &Value| {
        let start = Instant::now();
        objects::annotate(&it.api, namespace, name, mark)?;
        until(&format!("{name} is updated"), UPDATED_WITHIN, || {
            ensure!(objects::current(&it.api, "DaemonSet", namespace, name)?, "not everywhere");
            Ok(())
        })?;
        let took = start.elapsed().as_secs_f64();
        thread::sleep(CALM);
        Ok(took)
    };
    [json!("there"), Value::Null].iter().map(update).collect()
}

/// The loads together; an error where they were not what they should have been.
pub(super) fn new(loads: &[LoadReport], rate: u32, span: Duration, target: SocketAddr) -> Result<Served> {
    let mut all = Served::default();
    for report in loads {
        let wanted = f64::from(rate) * span.as_secs_f64();
        let asked = report.asked as f64;
        ensure!(
            asked > wanted * 0.95,
            "{asked} connections to {target} in place of {wanted:.0}: the client fell behind"
        );
        all.add(Served {
            all: report.asked,
            failed: report.failed(),
            failures: report.failures.clone(),
            longest: report.longest,
        });
    }
    Ok(all)
}

fn kept(held: &[HoldReport]) -> Result<Served> {
    let mut all = Served::default();
    for report in held {
        ensure!(report.rounds > u64::from(report.held), "{} round trips of {}: too few", report.rounds, report.held);
        all.add(Served {
            all: report.held.into(),
            failed: report.failures.len() as u64,
            failures: report.failures.clone(),
            longest: report.longest,
        });
    }
    Ok(all)
}
