//! What the demo shows, in order, and what must hold at each step.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::cluster::Cluster;
use sheave_harness::metrics;
use sheave_harness::sys;
use sheave_harness::testpod::protocol::{Ask, Kind, Outcome};
use sheave_harness::wait::until;

use crate::report::{Report, tally};
use crate::stage::{Stage, data_path};

/// Questions per Service type: with two backends, one of them staying idle has odds of 1 in 2^39.
const QUESTIONS: u32 = 40;
/// A change reaches every node well within this; the demo prints how long it really took.
const SOON: Duration = Duration::from_secs(10);

/// Plays everything but the cleaning up.
pub(crate) fn tell(stage: &mut Stage, report: &mut Report) -> Result<()> {
    for node in &stage.cluster.world.nodes {
        let info = data_path(node)?;
        report.check(&format!("{} is ready: {}", node.name, info.replace("sheave_datapath_info", "")), true, "");
    }
    every_service_type(stage, report)?;
    refusals(stage, report)?;
    scaling(stage, report)?;
    deletion_under_load(stage, report)?;
    numbers(stage, report)
}

fn at(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().expect("an address written in this file");
    SocketAddr::new(address, port)
}

/// Asks often and counts who answered; fails on the first that was not served.
fn ask_often(client: &Agent, ask: &Ask) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for _ in 0..QUESTIONS {
        let answer = client.ask(ask)?;
        ensure!(answer.outcome == Outcome::Served, "{} to {}: {:?}", client.name(), ask.target, answer.outcome);
        *counts.entry(answer.server.unwrap_or_default()).or_default() += 1;
    }
    Ok(counts)
}

fn every_service_type(stage: &Stage, report: &mut Report) -> Result<()> {
    report.section("Who answers, for each type of Service (40 connections each)");
    let world = &stage.cluster.world;
    let pod = &stage.cluster.clients[0].agent;
    let (host, outside) = (&world.node(1).agent, &world.outside[0].agent);
    let node = world.node(1).address;
    let (web, shop, api, echo) = (stage.web.names(), stage.shop.names(), stage.api.names(), stage.echo.names());
    let rows: [(&str, &Agent, Kind, SocketAddr, &Vec<String>); 14] = [
        ("pod -> ClusterIP", pod, Kind::Http, at("10.96.0.80", 80), &web),
        ("pod -> ClusterIP, IPv6", pod, Kind::Http, at("fd00:96::80", 80), &web),
        ("node -> ClusterIP", host, Kind::Http, at("10.96.0.81", 80), &shop),
        ("pod -> ClusterIP, UDP", pod, Kind::Udp, at("10.96.0.53", 53), &echo),
        ("pod -> ClusterIP, UDP, IPv6", pod, Kind::Udp, at("fd00:96::53", 53), &echo),
        ("outside -> NodePort", outside, Kind::Http, SocketAddr::new(node.v4.into(), 30080), &shop),
        ("outside -> NodePort, IPv6", outside, Kind::Http, SocketAddr::new(node.v6.into(), 30080), &shop),
        ("node -> NodePort on localhost", host, Kind::Http, at("127.0.0.1", 30080), &shop),
        ("outside -> external IP", outside, Kind::Http, at("10.90.0.81", 80), &shop),
        ("pod -> external IP, IPv6", pod, Kind::Http, at("fd00:90::81", 80), &shop),
        ("outside -> LoadBalancer, HTTP", outside, Kind::Http, at("10.89.0.82", 80), &api),
        ("outside -> LoadBalancer, HTTP, IPv6", outside, Kind::Http, at("fd00:89::82", 80), &api),
        ("pod -> LoadBalancer, HTTP", pod, Kind::Http, at("10.89.0.82", 80), &api),
        ("pod -> ClusterIP, HTTP", pod, Kind::Http, at("10.96.0.82", 80), &api),
    ];
    for (what, client, kind, target, servers) in rows {
        let mut ask = Ask::new(kind, target);
        if kind == Kind::Udp {
            ask.say = "ping".into();
        }
        let counts = until(what, SOON, || ask_often(client, &ask))?;
        let all = servers.iter().all(|server| counts.contains_key(server)) && counts.len() == servers.len();
        report.check(&format!("{what:<36} {}", tally(&counts)), all, &format!("expected {servers:?}"));
    }
    Ok(())
}

fn refusals(stage: &Stage, report: &mut Report) -> Result<()> {
    report.section("What is refused, at once");
    let pod = &stage.cluster.clients[0].agent;
    for (what, target) in [
        ("a Service without endpoints", at("10.96.0.66", 80)),
        ("another port of a live ClusterIP", at("10.96.0.80", 81)),
    ] {
        let answer = pod.tcp(target)?;
        report.check(what, answer.outcome == Outcome::Refused, &format!("{:?}", answer.outcome));
    }
    Ok(())
}

/// Waits until exactly these servers answer, and says how long that took.
fn converge(client: &Agent, target: SocketAddr, names: &[String]) -> Result<(BTreeMap<String, u32>, Duration)> {
    let begun = Instant::now();
    let ask = Ask::new(Kind::Http, target);
    let counts = until("the new set of pods answers", SOON, || {
        let counts = ask_often(client, &ask)?;
        ensure!(counts.keys().eq(names), "{counts:?} instead of {names:?}");
        Ok(counts)
    })?;
    Ok((counts, begun.elapsed()))
}

fn scaling(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.section("web is scaled: 1 -> 5 -> 2");
    for count in [5, 2] {
        stage.scale_web(count)?;
        let mut names = stage.web.names();
        names.sort();
        let client = &stage.cluster.clients[1].agent;
        let (counts, took) = converge(client, at("10.96.0.80", 80), &names)?;
        let line = format!(
            "{count} pods answer, {:.0} ms and {QUESTIONS} questions later: {}",
            took.as_secs_f64() * 1e3,
            tally(&counts)
        );
        report.check(&line, counts.len() == count, "");
    }
    Ok(())
}

fn deletion_under_load(stage: &mut Stage, report: &mut Report) -> Result<()> {
    report.section("A pod of web is deleted under load: it serves for 2 s more, then ends");
    let clients: Vec<_> = stage.cluster.clients.iter().map(|client| &client.agent).collect();
    let mut loads = Vec::new();
    for client in &clients {
        loads.push(client.load_start(Ask::new(Kind::Http, at("10.96.0.80", 80)), 250)?);
    }
    let victim = stage.web.names().into_iter().next().context("web has a pod")?;
    for (client, load) in clients.iter().zip(&loads) {
        until("the load reaches the pod", SOON, || {
            let report = client.load_report(*load)?;
            ensure!(report.servers.contains_key(&victim), "{report:?}");
            Ok(())
        })?;
    }
    stage.web.terminate(stage.web.position(&victim)?, 30)?;
    let deleted = sys::monotonic();
    std::thread::sleep(Duration::from_secs(2)); // the pod's own grace: this is the scenario, not a wait for a condition
    stage.web.delete(stage.web.position(&victim)?)?;
    let before: u64 = totals(&clients, &loads)?;
    until("the load goes on", SOON, || {
        ensure!(totals(&clients, &loads)? > before + 200, "no more connections");
        Ok(())
    })?;
    let (mut asked, mut failed, mut last, mut failures) = (0, 0, 0, Vec::new());
    for (client, load) in clients.iter().zip(&loads) {
        let end = client.load_stop(*load)?;
        asked += end.asked;
        failed += end.failed();
        last = last.max(end.servers.get(&victim).map_or(0, |span| span.last));
        failures.extend(end.failures);
    }
    report.check(&format!("{asked} requests, {failed} failed"), failed == 0, &format!("{failures:?}"));
    let after = Duration::from_nanos(last).saturating_sub(deleted);
    let line = format!("the last new connection to it began {:.1} ms after its deletion", after.as_secs_f64() * 1e3);
    report.check(&line, after < Duration::from_secs(1), "later than a second");
    Ok(())
}

fn totals(clients: &[&Agent], loads: &[u64]) -> Result<u64> {
    clients.iter().zip(loads).map(|(client, load)| Ok(client.load_report(*load)?.asked)).sum()
}

fn numbers(stage: &Stage, report: &mut Report) -> Result<()> {
    report.section("What Prometheus sees (node1, a slice)");
    let metrics = metrics::proxy(stage.cluster.world.node(1))?;
    for part in [
        "sheave_revision_",
        "sheave_hook_translations_total",
        "sheave_listener_accepts_total",
        "sheave_service_connections_total{",
    ] {
        for line in metrics.lines(part).iter().filter(|line| !line.ends_with(" 0")).take(6) {
            report.say(line);
        }
    }
    let count = metrics.sum("sheave_programming_latency_seconds_count", &[]);
    let mean = metrics.sum("sheave_programming_latency_seconds_sum", &[]) / count.max(1.0);
    report.check(&format!("{count} changes programmed, {:.2} ms each on average", mean * 1e3), count > 0.0, "none was");
    let carried = metrics.sum("sheave_service_connections_total", &[("namespace", "demo"), ("service", "web")]);
    report.check(&format!("{carried} connections of this node went to web"), carried > 0.0, "none is counted");
    report.check("a stream to the controller is up", metrics.sum("sheave_stream_connected", &[]) > 0.0, "it is down");
    Ok(())
}

/// Ends everything and looks for what is left.
pub(crate) fn clean(stage: Stage, report: &mut Report) -> Result<()> {
    let Stage { cluster, web, shop, api, echo } = stage;
    let world = Arc::clone(&cluster.world);
    drop((web, shop, api, echo));
    let cluster = Arc::try_unwrap(cluster).ok().context("the cluster is still in use")?;
    Cluster::stop(cluster)?;
    for node in &world.nodes {
        let attached = metrics::attached(node)?;
        report.check(&format!("no program is attached on {}", node.name), attached == 0, &format!("{attached} are"));
        let rules = node.netns.output("ip", &["rule", "show"])?;
        report.check(&format!("no routing rule of ours is left on {}", node.name), rules.lines().count() == 3, &rules);
    }
    Ok(())
}
