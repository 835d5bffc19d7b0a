//! The proxy's own life on a node: one owner, what it finds on disk, what it lacks, and what it leaves.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sheave_harness::cluster::{Cluster, DataPath};
use sheave_harness::metrics;
use sheave_harness::process::{Process, program};
use sheave_harness::testpod::protocol::Kind;
use sheave_harness::wait::until;

use crate::case::{Case, Proof, folder, kube};
use crate::check::{SOON, question, served_by};
use crate::context::{Context, From, To, ports, sockets};

/// These stop proxies, whose counters begin anew.
const RESTARTED: Proof = Proof::Own("a restarted proxy counts from nought");

pub(crate) const CASES: &[Case] = &[
    folder("a_second_proxy_of_a_node_waits_and_takes_over", second_proxy).proof(RESTARTED),
    folder("a_damaged_snapshot_is_set_aside_with_one_line", damaged_snapshot).proof(RESTARTED),
    folder("without_net_admin_the_proxy_exits_2_with_one_line", no_net_admin).proof(RESTARTED),
    folder("without_cgroup2_auto_falls_back_and_ebpf_exits_2", no_cgroup).proof(RESTARTED),
    folder("auto_replaces_what_another_version_has_pinned", other_version).proof(RESTARTED),
    kube("a_terminated_proxy_leaves_the_kernel_serving_and_is_adopted", adopted).proof(RESTARTED),
];

/// A Service with a pod on each node, served to both nodes' clients.
struct Served {
    _pods: sheave_harness::deployment::Deployment,
    names: Vec<String>,
    targets: [SocketAddr; 2],
}

fn serve(it: &Context) -> Result<Served> {
    let (web, vip) = (it.deployment("web", 2)?, it.vip());
    it.apply(&it.service("web", vip, &web, &ports()))?;
    let served = Served { names: web.names(), _pods: web, targets: sockets(vip, 80) };
    served.check(it)?;
    Ok(served)
}

impl Served {
    fn check(&self, it: &Context) -> Result<()> {
        for from in [From::Pod(1), From::Pod(2)] {
            for target in self.targets {
                let sources = it.sources(from, To::ClusterIp, target.is_ipv6());
                served_by(it, it.agent(from), &question(Kind::Tcp, target), &self.names, &sources)?;
            }
        }
        Ok(())
    }
}

fn second_proxy(it: &Context) -> Result<()> {
    let served = serve(it)?;
    let node = it.node(1);
    let mut command = Command::new(program("sheave-proxy")?);
    command.arg("run").args(Cluster::node_arguments(node)).args(["--datapath", it.path().name()]);
    command.args(["--controller", "unix:/nonexistent/socket"]);
    let (admin, health) = (SocketAddr::from(([127, 0, 0, 1], 15030)), "127.0.0.1:10257");
    command.arg("--admin").arg(admin.to_string()).args(["--health", health]);
    command.arg("--admin-socket").arg(node.state.join("second.sock"));
    let name = format!("{}-second-proxy", it.cluster.options.name);
    let second = Process::start(&name, command, &node.system(), &it.cluster.world.run.logs())?;
    let readyz = || metrics::get(&node.netns, admin, "/readyz").map(|(status, _)| status);
    until("the second proxy answers NotReady", SOON, || match readyz()? {
        503 => Ok(()),
        other => bail!("/readyz: {other}"),
    })?;
    served.check(it)?;
    it.saved()?;
    it.cluster.kill_proxy(node)?;
    until("the second proxy takes over", SOON, || match readyz()? {
        200 => Ok(()),
        other => bail!("/readyz: {other}: {}", second.log()),
    })?;
    served.check(it)?;
    second.stop(Duration::from_secs(20))?;
    it.cluster.start_proxy(node)?;
    it.cluster.wait_ready(node)?;
    served.check(it)
}

fn damaged_snapshot(it: &Context) -> Result<()> {
    let served = serve(it)?;
    let node = it.node(1);
    it.cluster.stop_proxy(node)?;
    let is_snapshot = |path: &Path| path.is_file() && path.to_string_lossy().contains("snapshot");
    let files = fs::read_dir(&node.state)?.flatten().map(|entry| entry.path()).filter(|path| is_snapshot(path));
    let files: Vec<_> = files.collect();
    ensure!(!files.is_empty(), "no snapshot in {}", node.state.display());
    for file in files {
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        let byte = bytes.get_mut(middle).with_context(|| format!("{} is empty", file.display()))?;
        *byte ^= 0xff;
        fs::write(&file, bytes)?;
    }
    let log = it.cluster.world.run.logs().join(format!("{}-proxy-{}.log", it.cluster.options.name, node.name));
    let before = fs::read_to_string(&log)?.len();
    it.cluster.start_proxy(node)?;
    it.cluster.wait_ready(node)?;
    let text = fs::read_to_string(&log)?;
    let lines: Vec<_> = text[before..].lines().filter(|line| line.contains("set aside")).collect();
    ensure!(lines.len() == 1, "lines about the damaged snapshot: {lines:?}");
    served.check(it)
}

/// Runs a proxy that should end at once; its exit code and what it said.
fn fails(it: &Context, before: &[&str], state: &Path, changes: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
    let node = it.node(1);
    fs::create_dir_all(state)?;
    let mut arguments = Cluster::node_arguments(node);
    arguments.extend(["--controller", "unix:/nonexistent/socket", "--datapath", it.path().name()].map(str::to_owned));
    let state = state.display().to_string();
    for (flag, value) in changes.iter().chain(&[("--state-dir", state.as_str())]) {
        let place = arguments.iter().position(|argument| argument == flag).context("a flag to change")?;
        arguments[place + 1] = (*value).to_owned();
    }
    let proxy = program("sheave-proxy")?.display().to_string();
    let mut words: Vec<&str> = before.to_vec();
    words.extend(["timeout", "15", &proxy, "run"]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args(&arguments);
    let output = node.netns.run(move || Ok(command.output()?))?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn no_net_admin(it: &Context) -> Result<()> {
    let drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"];
    let state = it.cluster.world.run.folder.join("no-net-admin");
    for mode in ["auto", "ebpf", "userspace"] {
        let (code, text) = fails(it, &drop, &state, &[("--datapath", mode)])?;
        ensure!(code == Some(2), "{mode} exits {code:?}: {text}");
        ensure!(
            errors(&text).len() == 1 && text.contains("NET_ADMIN"),
            "not one line that names the capability: {text}"
        );
    }
    Ok(())
}

/// The lines of a log that complain.
fn errors(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("ERROR") || line.starts_with("sheave-proxy: ")).collect()
}

fn no_cgroup(it: &Context) -> Result<()> {
    let state = it.cluster.world.run.folder.join("no-cgroup");
    for (flag, lacks) in [("--cgroup", "cgroup2"), ("--bpffs", "bpf")] {
        let (code, text) = fails(it, &[], &state, &[(flag, "/tmp"), ("--datapath", "ebpf")])?;
        ensure!(code == Some(2), "ebpf without {lacks} exits {code:?}: {text}");
        let complaints = errors(&text);
        ensure!(complaints.len() == 1 && complaints[0].contains(lacks), "not one line that names {lacks}: {text}");
    }
    let served = serve(it)?;
    let node = it.node(1);
    it.cluster.stop_proxy(node)?;
    Cluster::clean(node)?;
    // `auto` on a file system that is no cgroup2: another bpffs-less, cgroup-less machine would look the same.
    it.cluster.start_proxy_in(node, "auto", Path::new("/tmp"))?;
    it.cluster.wait_ready(node)?;
    let metrics = metrics::proxy(node)?;
    ensure!(metrics.has("sheave_datapath_info", &[("mode", "userspace")]), "{:?}", metrics.lines("datapath_info"));
    ensure!(metrics::attached(node)? == 0, "programs are attached");
    served.check(it)?;
    it.cluster.stop_proxy(node)?;
    it.cluster.start_proxy(node)?;
    it.cluster.wait_ready(node)?;
    served.check(it)
}

fn other_version(it: &Context) -> Result<()> {
    let served = serve(it)?;
    let node = it.node(1);
    it.cluster.stop_proxy(node)?;
    // No more than what tells the version, beside what this one has left.
    let other = node.bpffs.join("sheave/v0");
    fs::create_dir_all(&other)?;
    it.cluster.start_proxy_with(node, "auto")?;
    it.cluster.wait_ready(node)?;
    let metrics = metrics::proxy(node)?;
    ensure!(metrics.has("sheave_datapath_info", &[("mode", "ebpf")]), "{:?}", metrics.lines("datapath_info"));
    ensure!(!other.exists() && metrics::attached(node)? > 0, "the other version's pins are there, or no programs");
    served.check(it)?;
    it.cluster.stop_proxy(node)?;
    it.cluster.start_proxy(node)?;
    it.cluster.wait_ready(node)?;
    served.check(it)
}

fn adopted(it: &Context) -> Result<()> {
    let served = serve(it)?;
    let node = it.node(1);
    it.cluster.stop_proxy(node)?;
    if it.path() == DataPath::Ebpf {
        ensure!(metrics::attached(node)? > 0, "SIGTERM took the programs away");
        let agent = it.agent(From::Pod(1));
        for target in served.targets {
            served_by(
                it,
                agent,
                &question(Kind::Tcp, target),
                &served.names,
                &it.sources(From::Pod(1), To::ClusterIp, target.is_ipv6()),
            )?;
        }
    }
    it.cluster.start_proxy(node)?;
    it.cluster.wait_ready(node)?;
    served.check(it)
}
