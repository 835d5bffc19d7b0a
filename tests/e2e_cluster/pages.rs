//! What the project's pages tell people to type, typed: looking, an upgrade that goes wrong and back, the way between kube-proxy and
//! Sheave on a live cluster, removal. Only where Sheave serves Services.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::pages;
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use crate::check;
use crate::context::{Case, Context};

/// The last one takes Sheave away and installs it again.
pub(crate) const CASES: &[Case] = &[
    Case { name: "what_the_pages_say_to_look_at_can_be_looked_at", run: look },
    Case { name: "the_image_can_be_loaded_by_hand", run: load },
    Case { name: "an_image_that_cannot_start_holds_the_rollout_up_and_undo_brings_it_back", run: cannot_start },
    Case { name: "kube_proxy_comes_and_goes_beside_sheave_under_load", run: kube_proxy },
    Case { name: "removal_and_one_job_a_node_leave_nothing", run: removal },
];

/// Connections a second of each load.
const RATE: u32 = 20;

/// Runs lines in the project's folder, in the world's namespaces or a node's, as a person would.
fn shell(it: &Context<'_>, place: &str, lines: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let config = it.fixture.state.join("admin.kubeconfig");
    let script = format!("set -euo pipefail; export KUBECONFIG={}; {lines}", config.display());
    let output = Command::new(root.join("tests/cluster/in"))
        .args([place, "bash", "-c", &script])
        .current_dir(&root)
        .output()
        .context("tests/cluster/in")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{lines}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a block of a page.
fn typed(it: &Context<'_>, page: &str, name: &str) -> Result<String> {
    shell(it, "world", &pages::commands(page, name)?).with_context(|| format!("{page}: {name}"))
}

fn ready(it: &Context<'_>) -> Result<()> {
    typed(it, "docs/install.md", "wait").map(drop)
}

fn look(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    let said = typed(it, "docs/troubleshooting.md", "look")?;
    for object in [
        "sheave-proxy-",
        "sheave-controller-",
        "configmap/sheave-discovery",
        "lease.coordination.k8s.io/sheave-controller",
    ] {
        ensure!(said.contains(object), "{object} is not in what the page shows: {said}");
    }
    sheave(it)?;
    let logs = typed(it, "docs/troubleshooting.md", "logs")?;
    ensure!(logs.lines().filter(|line| line.contains("\"level\"")).count() > 3, "{logs}");
    for node in it.nodes() {
        let said = shell(it, &node.name, &pages::commands("docs/troubleshooting.md", "node")?)?;
        ensure!(said.contains("\"ready\": true") && said.contains("kube-dns"), "{}: {said}", node.name);
        // The manifest's capabilities are enough for eBPF, unless somebody asked for userspace.
        let ebpf = ["\"mode\": \"ebpf\"", "\"reason\": \"asked for\""].iter().any(|it| said.contains(it));
        ensure!(ebpf, "{}: {said}", node.name);
    }
    Ok(())
}

/// The command: by port-forwards to controllers, and inside a proxy's pod.
fn sheave(it: &Context<'_>) -> Result<()> {
    let here =
        format!("export PATH=$PWD/target/debug:$PATH; {}", pages::commands("docs/troubleshooting.md", "sheave")?);
    let said = shell(it, "world", &here)?;
    let all = it.nodes().len();
    for part in [
        format!("proxies: {all} of {all} have a stream"),
        format!("programmed: {all} of {all} nodes"),
        "10.96.0.10:53/UDP".to_owned(),
    ] {
        ensure!(said.contains(&part), "{part:?} is not in what it says: {said}");
    }
    let inside = typed(it, "docs/troubleshooting.md", "sheave-node")?;
    for part in ["programmed: 1 of 1 nodes", "all five that a proxy needs", "port 15020: sheave-proxy has it"] {
        ensure!(inside.contains(part), "{part:?} is not in what it says: {inside}");
    }
    Ok(())
}

fn load(it: &Context<'_>) -> Result<()> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image/sheave.tar");
    for node in it.nodes() {
        // A node sees this folder of the machine's as /cluster.
        let checkout = it.fixture.state.join(&node.name).join("checkout");
        std::fs::create_dir_all(checkout.join("target/image"))?;
        std::fs::copy(&archive, checkout.join("target/image/sheave.tar"))?;
        let lines = format!("cd /cluster/checkout; {}", pages::commands("docs/install.md", "load")?);
        let said = shell(it, &node.name, &lines);
        std::fs::remove_dir_all(&checkout)?;
        said?;
        let listed = shell(it, &node.name, "ctr --namespace k8s.io images list -q")?;
        ensure!(listed.lines().any(|image| image == "localhost/sheave:dev"), "{}: {listed}", node.name);
    }
    Ok(())
}

/// A load from each node's pod to a Service, while something is done: nothing may fail.
fn under_load(it: &Context<'_>, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let deployment = it.deployment("served", 2)?;
    let service = it.service("served", "ClusterIP")?;
    let names = deployment.names()?;
    let loads: Vec<(&Agent, SocketAddr)> = it.nodes().iter().map(|node| &node.pod).zip(service.sockets(80)).collect();
    for (agent, target) in &loads {
        check::served_by(agent, Kind::Tcp, *target, &names)?;
    }
    let start = |(agent, target): &(&Agent, SocketAddr)| agent.load_start(check::question(Kind::Tcp, *target), RATE);
    let running = loads.iter().map(start).collect::<Result<Vec<_>>>()?;
    let worked = work();
    let stop = |((agent, _), id): (&(&Agent, SocketAddr), _)| agent.load_stop(id);
    let reports = loads.iter().zip(running).map(stop).collect::<Result<Vec<_>>>()?;
    worked?;
    for ((agent, target), report) in loads.iter().zip(&reports) {
        let what = format!("{} to {target}: {} of {} failed", agent.name(), report.failed(), report.asked);
        ensure!(report.failed() == 0 && report.asked > 20, "{what}: {:?}", report.failures);
    }
    Ok(())
}

/// Pods of the proxy, how many are ready, and how many nodes have the newest template.
fn proxies(it: &Context<'_>) -> Result<[u64; 3]> {
    let set = it.fixture.api.read("DaemonSet", "sheave-system", "sheave-proxy")?;
    let fields = ["desiredNumberScheduled", "numberReady", "updatedNumberScheduled"];
    Ok(fields.map(|field| set["status"][field].as_u64().unwrap_or_default()))
}

fn cannot_start(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    under_load(it, || {
        let upgrade = pages::commands("docs/install.md", "upgrade")?;
        shell(it, "world", &format!("image=localhost/sheave:missing; {upgrade}"))?;
        until("one proxy has the new image, and can't start", Duration::from_secs(60), || {
            let [all, ready, updated] = proxies(it)?;
            ensure!((all - ready, updated) == (1, 1), "{all} proxies, {ready} ready, {updated} new");
            Ok(())
        })?;
        // Long enough for a rollout that nothing holds up to take the next node.
        std::thread::sleep(Duration::from_secs(5));
        let [all, ready, updated] = proxies(it)?;
        ensure!((all - ready, updated) == (1, 1), "{all} proxies, {ready} ready, {updated} new");
        typed(it, "docs/install.md", "undo")?;
        ready_again(it)
    })
}

fn ready_again(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    let [all, ready, updated] = proxies(it)?;
    ensure!(all == ready && all == updated, "{all} proxies, {ready} ready, {updated} new");
    Ok(())
}

fn kube_proxy(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    shell(it, "world", "tests/cluster/load target/images/kube-proxy.tar")?;
    let result = under_load(it, || {
        shell(it, "world", "kubectl apply -f tests/cluster/manifests/kube-proxy.yaml")?;
        shell(it, "world", "kubectl -n kube-system rollout status daemonset/kube-proxy --timeout=2m")?;
        typed(it, "docs/install.md", "kube-proxy-off")?;
        until("kube-proxy's pods are gone", check::SOON, || {
            let left = shell(it, "world", "kubectl -n kube-system get pods -l k8s-app=kube-proxy -o name")?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })?;
        typed(it, "docs/install.md", "kube-proxy-on").map(drop)
    });
    let gone = shell(it, "world", "kubectl delete -f tests/cluster/manifests/kube-proxy.yaml");
    for node in it.nodes() {
        shell(it, &node.name, "nft delete table ip kube-proxy; nft delete table ip6 kube-proxy")?;
    }
    result.and(gone.map(drop))
}

fn removal(it: &Context<'_>) -> Result<()> {
    ready(it)?;
    typed(it, "docs/install.md", "remove")?;
    typed(it, "docs/install.md", "clean")?;
    typed(it, "docs/install.md", "cleaned")?;
    for node in it.nodes() {
        // The page's commands show what is left, each by itself.
        for line in pages::commands("docs/troubleshooting.md", "left")?.lines() {
            let said = shell(it, &node.name, &format!("{line} 2>/dev/null || true"))?;
            ensure!(said.trim().is_empty(), "{}: {line}: {said}", node.name);
        }
    }
    shell(it, "world", "kubectl -n kube-system delete jobs -l app.kubernetes.io/name=sheave-clean")?;
    let install = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/sheave")).output()?;
    ensure!(install.status.success(), "{}", String::from_utf8_lossy(&install.stderr));
    ready(it)?;
    under_load(it, || Ok(()))
}
