//! The demo left running: started in the background by `--up`, ended by `--down`, with a script to run commands in its pods.

use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sheave_harness::run;
use sheave_harness::sys;
use sheave_harness::wait::until;

use crate::stage::{Stage, data_path};

/// Argument of the background process.
pub(crate) const STAY: &str = "--stay";
/// Building the world and starting everything takes a few seconds; a loaded machine takes longer.
const UP_WITHIN: Duration = Duration::from_secs(60);
const DOWN_WITHIN: Duration = Duration::from_secs(20);

fn folder() -> PathBuf {
    env::temp_dir().join("sheave-demo")
}

fn pid_file() -> PathBuf {
    folder().join("pid")
}

fn ready_file() -> PathBuf {
    folder().join("ready")
}

/// The running demo's process, if there is one: the pid on file, while it still is this program.
fn running() -> Option<u32> {
    let pid: u32 = fs::read_to_string(pid_file()).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    command.split(|byte| *byte == 0).any(|word| word == STAY.as_bytes()).then_some(pid)
}

/// Starts the demo in the background and prints how to play with it.
pub(crate) fn up() -> Result<()> {
    ensure!(sys::is_root(), "network namespaces need root; run this as root");
    if let Some(pid) = running() {
        bail!("a demo is up already (process {pid}); end it with: make demo-down");
    }
    fs::create_dir_all(folder())?;
    if ready_file().exists() {
        fs::remove_file(ready_file())?;
    }
    let log = File::create(folder().join("log"))?;
    println!("starting two nodes, a controller and two proxies ...");
    let mut command = Command::new(env::current_exe()?);
    command.arg(STAY).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().context("start the demo")?;
    fs::write(pid_file(), child.id().to_string())?;
    let hints = until("the demo is up", UP_WITHIN, || {
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        Ok(Some(fs::read_to_string(ready_file())?))
    })?;
    let Some(hints) = hints else {
        bail!("it ended: {}", fs::read_to_string(folder().join("log"))?);
    };
    write_script(child.id())?;
    println!("{hints}");
    Ok(())
}

/// Ends the demo that `up` started.
pub(crate) fn down() -> Result<()> {
    let Some(pid) = running() else {
        println!("no demo is up");
        return Ok(());
    };
    sys::kill(pid, 15)?;
    until("the demo ends", DOWN_WITHIN, || {
        ensure!(running().is_none(), "process {pid} still runs");
        Ok(())
    })?;
    fs::remove_dir_all(folder())?;
    println!("the demo is down, and nothing is left of it");
    Ok(())
}

/// The background process: sets the stage, says so, and stays until it is ended.
pub(crate) fn stay() -> Result<()> {
    // Before anything else, so that the process that cleans up outlives the terminal too. It may lead a session already.
    sys::new_session().ok();
    let run = run::enter()?;
    let mut stage = Stage::set(&run)?;
    stage.scale_web(3)?;
    let places = places(&stage)?;
    fs::write(folder().join("places"), places)?;
    let mut ready = File::create(folder().join("ready.part"))?;
    ready.write_all(hints(&stage, &run.folder)?.as_bytes())?;
    fs::rename(folder().join("ready.part"), ready_file())?;
    loop {
        std::thread::park();
    }
}

/// Where commands can run: name, network namespace, cgroup.
fn places(stage: &Stage) -> Result<String> {
    let mut lines = String::new();
    let mut place = |name: &str, netns: &str, cgroup: &Path| {
        lines.push_str(&format!("{name} {netns} {}\n", cgroup.display()));
    };
    for node in &stage.cluster.world.nodes {
        place(&node.name, node.netns.name(), &node.cgroup.join("host"));
    }
    for client in &stage.cluster.clients {
        place(&client.name, client.netns().name(), &client.node.cgroup.join("pods").join(&client.name));
    }
    for number in 1..=stage.cluster.world.outside.len() {
        let name = format!("outside{number}");
        place(&name, &name, &stage.cluster.world.run.cgroup.join(&name));
    }
    Ok(lines)
}

/// `in PLACE COMMAND ...` for the user's shell: enters the demo's namespaces, the place's cgroup and its network.
fn write_script(supervisor: u32) -> Result<()> {
    let script = format!(
        r#"#!/bin/sh
# in PLACE COMMAND ...: runs a command on one of the demo's machines: node1 node2 client-node1 client-node2 outside1 outside2
set -e
line=$(grep "^$1 " {folder}/places) || {{ echo "in: no place called $1; there are: $(cut -d' ' -f1 {folder}/places | tr '\n' ' ')" >&2; exit 2; }}
set -- $line -- "$@"
netns=$2 cgroup=$3; shift 5
init=$(cat /proc/{supervisor}/task/{supervisor}/children); init=${{init%% *}}
echo 0 > "$cgroup/cgroup.procs"
exec nsenter --target "$init" --mount --net --pid ip netns exec "$netns" "$@"
"#,
        folder = folder().display()
    );
    let path = folder().join("in");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn hints(stage: &Stage, run: &Path) -> Result<String> {
    let node = stage.cluster.world.node(1);
    let port = format!("http://{}:30080/", node.address.v4);
    let lines = [
        ("client-node1", "http://10.96.0.80/", "a pod, a ClusterIP"),
        ("client-node1", "'http://[fd00:96::80]/'", "the same over IPv6"),
        ("outside1", port.as_str(), "an outside machine, a NodePort"),
        ("outside1", "http://10.89.0.82/", "a load balancer's address, HTTP"),
        ("node1", "http://127.0.0.1:30080/", "a NodePort on localhost"),
        ("node1", "http://127.0.0.1:15020/metrics", "what Prometheus sees"),
    ];
    let script = folder().join("in").display().to_string();
    let line =
        |(place, url, what): (&str, &str, &str)| format!("{script} {place:<12} curl -sw '\\n' {url:<31} # {what}\n");
    Ok(format!(
        "the demo is up; data path: {}\n\n{}curl -s --unix-socket {}/admin.sock http://localhost/debug/services\n\n\
         edit the YAML in {}/yaml and watch it take effect; logs are in {}/logs\nend it with: make demo-down",
        data_path(node)?.replace("sheave_datapath_info", ""),
        lines.map(line).concat(),
        node.state.display(),
        run.display(),
        run.display(),
    ))
}
