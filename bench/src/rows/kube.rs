//! What needs a real API server: how soon a change reaches the kernel, and the memory of controller and proxy, both with
//! nothing to do and with 1,000 Services and 10,000 endpoints.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sheave_harness::address;
use sheave_harness::kube::{Api, Kube, Watch};
use sheave_harness::metrics;
use sheave_harness::objects::{self, READY, UNREADY};
use sheave_harness::wait::until;

use super::{Context, Limit, node};
use crate::agent::{Ask, Said};
use crate::manifests::{self, NAMESPACE};
use crate::report::Row;
use crate::server::PORT;
use crate::stack::{Plan, Stack, programmed};
use crate::stats;
use crate::usage::Memory;

const PROXY_IDLE: Limit = Limit::at_most("memory proxy idle", "MiB", 25.0);
const CONTROLLER_IDLE: Limit = Limit::at_most("memory controller idle", "MiB", 40.0);
const LATENCY: Limit = Limit::at_most("programming latency p99", "ms", 15.0);
const PROXY_FULL: Limit = Limit::at_most("memory proxy 1000 services", "MiB", 45.0);
const CONTROLLER_FULL: Limit = Limit::at_most("memory controller 1000 services", "MiB", 80.0);

/// This group's rows.
pub(super) const LIMITS: &[Limit] = &[PROXY_IDLE, CONTROLLER_IDLE, LATENCY, PROXY_FULL, CONTROLLER_FULL];

/// Services, the one that changes among them.
const SERVICES: u16 = 1_000;
/// Pods of each other Service.
const PODS: u16 = 10;
/// Nodes without a machine, each with as many pods.
const NODES: u16 = 100;
/// Changes whose latency is measured.
const CHANGES: usize = 320;
/// How long memory settles before it is read.
const SETTLE: Duration = Duration::from_secs(60);
/// Requests side by side while the objects are written.
const WRITERS: u16 = 8;
/// Between two connections that look for the change.
const LOOK_EVERY_US: u64 = 200;

/// Measures them.
pub(super) fn measure(context: &Context<'_>, rows: &mut Vec<Row>) -> Result<()> {
    let kube = Kube::start(context.world)?;
    let node = context.world.node(node::KUBE);
    kube.api.apply(&objects::node(node))?;
    let plan = Plan { node: node::KUBE, datapath: "ebpf", services: 0, flags: &[] };
    let stack = Stack::build_on(context.world, &plan, &kube)?;
    if context.wants(&PROXY_IDLE) || context.wants(&CONTROLLER_IDLE) {
        context.say("memory with nothing to do, after 60 s");
        thread::sleep(SETTLE);
        rows.extend(memory(context, &stack, [&PROXY_IDLE, &CONTROLLER_IDLE])?);
    }
    if ![&LATENCY, &PROXY_FULL, &CONTROLLER_FULL].into_iter().any(|limit| context.wants(limit)) {
        return Ok(());
    }
    context.say("1000 Services with 10000 endpoints, by the API server");
    fill(&kube.api, &stack)?;
    let filled = Instant::now();
    if context.wants(&LATENCY) {
        context.say("changes");
        rows.push(latency(&kube.api, &stack)?);
    }
    if context.wants(&PROXY_FULL) || context.wants(&CONTROLLER_FULL) {
        context.say("memory with 1000 Services, after 60 s");
        thread::sleep(SETTLE.saturating_sub(filled.elapsed()));
        rows.extend(memory(context, &stack, [&PROXY_FULL, &CONTROLLER_FULL])?);
    }
    Ok(())
}

/// The rows of the proxy and of the controller.
fn memory(context: &Context<'_>, stack: &Stack, limits: [&Limit; 2]) -> Result<Vec<Row>> {
    let processes = [("sheave-proxy", stack.proxy()?.id()), ("sheave-controller", stack.controller.id())];
    let wanted = limits.into_iter().zip(processes).filter(|(limit, _)| context.wants(limit));
    wanted
        .map(|(limit, (name, pid))| {
            let used = Memory::of(pid)?;
            Ok(limit.number(name, &[used.resident]).noted(&used.note()))
        })
        .collect()
}

/// Writes every object, several at a time, and waits until the proxy has programmed the last of them.
fn fill(api: &Api, stack: &Stack) -> Result<()> {
    api.apply(&far_pod(stack, true))?;
    api.apply(&manifests::service(1, &stack.far_pod.name, manifests::ALL_PORTS))?;
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let api = api.another();
                scope.spawn(move || write_part(&api, writer))
            })
            .collect();
        writers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| bail!("a writer panicked")))
    })?;
    let frontends = f64::from(SERVICES) * 2.0;
    until("the proxy has programmed 1000 Services", Duration::from_secs(60), || {
        programmed(&stack.node)?;
        // The listeners' table is there on both data paths.
        let entries = metrics::proxy(&stack.node)?.sum("sheave_nftables_elements", &[]);
        ensure!(entries >= frontends, "{entries} elements of {frontends}");
        Ok(())
    })
}

/// One writer's share: every `WRITERS`th node and Service, the latter with its pods.
fn write_part(api: &Api, writer: u16) -> Result<()> {
    let own = |n: &u16| n % WRITERS == writer;
    for n in (1..=NODES).filter(own) {
        create(api, "/api/v1/nodes", &manifests::bare_node(&bare_node_name(n)))?;
    }
    for n in (2..=SERVICES).filter(own) {
        let app = format!("app-{n}");
        create(api, &format!("/api/v1/namespaces/{NAMESPACE}/services"), &manifests::service(n, &app, &[PORT]))?;
        for k in 0..PODS {
            create_pod(api, &app, n, k)?;
        }
    }
    Ok(())
}

fn bare_node_name(n: u16) -> String {
    format!("bare{n}")
}

/// Creates a pod and writes its status, as two requests, as a scheduler and a kubelet do.
fn create_pod(api: &Api, app: &str, n: u16, k: u16) -> Result<()> {
    let number = n * PODS + k;
    let on = number % NODES + 1;
    // Addresses of nodes that the test world doesn't have.
    let address = address::pod(100 + on as u8, 2 + (number / NODES) as u8);
    let name = format!("{app}-{k}");
    let object = manifests::pod(&name, app, &bare_node_name(on), address, READY);
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    create(api, &pods, &object)?;
    patch_status(api, &format!("{pods}/{name}"), &object["status"]).map(drop)
}

fn create(api: &Api, collection: &str, object: &Value) -> Result<()> {
    let (status, answer) = api.request("POST", collection, Some(object))?;
    ensure!(status == 201, "POST {collection}: {status}: {answer}");
    Ok(())
}

/// Writes a status; the resource version that it got.
fn patch_status(api: &Api, path: &str, status: &Value) -> Result<String> {
    let (code, answer) = api.request("PATCH", &format!("{path}/status"), Some(&json!({"status": status})))?;
    ensure!(code == 200, "PATCH {path}: {code}: {answer}");
    let object: Value = serde_json::from_str(&answer)?;
    version(&object).map(str::to_owned)
}

fn version(object: &Value) -> Result<&str> {
    object["metadata"]["resourceVersion"].as_str().context("an object without resourceVersion")
}

/// The far side's pod; not ready, its Service has no endpoint and refuses connections.
fn far_pod(stack: &Stack, ready: bool) -> Value {
    let pod = &stack.far_pod;
    manifests::pod(&pod.name, &pod.name, &stack.node.name, pod.address, if ready { READY } else { UNREADY })
}

/// Per change, the first connection that follows it minus the moment a bare watch client saw it.
fn latency(api: &Api, stack: &Stack) -> Result<Row> {
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let path = format!("{pods}/{}", stack.far_pod.name);
    let now = version(&api.get(&path)?)?.to_owned();
    let mut watch = Watch::open(&api.another(), &format!("{pods}?watch=1&resourceVersion={now}"))?;
    let target = stack.service(1);
    let mut delays = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        let ready = change % 2 == 1;
        delays.push(
            one_change(api, stack, &mut watch, &path, target, ready).with_context(|| format!("change {change}"))?,
        );
        // Changes at no fixed beat, so that none of them keeps step with a timer.
        thread::sleep(Duration::from_micros(5_000 + (change as u64 * 7_919) % 15_000));
    }
    let at = |part| stats::percentile(&delays, part).context("no changes");
    let note = format!("{CHANGES} changes, median {:.1} ms, most {:.1} ms", at(0.5)?, at(1.0)?);
    Ok(LATENCY.number("first connection", &[at(0.99)?]).against("bare watch").noted(&note))
}

/// Makes one change; the milliseconds from the watch's event to the end of the first connection that follows it.
fn one_change(api: &Api, stack: &Stack, watch: &mut Watch, path: &str, to: SocketAddr, ready: bool) -> Result<f64> {
    stack.client.begin(&Ask::Follow { to, served: ready, gap_us: LOOK_EVERY_US, timeout_ms: 5_000 })?;
    let version_now = patch_status(api, path, &far_pod(stack, ready)["status"])?;
    let seen = loop {
        let (at, event) = watch.next_event()?;
        if version(&event["object"])? == version_now {
            break at;
        }
    };
    match stack.client.answer()? {
        Said::Followed { at_ns, .. } => Ok((at_ns as f64 - seen.as_nanos() as f64) / 1e6),
        other => bail!("unexpected answer {other:?}"),
    }
}
