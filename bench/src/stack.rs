//! One node of the test world with a controller and a proxy of its own, fed by a folder or by an API server: so that nodes
//! with different Services stand side by side in one run and their arms interleave.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sheave_harness::address;
use sheave_harness::cluster::Cluster;
use sheave_harness::kube::Kube;
use sheave_harness::metrics;
use sheave_harness::pod::Pod;
use sheave_harness::process::{Place, Process, program, tail};
use sheave_harness::source::Source;
use sheave_harness::wait::until;
use sheave_harness::world::{Node, World};

use crate::agent::{Client, Server};
use crate::manifests;
use crate::rows::cpu;
use crate::server::{ECHO_PORT, PORT, STREAM_PORT};
use crate::sys;

/// The longest that a controller may take for a folder of 10,000 Services, or a proxy for what comes of it.
const START: Duration = Duration::from_secs(60);

/// Where a proxy serves metrics and health.
const PROXY_ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 15_020);

/// A node with a far side, a client, and Services between them.
#[derive(Debug)]
pub(crate) struct Stack {
    /// The node.
    pub(crate) node: Arc<Node>,
    /// The client, in a pod.
    pub(crate) client: Client,
    /// The proxy; none once it was killed to leave its rules to another one.
    pub(crate) proxy: Option<Process>,
    /// How long the proxy took from its start to all Services being programmed.
    pub(crate) programmed: Duration,
    /// The controller.
    pub(crate) controller: Process,
    _far: Server,
    /// The far side's pod.
    pub(crate) far_pod: Pod,
    _client_pod: Pod,
}

/// What a stack is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Which node of the world, from 1.
    pub(crate) node: usize,
    /// The proxy's `--datapath`.
    pub(crate) datapath: &'static str,
    /// How many Services.
    pub(crate) services: u16,
    /// More flags of the proxy.
    pub(crate) flags: &'static [&'static str],
}

/// Where a pod's processes live.
fn place(pod: &Pod) -> Place {
    Place { netns: pod.netns().clone(), cgroup: pod.node.cgroup.join("pods").join(&pod.name) }
}

impl Stack {
    /// Builds one: the pods first, then a controller that has read its folder, then a proxy that starts from nothing.
    pub(crate) fn build(world: &World, plan: &Plan) -> Result<Self> {
        Self::try_build(world, plan, None).with_context(|| format!("node {} ({})", plan.node, plan.datapath))
    }

    /// Builds one whose controller reads an API server, to which the caller writes; the plan's Services are not written.
    pub(crate) fn build_on(world: &World, plan: &Plan, kube: &Kube) -> Result<Self> {
        Self::try_build(world, plan, Some(kube)).with_context(|| format!("node {} (API server)", plan.node))
    }

    fn try_build(world: &World, plan: &Plan, kube: Option<&Kube>) -> Result<Self> {
        let node = Arc::clone(world.node(plan.node));
        let far_pod = node.pod(&format!("far-{}", node.name), &[])?;
        let client_pod = node.pod(&format!("client-{}", node.name), &[])?;
        let arguments = ["far-side", "--listen", "0.0.0.0", "--cpu", &cpu().to_string()].map(String::from);
        let far = Server::start(&place(&far_pod), &arguments)?;
        let client = Client::start(&place(&client_pod), cpu())?;

        let folder = world.run.folder.join("stacks").join(&node.name);
        let source = folder.join("source");
        fs::create_dir_all(&source)?;
        let source = match kube {
            Some(kube) => kube.arguments(),
            None => {
                manifests::write(&source, &node, &far_pod, &client_pod, plan.services)?;
                let source = format!("dir:{}", source.display());
                ["--source", &source, "--service-cidr", address::SERVICE_CIDRS].map(String::from).to_vec()
            }
        };
        let controller = controller(world, &node, &folder, &source)?;
        let mut stack = Self {
            proxy: None,
            programmed: Duration::ZERO,
            controller,
            client,
            _far: far,
            far_pod,
            _client_pod: client_pod,
            node,
        };
        stack.start_proxy(world, plan, &folder)?;
        Ok(stack)
    }

    fn start_proxy(&mut self, world: &World, plan: &Plan, folder: &Path) -> Result<()> {
        let node = &self.node;
        let mut command = Command::new(program("sheave-proxy")?);
        command.arg("run").args(Cluster::node_arguments(node)).args(["--datapath", plan.datapath]).args(plan.flags);
        command.arg("--controller").arg(format!("unix:{}", folder.join("discovery.sock").display()));
        let start = Instant::now();
        let mut process = Process::start(&format!("proxy-{}", node.name), command, &node.system(), &world.run.logs())?;
        until("the proxy has programmed its Services", START, || {
            process.still_runs()?;
            programmed(node)
        })
        .with_context(|| format!("its log ends:\n{}", tail(&process.log(), 8)))?;
        self.programmed = start.elapsed();
        self.proxy = Some(process);
        Ok(())
    }

    /// The ClusterIP's serial port of the first Service, or that of another one's by its number.
    pub(crate) fn service(&self, number: u16) -> SocketAddr {
        (manifests::vip(number).v4, PORT).into()
    }

    /// The first Service's echo port.
    pub(crate) fn service_echo(&self) -> SocketAddr {
        (manifests::vip(1).v4, ECHO_PORT).into()
    }

    /// The first Service's stream port.
    pub(crate) fn service_stream(&self) -> SocketAddr {
        (manifests::vip(1).v4, STREAM_PORT).into()
    }

    /// A port of the far side itself.
    pub(crate) fn far(&self, port: u16) -> SocketAddr {
        (self.far_pod.address.v4, port).into()
    }

    /// The running proxy.
    pub(crate) fn proxy(&self) -> Result<&Process> {
        self.proxy.as_ref().context("this node's proxy was killed")
    }

    /// Confines the proxy to the client's and the far side's CPU.
    pub(crate) fn pin_proxy(&self) -> Result<()> {
        sys::pin_process(self.proxy()?.id(), cpu())
    }

    /// Kills the proxy with SIGKILL: its rules, routes and sets stay in the kernel, and whoever listens in its place gets
    /// its connections.
    pub(crate) fn leave_rules(&mut self) -> Result<()> {
        self.proxy.take().context("the proxy was killed before")?.kill()
    }

    /// The sum of a counter of the proxy.
    pub(crate) fn counter(&self, name: &str) -> Result<f64> {
        Ok(metrics::proxy(&self.node)?.sum(name, &[]))
    }
}

/// Starts a controller and waits until it has read its source.
fn controller(world: &World, node: &Node, folder: &Path, source: &[String]) -> Result<Process> {
    let state = folder.join("controller");
    fs::create_dir_all(&state)?;
    let socket: PathBuf = folder.join("discovery.sock");
    let mut command = Command::new(program("sheave-controller")?);
    command.arg("run").args(source).arg("--state-dir").arg(&state).arg("--socket").arg(&socket);
    let admin = SocketAddr::from(([127, 0, 0, 1], 15021));
    command.arg("--admin").arg(admin.to_string());
    let mut process = Process::start(&format!("controller-{}", node.name), command, &node.system(), &world.run.logs())?;
    until("the controller has read its source", START, || {
        process.still_runs()?;
        let (status, body) = metrics::get(&node.netns, admin, "/readyz")?;
        ensure!(status == 200, "/readyz: {status}: {}", body.trim());
        Ok(())
    })?;
    Ok(process)
}

/// Fails until the proxy has received everything and programmed what it received.
pub(crate) fn programmed(node: &Node) -> Result<()> {
    let (status, body) = metrics::get(&node.netns, PROXY_ADMIN.into(), "/readyz")?;
    ensure!(status == 200, "/readyz: {status}: {}", body.trim());
    let metrics = metrics::proxy(node)?;
    let received = metrics.sum("sheave_revision_received", &[]);
    let applied = metrics.sum("sheave_revision_applied", &[]);
    if received < 1.0 || applied < received {
        bail!("revision {received} received, {applied} applied");
    }
    Ok(())
}
