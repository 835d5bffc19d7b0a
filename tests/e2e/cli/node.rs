//! `sheave check --node` on a node of the test world: as it is, and with things in its way.

use std::fs;
use std::path::Path;

use anyhow::Result;
use sheave_harness::process::Process;
use sheave_harness::world::Node;

use super::golden::Golden;
use crate::context::Context;

/// As on a node that is to be installed on: with its own mounts, and no proxy.
pub(super) fn run(it: &Context) -> Result<()> {
    let node = it.node(1);
    let folder = it.cluster.world.run.folder.display().to_string();
    let known = vec![(folder, "RUN".to_owned())];
    let golden = Golden { place: node.system(), known };
    look(&golden, "node-with-proxy", &[], node, &node.cgroup)?;
    it.cluster.kill_proxy(node)?;
    let result = bare(&golden, node);
    it.cluster.start_proxy(node)?;
    it.cluster.wait_ready(node)?;
    result
}

fn bare(golden: &Golden, node: &Node) -> Result<()> {
    look(golden, "node-stopped-proxy", &[], node, &node.cgroup)?;
    look(golden, "node-old-kernel", &["setarch", "--uname-2.6"], node, &node.cgroup)?;
    look(golden, "node-without-rights", &["setpriv", "--bounding-set=-all", "--inh-caps=-all"], node, &node.cgroup)?;
    // A folder that is no cgroup.
    look(golden, "node-no-cgroup2", &[], node, &node.state)?;
    node.netns.output("nft", &["add", "table", "ip", "kube-proxy"])?;
    node.netns.output("nft", &["add", "table", "ip", "nat"])?;
    node.netns.output("nft", &["add", "chain", "ip", "nat", "KUBE-SERVICES"])?;
    let rules = look(golden, "node-kube-proxys-rules", &[], node, &node.cgroup);
    node.netns.output("nft", &["delete", "table", "ip", "kube-proxy"])?;
    node.netns.output("nft", &["delete", "table", "ip", "nat"])?;
    rules?;
    let mut command = std::process::Command::new("python3");
    command.args(["-c", "import socket,time;s=socket.socket();s.bind(('0.0.0.0',15020));s.listen();time.sleep(600)"]);
    let taker = Process::start("taker", command, &node.system(), golden_logs(node))?;
    sheave_harness::wait::until("the port is taken", std::time::Duration::from_secs(20), || {
        let free = node.netns.run(|| Ok(std::net::TcpListener::bind("0.0.0.0:15020").is_ok()))?;
        anyhow::ensure!(!free, "it is free");
        Ok(())
    })?;
    let taken = look(golden, "node-port-taken", &[], node, &node.cgroup);
    taker.kill()?;
    taken
}

/// A folder that ends with the run.
fn golden_logs(node: &Node) -> &Path {
    &node.state
}

fn look(golden: &Golden, name: &str, before: &[&str], node: &Node, cgroup: &Path) -> Result<()> {
    let path = |path: &Path| path.display().to_string();
    let (cgroup, bpffs, state) = (path(cgroup), path(&node.bpffs), path(&node.state));
    let flags = ["check", "--node", "--cgroup", &cgroup, "--bpffs", &bpffs, "--state-dir", &state];
    let taken = golden.expect(name, before, &flags);
    let log = node.state.join("taker.log");
    if log.exists() && name == "node-port-taken" {
        fs::remove_file(log)?;
    }
    taken
}
