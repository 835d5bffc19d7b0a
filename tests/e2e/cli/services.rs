//! Services: listed, one in detail on each node, by a node's own socket, and those that something is wrong with.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use sheave_harness::address::{Pair, ROUTER};
use sheave_harness::deployment::Deployment;
use sheave_harness::kube::SYSTEM;
use sheave_harness::objects;
use sheave_harness::relay::Relay;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use super::{Operator, by_tokens};
use crate::check::{question, served_by};
use crate::context::{Context, From, To, ports, sockets};
use crate::trust::ByTokens;

/// A change reaches both nodes well within this.
const SOON: Duration = Duration::from_secs(20);

pub(super) fn run(it: &Context) -> Result<()> {
    let all = by_tokens(it)?;
    let mut operator = Operator::new(it)?;
    let web = it.deployment("web", 2)?;
    let vips = [it.vip(), it.vip(), it.vip(), it.vip()];
    let shared = it.external();
    operator.know("pod", web.members().iter().map(|member| member.pod.address));
    operator.know("vip", vips);
    operator.know("shared", [shared]);
    it.apply(&it.service("web", vips[0], &web, &ports()))?;
    let lonely = objects::service(&it.namespace, "lonely", vips[1], &json!({"app": "nobody"}), &json!(ports()));
    it.apply(&lonely)?;
    settled(it, &web)?;
    let one = |name: &str| format!("{}/{name}", it.namespace);
    operator.asks("services", 15_410, &["services", &one("")])?;
    operator.asks("services-json", 15_410, &["services", &one(""), "-o", "json"])?;
    operator.asks("services-one", 15_410, &["services", &one("web")])?;
    operator.asks("services-no-endpoint", 15_410, &["services", &one("lonely")])?;
    operator.asks("services-unknown", 15_410, &["services", &one("missing")])?;
    sockets_say(it, &mut operator, &one("web"))?;

    // What can't be served as it is written: a protocol, and an address that an older Service has.
    let sctp = [objects::port("tcp", "TCP", 80, 8080), objects::port("sctp", "SCTP", 90, 8080)];
    it.apply(&it.service("odd", vips[2], &web, &sctp))?;
    let mut first = it.service("first", vips[3], &web, &[objects::port("tcp", "TCP", 80, 8080)]);
    first["spec"]["externalIPs"] = json!([shared.v4]);
    it.apply(&first)?;
    // Creation times have whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let late = it.vip();
    operator.know("late", [late]);
    let mut second = it.service("second", late, &web, &[objects::port("tcp", "TCP", 80, 8080)]);
    second["spec"]["externalIPs"] = json!([shared.v4]);
    it.apply(&second)?;
    settled(it, &web)?;
    operator.asks("services-not-as-written", 15_410, &["services", &one("odd")])?;
    operator.asks("services-conflict", 15_410, &["services", &one("second")])?;

    web.terminate(1, 600)?;
    until("one endpoint terminates on both nodes", SOON, || {
        on_both(it, "\"terminating\": true", "\"terminating\":true")
    })?;
    operator.asks("services-terminating", 15_410, &["services", &one("web"), "-o", "wide"])?;

    differing(it, &all, &operator, &web, vips[0])?;

    // One node no longer follows.
    it.cluster.kill_proxy(it.node(2))?;
    until("its stream is gone", SOON, || streams(it, 1.0))?;
    operator.asks("services-node-gone", 15_410, &["services", &one("web")])?;
    all.start_proxy(it.node(2))?;
    all.connected(it.node(2))?;
    all.end()
}

/// A replica that has lost the API server, and a node whose stream it has: they know the Service as it was.
fn differing(it: &Context, all: &ByTokens<'_>, operator: &Operator<'_>, web: &Deployment, vip: Pair) -> Result<()> {
    let (two, second) = (it.node(2), crate::trust::address(15_410, 1));
    let relay = Relay::start(SocketAddr::from((ROUTER.v4, 0)), operator.kube.address())?;
    let through = operator.kube.kubeconfig_through(relay.address)?.display().to_string();
    let source = ["--source", "kube", "--kubeconfig", &through, "--lease-namespace", SYSTEM].map(str::to_owned);
    it.cluster.kill_controller(1)?;
    it.cluster.start_controller_by_tokens_with(1, second, &source)?;
    until("both replicas are in the ConfigMap", SOON, || all.lists(15_410))?;
    let authority = operator.authority()?;
    it.cluster.kill_proxy(two)?;
    fs::remove_file(two.state.join("discovery"))?;
    all.mount_data(two, &format!("{second}\n"), &fs::read_to_string(&authority)?)?;
    all.start_proxy(two)?;
    all.connected(two)?;
    // The replica remembers for a minute whom it has admitted, which is all it can do without the API server.
    let token = operator.token("sheave-cli", "sheave-cli")?;
    let proof = ["--token-file", token.as_str(), "--ca-file", authority.as_str()];
    let service = format!("{}/web", it.namespace);
    operator.asks_with("services-before-they-differ", 15_410, &proof, &["services", &service])?;
    relay.set_closed(true);
    it.apply(&it.service("web", vip, web, &[objects::port("tcp", "TCP", 80, 8080)]))?;
    until("node 1 has the change", SOON, || {
        let page = it.cluster.debug(it.node(1), "/debug/services")?;
        let all: serde_json::Value = serde_json::from_str(&page)?;
        let found = all["services"].as_array().into_iter().flatten().find(|one| one["name"] == service.as_str());
        let ports = found.and_then(|one| one["ports"].as_array()).map_or(0, Vec::len);
        anyhow::ensure!(ports == 1, "it has {ports} ports");
        Ok(())
    })?;
    let said = operator.asks_with("services-nodes-differ", 15_410, &proof, &["services", &service]);
    relay.set_closed(false);
    said
}

/// The node's own answers, which need no controller.
fn sockets_say(it: &Context, operator: &mut Operator<'_>, service: &str) -> Result<()> {
    let socket = it.node(1).state.join("admin.sock").display().to_string();
    operator.golden.known.insert(0, (socket.clone(), "SOCKET".to_owned()));
    operator.golden.expect(
        "socket-services",
        &[],
        &["--socket", &socket, "services", &format!("{}/", it.namespace)],
    )?;
    operator.golden.expect("socket-services-one", &[], &["--socket", &socket, "services", service])
}

/// Waits until both nodes serve a Service, and with it all that was written before.
fn settled(it: &Context, web: &Deployment) -> Result<()> {
    let vip = it.vip();
    let marker = format!("settled-{}", vip.v4.octets()[3]);
    it.apply(&it.service(&marker, vip, web, &ports()))?;
    for node in [1, 2] {
        for target in sockets(vip, 80) {
            let sources = it.sources(From::Pod(node), To::ClusterIp, target.is_ipv6());
            served_by(it, it.agent(From::Pod(node)), &question(Kind::Tcp, target), &web.names(), &sources)?;
        }
    }
    it.remove("Service", &marker)?;
    until("it is gone from both", SOON, || {
        for node in &it.cluster.world.nodes {
            anyhow::ensure!(!it.cluster.debug(node, "/debug/services")?.contains(&marker), "{} has it", node.name);
        }
        Ok(())
    })
    .context("the marker")
}

fn on_both(it: &Context, word: &str, or: &str) -> Result<()> {
    for node in &it.cluster.world.nodes {
        let page = it.cluster.debug(node, "/debug/snapshot")?;
        anyhow::ensure!(page.contains(word) || page.contains(or), "not on {}", node.name);
    }
    Ok(())
}

/// How many proxies have a stream to some replica.
pub(super) fn streams(it: &Context, wanted: f64) -> Result<()> {
    let of = |replica| -> Result<f64> { Ok(it.cluster.controller_metrics(replica)?.sum("sheave_subscribers", &[])) };
    let now = of(0)? + of(1)?;
    anyhow::ensure!(now == wanted, "{now} streams");
    Ok(())
}
