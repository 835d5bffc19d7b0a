//! Services: listed, one in detail on each node, by a node's own socket, and those that something is wrong with.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use sheave_harness::deployment::Deployment;
use sheave_harness::objects;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use super::{Operator, by_tokens};
use crate::check::{question, served_by};
use crate::context::{Context, From, To, ports, sockets};

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
    settled(it, &web, 0)?;
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
    settled(it, &web, 3)?;
    operator.asks("services-not-as-written", 15_410, &["services", &one("odd")])?;
    operator.asks("services-conflict", 15_410, &["services", &one("second")])?;

    web.terminate(1, 600)?;
    until("one endpoint terminates on both nodes", SOON, || {
        on_both(it, "\"terminating\": true", "\"terminating\":true")
    })?;
    operator.asks("services-terminating", 15_410, &["services", &one("web"), "-o", "wide"])?;

    // One node no longer follows.
    it.cluster.kill_proxy(it.node(2))?;
    until("its stream is gone", SOON, || streams(it, 1.0))?;
    operator.asks("services-node-gone", 15_410, &["services", &one("web")])?;
    all.start_proxy(it.node(2))?;
    all.connected(it.node(2))?;
    all.end()
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
fn settled(it: &Context, web: &Deployment, _services: usize) -> Result<()> {
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
