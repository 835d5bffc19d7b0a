//! A Deployment is replaced again and again while new connections come by its ClusterIP and its NodePort. Its pods go on serving
//! for the five seconds of their grace, as a server does that drains.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::kubelets::check;
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::kubelets::service::Service;
use sheave_harness::kubelets::workload::Deployment;
use sheave_harness::testpod::protocol::Kind;

use super::found::Served;
use super::round::Context;
use super::update;

/// Pods that are replaced.
const REPLICAS: usize = 10;
/// New connections a second: by ClusterIP from a pod of each node, and from outside by each node's NodePort. So 200 by each way.
const RATE: u32 = 100;
/// Connections that are enough.
const ENOUGH: u64 = 20_000;
/// Rollouts until then, at most.
const MOST: u32 = 8;

/// Measures it.
pub(super) fn measure(it: &Context, fixture: &Fixture, namespace: &str) -> Result<Served> {
    let web = Deployment::start(&it.api, namespace, "web", REPLICAS)?;
    let service = Service::apply(&it.api, namespace, "web", "NodePort")?;
    let mut ways: Vec<(&Agent, SocketAddr)> =
        fixture.nodes.iter().map(|node| &node.pod).zip(service.sockets(80)).collect();
    let port = *service.node_ports.first().context("a NodePort")?;
    ways.extend(fixture.nodes.iter().map(|node| (&fixture.outside, SocketAddr::new(node.addresses[0], port))));
    for (agent, target) in &ways {
        check::served_by(agent, Kind::Tcp, *target, &web.names()?)?;
    }
    let start = |(agent, target): &(&Agent, SocketAddr)| agent.load_start(check::question(Kind::Tcp, *target), RATE);
    let loads = ways.iter().map(start).collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let rolled = again_and_again(it, &web, &ways, &loads);
    let span = begun.elapsed();
    let mut all = Served::default();
    for ((agent, target), id) in ways.iter().zip(loads) {
        all.add(update::new(&[agent.load_stop(id)?], RATE, span, *target)?);
    }
    it.say(&format!("{} rollouts in {:.0} s", rolled?, span.as_secs_f64()));
    ensure!(all.all >= ENOUGH, "{} connections, too few", all.all);
    Ok(all)
}

/// Rolls out until there were enough connections; how often that was.
fn again_and_again(it: &Context, web: &Deployment<'_>, ways: &[(&Agent, SocketAddr)], loads: &[u64]) -> Result<u32> {
    for number in 1..=MOST {
        web.restart(&number.to_string())?;
        web.wait(REPLICAS)?;
        let mut asked = 0;
        for ((agent, _), id) in ways.iter().zip(loads) {
            asked += agent.load_report(*id)?.asked;
        }
        it.say(&format!("rollout {number} done, {asked} connections"));
        if asked >= ENOUGH {
            return Ok(number);
        }
    }
    Ok(MOST)
}
