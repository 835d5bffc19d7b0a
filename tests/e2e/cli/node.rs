//! `sheave check --node` on a node of the test world: as it is, and with things in its way.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use anyhow::Result;
use sheave_harness::world::Node;

use super::golden::Golden;
use crate::context::Context;

/// As on a node that is to be installed on: with its own mounts, and no proxy.
pub(super) fn run(it: &Context) -> Result<()> {
    let node = it.node(1);
    let run = &it.cluster.world.run;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    // What setarch shows in its place keeps the local part.
    let local = release.split_once('-').map_or("", |(_, local)| local).to_owned();
    let mut known = vec![
        (run.folder.display().to_string(), "RUN".to_owned()),
        (run.cgroup.display().to_string(), "CGROUP".to_owned()),
        (release, "RELEASE".to_owned()),
    ];
    if !local.is_empty() {
        known.push((format!("-{local}"), String::new()));
    }
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
    look(golden, "node-no-cgroup2", &[], node, Path::new("/proc"))?;
    node.netns.output("nft", &["add", "table", "ip", "kube-proxy"])?;
    node.netns.output("nft", &["add", "table", "ip", "nat"])?;
    node.netns.output("nft", &["add", "chain", "ip", "nat", "KUBE-SERVICES"])?;
    let rules = look(golden, "node-kube-proxys-rules", &[], node, &node.cgroup);
    node.netns.output("nft", &["delete", "table", "ip", "kube-proxy"])?;
    node.netns.output("nft", &["delete", "table", "ip", "nat"])?;
    rules?;
    let taken = node.netns.run(|| Ok(TcpListener::bind("0.0.0.0:15020")?))?;
    look(golden, "node-port-taken", &[], node, &node.cgroup)?;
    drop(taken);
    Ok(())
}

fn look(golden: &Golden, name: &str, before: &[&str], node: &Node, cgroup: &Path) -> Result<()> {
    let path = |path: &Path| path.display().to_string();
    let (cgroup, bpffs, state) = (path(cgroup), path(&node.bpffs), path(&node.state));
    let flags = ["check", "--node", "--cgroup", &cgroup, "--bpffs", &bpffs, "--state-dir", &state];
    golden.expect(name, before, &flags)
}
