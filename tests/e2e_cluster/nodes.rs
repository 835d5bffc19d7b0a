//! Nodes fail: their kubelet, or all of them at once. And what other topics ask of pods and containers on a node.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use crate::check;
use crate::context::{Case, Context, case, sheave};
use crate::faults::{CURRENT, Stage};
use crate::shell::{self, shell};
use crate::traffic::Traffic;
use crate::workload::Deployment;

pub(crate) const CASES: &[Case] = &[
    case("a_kubelet_stops_and_the_pods_of_its_node_are_evicted", kubelet_stopped).long(),
    sheave("a_node_is_killed_and_comes_back_from_its_disk", node_killed).long(),
];

/// The node controller gives a silent node up after 20 s; then its pods' two seconds of tolerance.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// A node is Ready, with its pods.
const STARTED: Duration = Duration::from_secs(90);

/// The container of a pod of one.
pub(crate) fn container_status(it: &Context<'_>, namespace: &str, pod: &str) -> Result<Value> {
    Ok(it.fixture.api.read("Pod", namespace, pod)?["status"]["containerStatuses"][0].clone())
}

/// How often it was started again.
pub(crate) fn restarts(it: &Context<'_>, namespace: &str, pod: &str) -> Result<u64> {
    container_status(it, namespace, pod)?["restartCount"].as_u64().context("restartCount")
}

/// Its id, as containerd has it.
pub(crate) fn container(it: &Context<'_>, namespace: &str, pod: &str) -> Result<String> {
    let status = container_status(it, namespace, pod)?;
    let id = status["containerID"].as_str().and_then(|id| id.strip_prefix("containerd://"));
    Ok(id.with_context(|| format!("{pod}: {status}"))?.to_owned())
}

/// Kills a container of a node, whoever may think that it lives.
pub(crate) fn kill(it: &Context<'_>, node: &str, container: &str) -> Result<()> {
    shell(it, node, &format!("ctr -n k8s.io task kill --signal SIGKILL {container}")).map(drop)
}

/// The proxy's pod on a node.
pub(crate) fn proxy_pod(it: &Context<'_>, node: &str) -> Result<String> {
    let pods = it.fixture.api.list("Pod", "sheave-system")?;
    let of = |pod: &&Value| {
        pod["metadata"]["labels"]["app.kubernetes.io/name"] == "sheave-proxy"
            && pod["spec"]["nodeName"] == node
            && pod["metadata"]["deletionTimestamp"].is_null()
    };
    let pod = pods.iter().find(of).with_context(|| format!("{node} has no proxy"))?;
    Ok(pod["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

/// Whether the API has a node as Ready.
fn is_ready(it: &Context<'_>, node: &str) -> Result<bool> {
    let object = it.fixture.api.read("Node", "", node)?;
    let conditions = object["status"]["conditions"].as_array().context("conditions")?;
    Ok(conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Waits until a node is Ready, or isn't.
pub(crate) fn becomes(it: &Context<'_>, node: &str, ready: bool, within: Duration) -> Result<()> {
    until(&format!("{node} is Ready: {ready}"), within, || {
        ensure!(is_ready(it, node)? == ready, "not yet");
        Ok(())
    })
}

/// Waits until the clients on every node do what they are told, after their containers were started again.
pub(crate) fn clients_answer(it: &Context<'_>) -> Result<()> {
    for agent in it.inside() {
        until(&format!("{} answers", agent.name()), STARTED, || agent.records().map(drop))?;
    }
    Ok(())
}

/// Pods that leave a node which isn't heard of, soon; the usual five minutes are long.
fn hasty() -> Value {
    let leave = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2});
    json!([leave("node.kubernetes.io/unreachable"), leave("node.kubernetes.io/not-ready")])
}

fn kubelet_stopped(it: &Context<'_>) -> Result<()> {
    let spread = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({"topologySpreadConstraints": spread, "tolerations": hasty()});
    let web = Deployment::with(&it.fixture.api, &it.namespace, "web", 4, &spec)?;
    let stage = Stage { web, service: it.service("web", "NodePort")? };
    let (names, node) = (stage.web.names()?, &it.nodes()[1].name);
    let there = |names: &[String]| -> Result<Vec<String>> {
        let pods = stage.web.pods()?;
        Ok(pods.into_iter().filter(|pod| &pod.node == node && names.contains(&pod.name)).map(|pod| pod.name).collect())
    };
    let evicted = there(&names)?;
    ensure!(!evicted.is_empty(), "no pod on {node}");
    let traffic = Traffic::start(it, &stage.service, &names)?;
    shell::service(it, "stop", node, "kubelet")?;
    let gone = || -> Result<()> {
        becomes(it, node, false, GIVEN_UP)?;
        until("other pods take the place of those that were evicted", GIVEN_UP, || {
            let ready = stage.web.names()?;
            ensure!(ready.len() == 4 && there(&ready)?.is_empty(), "ready: {ready:?}");
            Ok(())
        })?;
        stage.current(it, &stage.web.names()?)
    };
    let gone = gone();
    shell::service(it, "start", node, "kubelet")?;
    gone?;
    becomes(it, node, true, STARTED)?;
    stage.follows(it)?;
    // The evicted pods lived until the kubelet came back and ended them.
    let living: Vec<_> = names.into_iter().filter(|name| !evicted.contains(name)).collect();
    traffic.unharmed(&living).map(drop)
}

/// Endpoints, clients and the way between them are on the node that stays; then on both.
fn node_killed(it: &Context<'_>) -> Result<()> {
    let (stays, dies) = (&it.nodes()[0], &it.nodes()[1]);
    let pinned = json!({"nodeSelector": {"kubernetes.io/hostname": stays.name}});
    let steady = Deployment::with(&it.fixture.api, &it.namespace, "steady", 2, &pinned)?;
    let service = it.service("steady", "NodePort")?;
    let names = steady.names()?;
    let stage = Stage::set(it)?;
    let pods = stage.web.names()?;
    stage.current(it, &pods)?;
    let node_port = std::net::SocketAddr::new(stays.addresses[0], service.node_ports[0]);
    let targets =
        [(&stays.pod, service.sockets(80)[0]), (&stays.host, service.sockets(80)[1]), (&it.fixture.outside, node_port)];
    let traffic = Traffic::between(it, &targets, &names)?;
    shell::service(it, "stop", "world", &dies.name)?;
    let given_up = || -> Result<()> {
        becomes(it, &dies.name, false, GIVEN_UP)?;
        // Its pods are no endpoints any more, wherever the client is.
        let here = until("its pods are not ready", GIVEN_UP, || {
            let pods = stage.web.pods()?;
            ensure!(pods.iter().all(|pod| !pod.ready || pod.node == stays.name), "{pods:?}");
            Ok(pods.into_iter().filter(|pod| pod.ready).map(|pod| pod.name).collect::<Vec<_>>())
        })?;
        std::thread::sleep(CURRENT);
        check::served_within(Duration::ZERO, &stays.pod, Kind::Tcp, stage.service.sockets(80)[0], &here)
    };
    let given_up = given_up();
    shell::service(it, "start", "world", &dies.name)?;
    becomes(it, &dies.name, true, STARTED)?;
    clients_answer(it)?;
    given_up?;
    stage.web.wait(4)?;
    shell::ready(it)?;
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}
