//! What the project's pages tell people to type, typed: looking, an upgrade that goes wrong and back, the way between kube-proxy and
//! Sheave on a live cluster, removal.

use std::time::Duration;

use anyhow::{Result, ensure};
use sheave_harness::pages;
use sheave_harness::wait::until;

use crate::context::{Case, Context, sheave};
use crate::faults::Stage;
use crate::shell::{self, root, shell, typed};
use crate::switch;
use crate::traffic::Traffic;

/// The last one takes Sheave away and installs it again.
pub(crate) const CASES: &[Case] = &[
    sheave("what_the_pages_say_to_look_at_can_be_looked_at", look),
    sheave("the_image_can_be_loaded_by_hand", load),
    sheave("an_image_that_cannot_start_holds_the_rollout_up_and_undo_brings_it_back", cannot_start).long(),
    sheave("the_way_to_kube_proxy_and_back_under_load", switch::there_and_back).long(),
    sheave("removal_and_one_job_a_node_leave_nothing", removal),
];

fn look(it: &Context<'_>) -> Result<()> {
    shell::ready(it)?;
    let said = typed(it, "docs/troubleshooting.md", "look")?;
    for object in [
        "sheave-proxy-",
        "sheave-controller-",
        "configmap/sheave-discovery",
        "lease.coordination.k8s.io/sheave-controller",
    ] {
        ensure!(said.contains(object), "{object} is not in what the page shows: {said}");
    }
    command(it)?;
    let logs = typed(it, "docs/troubleshooting.md", "logs")?;
    ensure!(logs.lines().filter(|line| line.contains("\"level\"")).count() > 3, "{logs}");
    let service = it.fixture.api.read("Service", "sheave-system", "sheave-discovery")?;
    let vip = format!("{}:15010", service["spec"]["clusterIP"].as_str().unwrap_or_default());
    for node in it.nodes() {
        let config = "curl -s --unix-socket /var/lib/sheave/admin.sock http://proxy/debug/config";
        let said = shell(it, &node.name, config)?;
        ensure!(said.contains(&format!("\"discovery_vip\": \"{vip}\"")), "{}: no {vip} in {said}", node.name);
        let said = shell(it, &node.name, &pages::commands("docs/troubleshooting.md", "node")?)?;
        ensure!(said.contains("\"ready\": true") && said.contains("kube-dns"), "{}: {said}", node.name);
        // The manifest's capabilities are enough for eBPF, unless somebody asked for userspace.
        let ebpf = ["\"mode\": \"ebpf\"", "\"reason\": \"asked for\""].iter().any(|it| said.contains(it));
        ensure!(ebpf, "{}: {said}", node.name);
    }
    Ok(())
}

/// The command: by port-forwards to controllers, and inside a proxy's pod.
fn command(it: &Context<'_>) -> Result<()> {
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
    let archive = root().join("target/image/sheave.tar");
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

/// Pods of the proxy, how many are ready, and how many nodes have the newest template.
fn proxies(it: &Context<'_>) -> Result<[u64; 3]> {
    let set = it.fixture.api.read("DaemonSet", "sheave-system", "sheave-proxy")?;
    let fields = ["desiredNumberScheduled", "numberReady", "updatedNumberScheduled"];
    Ok(fields.map(|field| set["status"][field].as_u64().unwrap_or_default()))
}

fn cannot_start(it: &Context<'_>) -> Result<()> {
    shell::ready(it)?;
    let stage = Stage::set(it)?;
    let names = stage.web.names()?;
    let traffic = Traffic::start(it, &stage.service, &names)?.though_proxies_end();
    let upgrade = pages::commands("docs/install.md", "upgrade")?;
    shell(it, "world", &format!("image=localhost/sheave:missing; {upgrade}"))?;
    until("one proxy has the new image, and can't start", Duration::from_secs(60), || {
        let [all, ready, updated] = proxies(it)?;
        ensure!((all - ready, updated) == (1, 1), "{all} proxies, {ready} ready, {updated} new");
        Ok(())
    })?;
    // Long enough for a rollout that nothing holds up to take the next node.
    std::thread::sleep(Duration::from_secs(5));
    let held_up = proxies(it);
    typed(it, "docs/install.md", "undo")?;
    shell::ready(it)?;
    let [all, ready, updated] = held_up?;
    ensure!((all - ready, updated) == (1, 1), "{all} proxies, {ready} ready, {updated} new");
    let [all, ready, updated] = proxies(it)?;
    ensure!(all == ready && all == updated, "{all} proxies, {ready} ready, {updated} new");
    stage.follows(it)?;
    traffic.unharmed(&names).map(drop)
}

/// What is in the kernel goes on serving until the Job takes it away.
fn removal(it: &Context<'_>) -> Result<()> {
    shell::ready(it)?;
    switch::remove(it)?;
    switch::install(it)?;
    Stage::set(it)?.follows(it)
}
