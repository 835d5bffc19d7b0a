//! Services without a selector, and slices that others manage beside a selector's pods.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};
use sheave_harness::address::Pair;
use sheave_harness::deployment::Deployment;
use sheave_harness::objects::{self, endpoint_slice};
use sheave_harness::testpod::protocol::Kind;

use crate::case::{Case, both, kube};
use crate::check::{question, refused, served_by};
use crate::context::{Context, From, To, sockets};

pub(crate) const CASES: &[Case] = &[
    both("a_selectorless_service_merges_its_slices", two_slices),
    kube("a_selector_service_also_uses_slices_of_other_managers", foreign_slice),
    kube("the_real_endpoint_slice_controller_beside_us_changes_nothing", real_controller),
];

/// Everyone is served by exactly these.
fn settled(it: &Context, vip: Pair, names: &[String]) -> Result<()> {
    for from in [From::Pod(1), From::Node(2)] {
        for target in sockets(vip, 80) {
            let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
            served_by(it, it.agent(from), &question(Kind::Tcp, target), names, &sources)?;
        }
    }
    Ok(())
}

/// The addresses of some pods in one family.
fn addresses(of: &Deployment, range: std::ops::Range<usize>, v6: bool) -> Vec<IpAddr> {
    of.members()[range].iter().map(|member| member.pod.address.of(v6)).collect()
}

fn slice(it: &Context, name: &str, addresses: &[IpAddr]) -> Value {
    endpoint_slice(&it.namespace, name, "web", addresses, ("main", "TCP", 8080))
}

fn two_slices(it: &Context) -> Result<()> {
    let (pods, vip) = (it.deployment("pods", 3)?, it.vip());
    it.apply(&objects::service(
        &it.namespace,
        "web",
        vip,
        &Value::Null,
        &json!([objects::port("main", "TCP", 80, 80)]),
    ))?;
    for target in sockets(vip, 80) {
        refused(it.agent(From::Pod(1)), Kind::Tcp, target)?;
    }
    for v6 in [false, true] {
        // The middle pod is in both slices of its family.
        it.apply(&slice(it, &format!("one-{v6}"), &addresses(&pods, 0..2, v6)))?;
        it.apply(&slice(it, &format!("two-{v6}"), &addresses(&pods, 1..3, v6)))?;
    }
    settled(it, vip, &pods.names())?;
    for v6 in [false, true] {
        it.remove("EndpointSlice", &format!("one-{v6}"))?;
    }
    settled(it, vip, &pods.names()[1..])
}

fn foreign_slice(it: &Context) -> Result<()> {
    let (web, other, vip) = (it.deployment("web", 1)?, it.deployment("other", 1)?, it.vip());
    it.apply(&it.service("web", vip, &web, &[objects::port("main", "TCP", 80, 8080)]))?;
    settled(it, vip, &web.names())?;
    for v6 in [false, true] {
        let mut foreign = slice(it, &format!("foreign-{v6}"), &addresses(&other, 0..1, v6));
        foreign["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] = json!("somebody.example");
        it.apply(&foreign)?;
    }
    settled(it, vip, &[web.names(), other.names()].concat())
}

fn real_controller(it: &Context) -> Result<()> {
    let Some(kube) = &it.kube else { anyhow::bail!("this case needs an API server") };
    let _controller = kube.endpoint_slice_controller()?;
    let (mut web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &[objects::port("main", "TCP", 80, 8080)]))?;
    sheave_harness::wait::until("slices of the real controller", std::time::Duration::from_secs(30), || {
        let slices = kube.api.list("EndpointSlice", &it.namespace)?;
        anyhow::ensure!(!slices.is_empty(), "none yet");
        Ok(())
    })?;
    settled(it, vip, &web.names())?;
    web.scale(1)?;
    settled(it, vip, &web.names())
}
