//! A node comes: from the moment the API server says that it is Ready to the first connection to a ClusterIP from it.
//!
//! It is a new node in all that matters: its Node object and pods are gone, nothing of a proxy is on its disk or in its
//! kernel. Only the images are there, and containerd's own files. The client is no pod, which would have to be started
//! first, but a process on the node that tries from before kubelet runs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sheave_harness::agent::Agent;
use sheave_harness::kube::{Api, Watch};
use sheave_harness::testpod;
use sheave_harness::testpod::protocol::{Ask, Follow, Kind};
use sheave_harness::wait::until;

use super::objects;
use super::round::Context;
use super::scripts::{folder, script};

/// Which node: the one without the API server.
const NODE: &str = "n2";
/// The `kubernetes` Service. Whoever speaks to it without TLS gets an answer, 400.
const TARGET: &str = "10.96.0.1:443";
/// From a node's start to containerd, or to the end of its processes.
const STEP_WITHIN: Duration = Duration::from_secs(30);
/// From containerd to the first connection.
const SERVED_WITHIN_MS: u64 = 50_000;
/// Between two tries; a try that meets silence takes a little longer.
const GAP_US: u64 = 5_000;
const SILENCE_MS: u64 = 100;
/// This program, and the socket that commands it, on the node's disk; a node sees its disk as /cluster.
const PROGRAM: &str = "bench-client";
const SOCKET: &str = "agents/bench-client";

/// Seconds from readiness to the first connection; below 0 where that came first.
pub(super) fn measure(it: &Context) -> Result<f64> {
    it.settled()?;
    let disk = it.state.join(NODE);
    end(it, &disk)?;
    let mut watch =
        Watch::open(&it.api.another(), &format!("/api/v1/nodes?watch=1&fieldSelector=metadata.name%3D{NODE}"))?;
    script("service", &["start", "world", NODE])?;
    let (ready, served) = thread::scope(|scope| {
        let served = scope.spawn(|| first_connection(&disk));
        let ready = readiness(&mut watch);
        let served = served.join().unwrap_or_else(|_| bail!("the client's thread panicked"));
        Ok::<_, anyhow::Error>((ready?, served?))
    })?;
    it.settled()?;
    Ok((served as f64 - ready.as_nanos() as f64) / 1e9)
}

/// Ends the node, its objects and what a proxy keeps on its disk.
fn end(it: &Context, disk: &Path) -> Result<()> {
    let pid = fs::read_to_string(disk.join("pid"))?;
    script("service", &["stop", "world", NODE])?;
    until("the node's end", STEP_WITHIN, || {
        ensure!(!Path::new("/proc").join(pid.trim()).exists(), "its process 1 is there");
        Ok(())
    })?;
    it.api.delete("Node", "", NODE, 0)?;
    until("the node's pods are gone", STEP_WITHIN, || {
        forget_pods(&it.api)?;
        thread::sleep(Duration::from_millis(500)); // a DaemonSet's controller that hears of the node late makes one more
        ensure!(pods(&it.api)?.is_empty(), "there are pods on a node that is gone");
        Ok(())
    })?;
    for left in ["var/lib/sheave", "run/containerd-ready"] {
        let path = disk.join(left);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("{}", path.display()));
        }
    }
    Ok(())
}

/// Namespace and name of each pod on the node.
fn pods(api: &Api) -> Result<Vec<(String, String)>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let all = api.list("Pod", "")?;
    let here = all.iter().filter(|pod| pod["spec"]["nodeName"] == NODE);
    Ok(here.map(|pod| (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]))).collect())
}

fn forget_pods(api: &Api) -> Result<()> {
    pods(api)?.iter().try_for_each(|(namespace, name)| api.delete("Pod", namespace, name, 0))
}

/// When the API server said that the node is Ready.
fn readiness(watch: &mut Watch) -> Result<Duration> {
    loop {
        let (at, event) = watch.next_event().context("no word of the node")?;
        if event["type"] != "DELETED" && objects::condition(&event["object"], "Ready")["status"] == "True" {
            return Ok(at);
        }
    }
}

/// Starts a client on the node as soon as that can be, and has it try until it is served.
fn first_connection(disk: &Path) -> Result<u64> {
    until("containerd on the node", STEP_WITHIN, || {
        ensure!(disk.join("run/containerd-ready").exists(), "not there");
        Ok(())
    })?;
    let agent = client(disk)?;
    let ask = Ask { patience: SILENCE_MS, ..Ask::new(Kind::Http, TARGET.parse()?) };
    Ok(agent.follow(Follow { ask, reached: true, gap: GAP_US, within: SERVED_WITHIN_MS })?.at)
}

/// A client in the node's namespaces and cgroup. It ends with the node.
fn client(disk: &Path) -> Result<Agent> {
    let program = disk.join(PROGRAM);
    if !program.exists() {
        fs::copy(std::env::current_exe()?, &program).with_context(|| format!("{}", program.display()))?;
    }
    let mut child = Command::new(folder().join("in"))
        .args([NODE, &format!("/cluster/{PROGRAM}"), testpod::ARGUMENT, &format!("/cluster/{SOCKET}"), PROGRAM])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("a client on the node")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the client's output")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the client on the node did not start");
    Ok(Agent::attach(PROGRAM, &disk.join(SOCKET)))
}
