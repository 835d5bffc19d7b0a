//! A Deployment is replaced while clients keep connecting: no connection may fail.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::testpod::protocol::{Kind, LoadReport};

use crate::check;
use crate::context::{Case, Context, case};

pub(crate) const CASES: &[Case] = &[case("a_rollout_under_load_fails_no_connection", rollout)];

/// Pods that are replaced; as many as two nodes of this size carry twice over.
const REPLICAS: usize = 6;
/// Connections a second of each load.
const RATE: u32 = 50;

fn rollout(it: &Context<'_>) -> Result<()> {
    let deployment = it.deployment("web", REPLICAS)?;
    let service = it.service("web", "NodePort")?;
    let before = deployment.names()?;
    let node_port = SocketAddr::new(it.nodes()[1].addresses[0], service.node_ports[0]);
    // A pod of each node by each family's cluster IP, and a machine outside by a NodePort.
    let mut loads: Vec<(&Agent, SocketAddr)> =
        it.nodes().iter().map(|node| &node.pod).zip(service.sockets(80)).collect();
    loads.push((&it.fixture.outside, node_port));
    for (agent, target) in &loads {
        check::served_by(agent, Kind::Tcp, *target, &before)?;
    }
    let start = |(agent, target): &(&Agent, SocketAddr)| agent.load_start(check::question(Kind::Tcp, *target), RATE);
    let running = loads.iter().map(start).collect::<Result<Vec<_>>>()?;
    deployment.restart("once")?;
    let rolled = deployment.wait(REPLICAS);
    let reports: Vec<LoadReport> =
        loads.iter().zip(running).map(|((agent, _), id)| agent.load_stop(id)).collect::<Result<_>>()?;
    rolled?;
    let after = deployment.names()?;
    ensure!(after.iter().all(|name| !before.contains(name)), "not all pods were replaced: {before:?}, {after:?}");
    for ((agent, target), report) in loads.iter().zip(&reports) {
        let what = format!("{} to {target}: {} of {} failed", agent.name(), report.failed(), report.asked);
        ensure!(report.failed() == 0, "{what}: {:?}", report.failures);
        ensure!(report.asked > 100, "{what}: too few to mean anything");
        let answered = |names: &[String]| names.iter().any(|name| report.servers.contains_key(name));
        ensure!(answered(&before) && answered(&after), "{what}: only {:?} answered", report.servers.keys());
    }
    Ok(())
}
