//! Faults under load: 500 new connections a second all along, and what they met.
//!
//! On the eBPF path no connection fails or is reset. In userspace nothing fails either, except when the proxy itself is
//! killed: connections open at that moment are lost, new ones are delayed, none is refused.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sheave_harness::address::{Pair, ROUTER};
use sheave_harness::cluster::DataPath;
use sheave_harness::deployment::Deployment;
use sheave_harness::relay::Relay;
use sheave_harness::testpod::protocol::{Ask, Kind, LoadReport, Outcome};
use sheave_harness::wait::{holds_for, until};
use sheave_harness::world::Node;
use sheave_harness::{metrics, objects};

use crate::case::{Case, Proof, kube};
use crate::check::{SOON, expect_served, question, served_within};
use crate::context::{Context, From, To, sockets};

/// Programs are restarted: counters begin anew, and the cases before these have proved the path.
const RESTARTED: Proof = Proof::Own("programs are restarted, and count from nought");

pub(crate) const CASES: &[Case] = &[
    kube("the_controller_is_gone_for_30_s_and_no_connection_fails", controller_gone),
    kube("the_api_server_is_gone_for_30_s_and_no_connection_fails", api_server_gone),
    kube("the_stream_is_cut_50_times_and_no_connection_fails", stream_cut),
    kube("a_second_replica_that_lags_takes_nothing_back_in_time", lagging_replica),
    kube("a_killed_proxy_serves_its_snapshot_without_a_controller", proxy_killed).proof(RESTARTED),
];

/// Half of it from a pod of each node: one by IPv4, one by IPv6.
const RATE: u32 = 250;
/// As long as the issue wants it.
const OUTAGE: Duration = Duration::from_secs(30);
/// Proxies wait longer and longer between tries while there is no controller: at most about 6 s, for each of two replicas.
const RECONNECTED: Duration = Duration::from_secs(20);
/// A Lease whose holder was killed in the case before runs out first.
const ELECTED: Duration = Duration::from_secs(40);
/// A delayed connection is not a failed one: SYNs are sent again after 1, 3 and 7 s.
const PATIENCE: u64 = 25_000;

/// As many connections may send their SYN again as come in a tenth of a second: a machine that pauses for a while makes
/// that of a few, and a proxy that starts anew takes several times as long.
const PAUSED: u64 = RATE as u64 / 10;

/// How long the load goes on after a restart, so that a late loss would show.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// Two loads on one Service.
struct Loads<'a> {
    it: &'a Context,
    ids: [u64; 2],
}

const CLIENTS: [From; 2] = [From::Pod(1), From::Pod(2)];

impl<'a> Loads<'a> {
    fn start(it: &'a Context, vip: Pair) -> Result<Self> {
        let start = |index: usize| -> Result<u64> {
            let ask = Ask { patience: PATIENCE, ..Ask::new(Kind::Hello, sockets(vip, 90)[index]) };
            it.agent(CLIENTS[index]).load_start(ask, RATE)
        };
        Ok(Self { it, ids: [start(0)?, start(1)?] })
    }

    /// Ends both and prints what they met.
    fn stop(self) -> Result<[LoadReport; 2]> {
        let stop = |index: usize| self.it.agent(CLIENTS[index]).load_stop(self.ids[index]);
        let reports = [stop(0)?, stop(1)?];
        #[expect(clippy::print_stdout, reason = "a test program reports on standard output")]
        for (report, from) in reports.iter().zip(CLIENTS) {
            println!(
                "    {from:?}: {} connections, {:?}, longest delay {:.0} ms",
                report.asked, report.outcomes, report.longest
            );
        }
        Ok(reports)
    }

    /// Ends both; every single connection was served, and the load really was one. Where the hook serves, they didn't wait
    /// for a second SYN either: while a hook is gone every connection would.
    fn stop_unharmed(self, at_least: Duration) -> Result<()> {
        let wanted = at_least.as_secs() * u64::from(RATE) * 9 / 10;
        let hooked = self.it.path() == DataPath::Ebpf;
        for report in self.stop()? {
            ensure!(!hooked || report.resent <= PAUSED, "{} connections sent their SYN again", report.resent);
            ensure!(report.failed() == 0, "{} of {} failed: {:?}", report.failed(), report.asked, report.failures);
            ensure!(report.asked >= wanted, "only {} connections, {wanted} wanted", report.asked);
        }
        Ok(())
    }
}

/// A Service with three pods, known to be served on both nodes.
fn web(it: &Context) -> Result<(Deployment, Pair)> {
    let (web, vip) = (it.deployment("web", 3)?, it.vip());
    let ports = [objects::port("hello", "TCP", 90, "hello"), objects::port("tcp", "TCP", 80, "tcp")];
    it.apply(&it.service("web", vip, &web, &ports))?;
    served(it, vip, &web.names())?;
    Ok((web, vip))
}

fn served(it: &Context, vip: Pair, names: &[String]) -> Result<()> {
    arrives(it, vip, names, SOON)
}

fn arrives(it: &Context, vip: Pair, names: &[String], deadline: Duration) -> Result<()> {
    for from in CLIENTS {
        for target in sockets(vip, 90) {
            let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            served_within(deadline, it, it.agent(from), &question(Kind::Hello, target), names, &sources)?;
        }
    }
    Ok(())
}

/// How often each node's stream was opened again so far.
fn reconnects(it: &Context) -> Result<Vec<f64>> {
    let of = |node: &Arc<Node>| Ok(metrics::proxy(node)?.sum("sheave_stream_reconnects_total", &[]));
    it.cluster.world.nodes.iter().map(of).collect()
}

/// Waits until every node has a stream that it opened after `before` was read.
fn reconnected(it: &Context, before: &[f64]) -> Result<()> {
    until("every proxy has a new stream", RECONNECTED, || {
        for (node, before) in it.cluster.world.nodes.iter().zip(before) {
            let metrics = metrics::proxy(node)?;
            let opened = metrics.sum("sheave_stream_reconnects_total", &[]);
            let connected = metrics.sum("sheave_stream_connected", &[]) == 1.0;
            ensure!(opened > *before && connected, "{}: opened {before} times, now {opened}", node.name);
        }
        Ok(())
    })
}

/// A change is followed, once every node has a stream again: the controller is back in every respect.
fn follows(it: &Context, web: &mut Deployment, vip: Pair) -> Result<()> {
    until("every proxy has a stream", RECONNECTED, || {
        for node in &it.cluster.world.nodes {
            let connected = metrics::proxy(node)?.sum("sheave_stream_connected", &[]);
            ensure!(connected == 1.0, "{} has none", node.name);
        }
        Ok(())
    })?;
    let count = web.members().len();
    web.scale(count + 1)?;
    served(it, vip, &web.names())
}

fn controller_gone(it: &Context) -> Result<()> {
    let (mut web, vip) = web(it)?;
    let loads = Loads::start(it, vip)?;
    it.cluster.kill_controller(0)?;
    let start = Instant::now();
    holds_for("every pod goes on answering", OUTAGE, || {
        std::thread::sleep(Duration::from_secs(1));
        served(it, vip, &web.names())
    })?;
    it.cluster.start_controller(0)?;
    follows(it, &mut web, vip)?;
    loads.stop_unharmed(start.elapsed())
}

fn api_server_gone(it: &Context) -> Result<()> {
    let kube = it.kube.as_ref().context("this case needs an API server")?;
    let (mut web, vip) = web(it)?;
    let loads = Loads::start(it, vip)?;
    kube.stop_server()?;
    let start = Instant::now();
    holds_for("every pod goes on answering", OUTAGE, || {
        std::thread::sleep(Duration::from_secs(1));
        served(it, vip, &web.names())
    })?;
    kube.start_server()?;
    follows(it, &mut web, vip)?;
    loads.stop_unharmed(start.elapsed())
}

fn stream_cut(it: &Context) -> Result<()> {
    const CUTS: u32 = 50;
    let (mut web, vip) = web(it)?;
    let relay = it.cluster.relay(0)?;
    let loads = Loads::start(it, vip)?;
    let start = Instant::now();
    for cut in 0..CUTS {
        let before = reconnects(it)?;
        relay.cut();
        reconnected(it, &before).with_context(|| format!("after cut {cut}"))?;
        if cut % 10 == 9 {
            web.scale(web.members().len() + 1)?; // none is taken away: a pod that ends takes its connections with it
        }
    }
    follows(it, &mut web, vip)?;
    loads.stop_unharmed(start.elapsed())
}

fn lagging_replica(it: &Context) -> Result<()> {
    let kube = it.kube.as_ref().context("this case needs an API server")?;
    let (mut web, vip) = web(it)?;
    let relay = Relay::start(SocketAddr::from((ROUTER.v4, 0)), kube.address())?;
    let kubeconfig = kube.kubeconfig_through(relay.address)?.display().to_string();
    let source = ["--source", "kube", "--kubeconfig", &kubeconfig, "--lease-namespace", sheave_harness::kube::SYSTEM];
    it.cluster.start_controller_with(1, &source.map(str::to_owned))?;
    until("the second replica has a full list", SOON, || {
        let objects = it.cluster.controller_metrics(1)?.sum("sheave_objects", &[("kind", "Pod")]);
        ensure!(objects >= 3.0, "it knows {objects} pods");
        Ok(())
    })?;
    until("one of two replicas may write", ELECTED, || {
        let leads = |replica| Ok(it.cluster.controller_metrics(replica)?.sum("sheave_leader", &[]));
        let leaders: [Result<f64>; 2] = [leads(0), leads(1)];
        let [one, other] = leaders;
        let (one, other) = (one?, other?);
        ensure!(one + other == 1.0, "sheave_leader is {one} and {other}");
        Ok(())
    })?;
    let loads = Loads::start(it, vip)?;
    let start = Instant::now();
    relay.set_frozen(true);
    // What the second replica doesn't see: a pod more, and one that takes no new connections any more.
    web.scale(4)?;
    web.set_phase(0, objects::UNREADY)?;
    let names = web.names()[1..].to_vec();
    served(it, vip, &names)?;
    it.cluster.kill_controller(0)?;
    holds_for("no node goes back to the older view", Duration::from_secs(15), || {
        for from in CLIENTS {
            for target in sockets(vip, 90) {
                let agent = it.agent(from);
                let answer = agent.ask(&question(Kind::Hello, target))?;
                let server = expect_served(agent, &question(Kind::Hello, target), &answer)?;
                ensure!(names.contains(&server), "{server} answers {from:?} again");
            }
        }
        Ok(())
    })?;
    relay.set_frozen(false);
    web.scale(5)?;
    arrives(it, vip, &web.names()[1..], RECONNECTED)?; // the second replica has caught up and serves
    loads.stop_unharmed(start.elapsed())?;
    it.cluster.start_controller(0)?;
    it.cluster.kill_controller(1)?;
    web.scale(4)?;
    arrives(it, vip, &web.names()[1..], RECONNECTED)
}

fn proxy_killed(it: &Context) -> Result<()> {
    let (mut web, vip) = web(it)?;
    it.saved()?;
    it.cluster.kill_controller(0)?;
    let agent = it.agent(From::Pod(1));
    let kept = agent.open(&Ask::new(Kind::Tcp, sockets(vip, 80)[0]))?;
    expect_served(agent, &question(Kind::Tcp, sockets(vip, 80)[0]), &kept.answer)?;
    let loads = Loads::start(it, vip)?;
    for node in &it.cluster.world.nodes {
        it.cluster.kill_proxy(node)?;
        let attached = metrics::attached(node)?;
        ensure!((attached > 0) == (it.path() == DataPath::Ebpf), "{attached} programs are attached without a proxy");
    }
    for node in &it.cluster.world.nodes {
        it.cluster.start_proxy(node)?;
    }
    for node in &it.cluster.world.nodes {
        it.cluster.wait_ready(node)?;
    }
    holds_for("every pod answers", AFTERWARDS, || served(it, vip, &web.names()))?;
    if it.path() == DataPath::Ebpf {
        loads.stop_unharmed(AFTERWARDS)?;
        ensure!(agent.ping(kept.id)?.outcome == Outcome::Served, "an open connection was lost with the proxy");
    } else {
        for report in loads.stop()? {
            // Lost are those that were open when the proxy was killed; a connection lives for about a millisecond.
            let lost = report.failed();
            let refused = report.outcomes.get("Refused").copied().unwrap_or(0);
            ensure!(refused == 0, "{refused} connections were refused: {:?}", report.failures);
            ensure!(lost <= 10, "{lost} of {} were lost: {:?}", report.asked, report.failures);
        }
        let open = agent.ping(kept.id)?.outcome;
        ensure!(open != Outcome::Served, "an open connection outlived the process that carried it");
    }
    agent.close(kept.id)?;
    it.cluster.start_controller(0)?;
    follows(it, &mut web, vip)
}
