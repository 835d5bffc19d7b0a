//! With a thousand Services, one pod becomes ready or not: from the API server's event to the last node's first connection that
//! shows it.
//!
//! The pod's readiness is a gate that this program opens and shuts; its kubelet draws the conclusion, and the event counts that
//! says so. What comes after is the proxies' part: for kube-proxy that includes the endpoint slice controller, without which
//! it would hear of nothing. Changes are farther apart than kube-proxy's shortest time between two writes (1 s), so that none
//! waits for the one before.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sheave_harness::agent::Agent;
use sheave_harness::kube::{Api, Watch};
use sheave_harness::kubelets::check;
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::kubelets::service::addresses;
use sheave_harness::kubelets::workload::{self, Deployment};
use sheave_harness::objects::port;
use sheave_harness::testpod::protocol::{Ask, Follow, Kind};
use sheave_harness::wait::until;

use super::objects::condition;
use super::round::Context;

/// Services, the one that changes among them.
const SERVICES: usize = 1_000;
/// Requests side by side while they are written.
const WRITERS: usize = 8;
/// Until the last of them is served.
const FILLED_WITHIN: Duration = Duration::from_secs(120);
/// Changes of a block, in both directions.
const CHANGES: usize = 30;
/// The pod that changes, and the Service in front of it.
const NAME: &str = "flip";
/// Its gate.
const GATE: &str = "bench/flip";
/// Between two tries to connect.
const GAP_US: u64 = 1_000;
/// A connection that gets no answer for so long met silence.
const SILENCE_MS: u64 = 200;
/// After the last Service is there, before the first change.
const CALM: Duration = Duration::from_secs(5);
/// A change that takes longer is none.
const WITHIN_MS: u64 = 15_000;

/// Milliseconds of each change.
pub(super) fn measure(it: &Context, fixture: &Fixture, namespace: &str) -> Result<Vec<f64>> {
    let bulk = Deployment::start(&it.api, namespace, "bulk", 1)?;
    let mut pod = workload::pod_template(NAME, &[(Kind::Tcp, 8080)]);
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!(NAME);
    pod["metadata"]["namespace"] = json!(namespace);
    pod["spec"]["readinessGates"] = json!([{"conditionType": GATE}]);
    it.api.apply(&pod)?;
    it.api.apply(&service(namespace, NAME, NAME))?;
    fill(&it.api, namespace)?;
    let clients: Vec<&Agent> = fixture.nodes.iter().map(|node| &node.pod).collect();
    for agent in &clients {
        for number in [1, SERVICES / 2, SERVICES - 1] {
            let target = address(&it.api, namespace, &format!("bulk-{number}"))?;
            check::served_by(agent, Kind::Tcp, target, &bulk.names()?)?;
        }
    }
    it.say(&format!("{SERVICES} Services are served"));
    thread::sleep(CALM);
    let target = address(&it.api, namespace, NAME)?;
    check::unserved(clients[0], target)?;
    let path = format!("/api/v1/namespaces/{namespace}/pods?watch=1&fieldSelector=metadata.name%3D{NAME}");
    let mut watch = Watch::open(&it.api.another(), &path)?;
    let mut delays = Vec::with_capacity(CHANGES);
    for number in 0..CHANGES {
        // At no fixed beat, so that none keeps step with a timer.
        thread::sleep(Duration::from_micros(1_100_000 + (number as u64 * 7_919) % 500_000));
        let delay = change(&it.api, namespace, &clients, &mut watch, target, number % 2 == 0);
        delays.push(delay.with_context(|| format!("change {number}"))?);
    }
    Ok(delays)
}

/// A Service of one family and port.
fn service(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": app}, "ports": [port("tcp", "TCP", 80, 8080)]},
    })
}

fn address(api: &Api, namespace: &str, name: &str) -> Result<SocketAddr> {
    let object = api.read("Service", namespace, name)?;
    let all = addresses(&object["spec"]["clusterIPs"], |it| it);
    Ok(SocketAddr::new(*all.first().context("a Service without address")?, 80))
}

/// Writes every other Service, several at a time, and waits until each has its endpoints.
fn fill(api: &Api, namespace: &str) -> Result<()> {
    let collection = format!("/api/v1/namespaces/{namespace}/services");
    let write = |api: &Api, writer: usize| -> Result<()> {
        for number in (1..SERVICES).filter(|number| number % WRITERS == writer) {
            let object = service(namespace, &format!("bulk-{number}"), "bulk");
            let (status, answer) = api.request("POST", &collection, Some(&object))?;
            ensure!(status == 201, "POST {collection}: {status}: {answer}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let api = api.another();
                scope.spawn(move || write(&api, writer))
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| bail!("a writer panicked")))
    })?;
    until("a thousand Services have endpoints", FILLED_WITHIN, || {
        thread::sleep(Duration::from_secs(1)); // the list is long
        let slices = api.list("EndpointSlice", namespace)?;
        let full = slices.iter().filter(|slice| slice["endpoints"].as_array().is_some_and(|all| !all.is_empty()));
        let full = full.count();
        ensure!(full >= SERVICES, "{full} of {SERVICES}");
        Ok(())
    })
}

/// Opens or shuts the gate; the milliseconds from the pod's change to the last node's first connection that shows it.
fn change(
    api: &Api,
    namespace: &str,
    clients: &[&Agent],
    watch: &mut Watch,
    target: SocketAddr,
    ready: bool,
) -> Result<f64> {
    let ask = Ask { patience: SILENCE_MS, ..Ask::new(Kind::Tcp, target) };
    let follow = || Follow { ask: ask.clone(), reached: ready, gap: GAP_US, within: WITHIN_MS };
    thread::scope(|scope| {
        let clients: Vec<_> = clients.iter().map(|agent| scope.spawn(move || agent.follow(follow()))).collect();
        let at = set_gate(api, namespace, ready).and_then(|()| readiness(watch, ready));
        let mut last = 0;
        for client in clients {
            last = last.max(client.join().unwrap_or_else(|_| bail!("a client's thread panicked"))?.at);
        }
        Ok((last as f64 - at?.as_nanos() as f64) / 1e6)
    })
}

/// Writes the gate's condition among the pod's others.
fn set_gate(api: &Api, namespace: &str, open: bool) -> Result<()> {
    let pod = api.read("Pod", namespace, NAME)?;
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|it| it["type"] != GATE);
    conditions.push(json!({"type": GATE, "status": if open { "True" } else { "False" }}));
    api.patch("Pod", namespace, NAME, "/status", &json!({"status": {"conditions": conditions}}))
}

/// When the API server said that the pod is ready, or no longer.
fn readiness(watch: &mut Watch, ready: bool) -> Result<Duration> {
    loop {
        let (at, event) = watch.next_event()?;
        if condition(&event["object"], "Ready")["status"] == if ready { "True" } else { "False" } {
            return Ok(at);
        }
    }
}
