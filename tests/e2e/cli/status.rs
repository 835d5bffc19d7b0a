//! Status and the cluster's check: all well, nodes and controllers that aren't, and askers who may not.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use sheave_harness::address::ROUTER;
use sheave_harness::kube::{SYSTEM, tokens};
use sheave_harness::sys;
use sheave_harness::wait::until;

use super::services::streams;
use super::{Operator, by_tokens};
use crate::context::Context;
use crate::trust::ByTokens;

/// A stream ends, or stands, well within this.
const SOON: Duration = Duration::from_secs(40);

/// Where replicas serve.
const FIRST: u16 = 15_410;

pub(super) fn run(it: &Context) -> Result<()> {
    let operator = Operator::new(it)?;
    operator.golden.expect("check-before", &[], &["check", "-n", "nowhere", "--kubeconfig", &operator.kubeconfig])?;
    operator.golden.expect("flag-wrong", &[], &["status", "--sauce"])?;
    operator.golden.expect("kubeconfig-missing", &[], &["status", "--kubeconfig", "/nonexistent/config"])?;
    let all = by_tokens(it)?;
    well(&operator)?;
    askers(&operator)?;
    nodes(it, &operator, &all)?;
    installed(it, &operator)?;
    for replica in 0..2 {
        it.cluster.kill_controller(replica)?;
    }
    alone(it, &operator)?;
    for replica in 0..2 {
        it.cluster.start_controller_by_tokens(replica, crate::trust::address(FIRST, replica))?;
    }
    operator.kubectl("-n kube-system delete --wait=false daemonset kube-proxy")?;
    operator.kubectl("-n sheave-system delete --wait=false deployment/sheave-controller daemonset/sheave-proxy")?;
    operator.kubectl("-n sheave-system delete --force pod sheave-controller-0 sheave-controller-1")?;
    all.end()
}

fn well(operator: &Operator<'_>) -> Result<()> {
    until("both nodes have a stream", SOON, || streams(operator.it, 2.0))?;
    operator.asks("status", FIRST, &["status"])?;
    operator.asks("status-wide", FIRST, &["status", "-o", "wide"])?;
    operator.asks("status-json", FIRST, &["status", "-o", "json"])
}

/// Who may not ask, and who shouldn't be asked.
fn askers(operator: &Operator<'_>) -> Result<()> {
    let authority = operator.authority()?;
    let with = |name: &str, token: &str, ca: &str| {
        operator.asks_with(name, FIRST, &["--token-file", token, "--ca-file", ca], &["status"])
    };
    let good = operator.token("sheave-cli", "sheave-cli")?;
    let forged = tokens::forged(&fs::read_to_string(&good)?)?;
    with("token-forged", &operator.file("forged", &forged)?, &authority)?;
    with("token-audience", &operator.token("sheave-cli", "sheave-discovery")?, &authority)?;
    operator.kubectl("-n sheave-system create serviceaccount somebody")?;
    let forbidden = with("user-forbidden", &operator.token("somebody", "sheave-cli")?, &authority);
    operator.kubectl("-n sheave-system delete serviceaccount somebody")?;
    forbidden?;
    let other = operator.it.cluster.world.run.folder.join("kube/ca.crt");
    let other = operator.file("other-ca.crt", &fs::read_to_string(other)?)?;
    with("ca-wrong", &good, &other)
}

/// Nodes that are stopped, hang, or can't use eBPF.
fn nodes(it: &Context, operator: &Operator<'_>, all: &ByTokens<'_>) -> Result<()> {
    let two = it.node(2);
    it.cluster.kill_proxy(two)?;
    until("its stream is gone", SOON, || streams(it, 1.0))?;
    operator.asks("status-node-down", FIRST, &["status"])?;
    // Nothing pins programs on an ordinary folder.
    let plain = operator.folder.join("no-bpffs");
    fs::create_dir_all(&plain)?;
    all.start_proxy_without_bpffs(two, &plain)?;
    all.connected(two)?;
    operator.asks("status-node-in-userspace", FIRST, &["status"])?;
    it.cluster.kill_proxy(two)?;
    all.start_proxy(two)?;
    all.connected(two)?;
    operator.asks("status", FIRST, &["status"])?; // what it was sent is programmed and acknowledged
    let process = it.cluster.proxy_id(two)?;
    sys::kill(process, libc::SIGSTOP)?;
    let asked = operator.asks("status-node-hangs", FIRST, &["status"]);
    sys::kill(process, libc::SIGCONT)?;
    asked?;
    all.connected(two)
}

/// The objects of an installation, with the status that a cluster's own controllers would write.
fn installed(it: &Context, operator: &Operator<'_>) -> Result<()> {
    let api = &operator.kube.api;
    for replica in 0..2 {
        let name = format!("sheave-controller-{replica}");
        let meta =
            json!({"name": name, "namespace": SYSTEM, "labels": {"app.kubernetes.io/name": "sheave-controller"}});
        let spec = json!({"nodeName": "node1", "hostNetwork": true, "containers": [{"name": "c", "image": "sheave"}]});
        let status = json!({"phase": "Running", "podIPs": [{"ip": ROUTER.v4}], "podIP": ROUTER.v4});
        api.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}))?;
    }
    let template = |image: &str| json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}});
    let object =
        |kind: &str, namespace: &str, name: &str, image: &str, spec: serde_json::Value, status: serde_json::Value| {
            let mut all = json!({"selector": {"matchLabels": {"a": "b"}}, "template": template(image)});
            all.as_object_mut().into_iter().for_each(|all| all.extend(spec.as_object().cloned().unwrap_or_default()));
            api.apply(&json!({"apiVersion": "apps/v1", "kind": kind, "spec": all, "status": status,
            "metadata": {"name": name, "namespace": namespace}}))
        };
    let ready = |ready: u32| {
        json!({"desiredNumberScheduled": 2, "numberReady": ready, "updatedNumberScheduled": 2,
        "currentNumberScheduled": 2, "numberMisscheduled": 0})
    };
    object(
        "Deployment",
        SYSTEM,
        "sheave-controller",
        "sheave:1",
        json!({"replicas": 2}),
        json!({"replicas": 2, "readyReplicas": 2}),
    )?;
    object("DaemonSet", SYSTEM, "sheave-proxy", "sheave:1", json!({}), ready(2))?;
    until("both nodes have a stream", SOON, || streams(it, 2.0))?;
    operator.asks("check", FIRST, &["check"])?;
    object("DaemonSet", SYSTEM, "sheave-proxy", "sheave:2", json!({}), ready(1))?;
    object("DaemonSet", "kube-system", "kube-proxy", "kube-proxy:1", json!({}), ready(2))?;
    operator.asks("check-beside-kube-proxy", FIRST, &["check"])
}

/// No controller runs any more.
fn alone(it: &Context, operator: &Operator<'_>) -> Result<()> {
    operator.asks("controllers-down", FIRST, &["status"])?;
    let stale = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"controllers": "10.0.0.250:15010\n", "ca.crt": "none"},
        "metadata": {"name": "sheave-discovery", "namespace": SYSTEM}});
    operator.kube.api.apply(&stale)?;
    operator.asks("check-stale", FIRST, &["check"])?;
    operator.kube.api.delete("ConfigMap", SYSTEM, "sheave-discovery", 0)?;
    operator.asks("check-no-config-map", FIRST, &["check"])?;
    let socket = it.node(1).state.join("admin.sock").display().to_string();
    until("the node knows that it is alone", SOON, || {
        let connected = sheave_harness::metrics::proxy(it.node(1))?.sum("sheave_stream_connected", &[]);
        anyhow::ensure!(connected == 0.0, "it has a stream");
        Ok(())
    })
    .context("no controller")?;
    operator.golden.expect("socket-status", &[], &["--socket", &socket, "status"])?;
    operator.golden.expect("socket-missing", &[], &["--socket", "/nonexistent/admin.sock", "status"])
}
