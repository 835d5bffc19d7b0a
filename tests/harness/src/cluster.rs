//! The product's own programs in a test world: a controller over a source, and a proxy on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::address::{ROUTER, SERVICE_CIDRS};
use crate::metrics;
use crate::objects::{self, READY};
use crate::pod::Pod;
use crate::process::{Process, program, tail};
use crate::relay::Relay;
use crate::run::Run;
use crate::source::{Source, identity};
use crate::wait::until;
use crate::world::{Node, World};

/// A debug build loads its programs and reaches the controller well within this.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// A proxy drains before it ends.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// The namespace of the pods that only ask.
const CLIENTS: &str = "clients";

/// Which way connections are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataPath {
    /// The socket hooks, with the listeners beneath.
    Ebpf,
    /// The listeners alone.
    Userspace,
    /// Whatever the proxy finds best.
    Auto,
}

impl DataPath {
    /// As `--datapath` and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Userspace => "userspace",
            Self::Auto => "auto",
        }
    }
}

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names its state folders and logs.
    pub name: String,
    /// What the proxies are told.
    pub path: DataPath,
    /// Discovery by TLS through a [`Relay`] per replica, with certificates of `sheave-controller init`; else a unix socket.
    pub tls: bool,
    /// How many controllers proxies know of.
    pub replicas: u8,
}

/// A controller replica: where it is reached, and its process while it runs.
#[derive(Debug)]
struct Replica {
    endpoint: String,
    relay: Option<Relay>,
    process: Option<Process>,
}

/// A running cluster. Stop it with [`Cluster::stop`]; dropped, its programs are killed.
pub struct Cluster {
    /// Where it runs.
    pub world: Arc<World>,
    /// What its controllers read.
    pub source: Arc<dyn Source>,
    /// How it is set up.
    pub options: Options,
    /// A pod on each node that only asks.
    pub clients: Vec<Pod>,
    folder: PathBuf,
    replicas: Mutex<Vec<Replica>>,
    proxies: Mutex<BTreeMap<String, Process>>,
    applied: Mutex<BTreeSet<(String, String, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Writes the Nodes and the client pods, starts a controller and the proxies, and waits until all are ready.
    pub fn start(world: &Arc<World>, source: Arc<dyn Source>, options: Options) -> Result<Self> {
        let folder = world.run.folder.join(&options.name);
        fs::create_dir_all(&folder)?;
        let clients = world.nodes.iter().map(|node| node.pod(&format!("client-{}", node.name), &[]));
        let clients = clients.collect::<Result<Vec<_>>>()?;
        let (world, replicas) = (Arc::clone(world), Mutex::default());
        let (proxies, applied) = (Mutex::default(), Mutex::default());
        let cluster = Self { world, source, options, clients, folder, replicas, proxies, applied };
        cluster.write_facts()?;
        cluster.prepare_replicas()?;
        cluster.start_controller(0)?;
        for node in &cluster.world.nodes {
            cluster.start_proxy(node)?;
        }
        for node in &cluster.world.nodes {
            cluster.wait_ready(node)?;
        }
        Ok(cluster)
    }

    fn write_facts(&self) -> Result<()> {
        for node in &self.world.nodes {
            self.apply(&objects::node(node))?;
        }
        self.source.namespace(CLIENTS)?;
        for client in &self.clients {
            self.apply(&objects::pod(CLIENTS, client, &json!({"app": "client"}), READY))?;
        }
        Ok(())
    }

    fn prepare_replicas(&self) -> Result<()> {
        if self.options.tls {
            let mut command = Command::new(program("sheave-controller")?);
            command.arg("init").arg("--dir").arg(self.tls()).arg("--address").arg(ROUTER.v4.to_string());
            for node in &self.world.nodes {
                command.args(["--node", &node.name]);
            }
            let output = command.output().context("sheave-controller init")?;
            ensure!(output.status.success(), "sheave-controller init: {}", String::from_utf8_lossy(&output.stderr));
        }
        for number in 0..self.options.replicas {
            let (endpoint, relay) = if self.options.tls {
                let relay = Relay::start(SocketAddr::from((ROUTER.v4, 0)), discovery_address(number))?;
                (relay.address.to_string(), Some(relay))
            } else {
                (format!("unix:{}", self.socket(number).display()), None)
            };
            lock(&self.replicas).push(Replica { endpoint, relay, process: None });
        }
        Ok(())
    }

    /// The folder that `sheave-controller init` has filled; there is one with TLS only.
    pub fn tls(&self) -> PathBuf {
        self.folder.join("tls")
    }

    /// Where controller `replica` serves discovery without TLS.
    pub fn socket(&self, replica: u8) -> PathBuf {
        self.folder.join(format!("discovery{replica}.sock"))
    }

    /// Where controller `replica` answers /debug.
    pub fn controller_socket(&self, replica: u8) -> PathBuf {
        self.folder.join(format!("controller{replica}.sock"))
    }

    /// Where controller `replica` serves metrics and health, in the router's namespace.
    pub fn controller_admin(&self, replica: u8) -> SocketAddr {
        SocketAddr::from((ROUTER.v4, 15021 + u16::from(replica) * 10))
    }

    /// Starts (again) a controller on the cluster's source.
    pub fn start_controller(&self, replica: u8) -> Result<()> {
        self.start_controller_with(replica, &self.source.arguments())
    }

    /// Starts a controller with source arguments of its own.
    pub fn start_controller_with(&self, replica: u8, source: &[String]) -> Result<()> {
        let discovery = if self.options.tls {
            let (address, tls) = (discovery_address(replica).to_string(), self.tls().display().to_string());
            ["--listen".to_owned(), address, "--tls-dir".to_owned(), tls].to_vec()
        } else {
            ["--socket".to_owned(), self.socket(replica).display().to_string()].to_vec()
        };
        self.start_controller_that_serves(replica, source, &discovery)
    }

    /// Starts a controller that knows nodes by their tokens, at an address of its own. Such replicas have no relay.
    pub fn start_controller_by_tokens(&self, replica: u8, address: SocketAddr) -> Result<()> {
        self.start_controller_by_tokens_with(replica, address, &self.source.arguments())
    }

    /// The same with source arguments of its own.
    pub fn start_controller_by_tokens_with(&self, replica: u8, address: SocketAddr, source: &[String]) -> Result<()> {
        let address = address.to_string();
        let discovery = ["--trust", "kube", "--listen", &address, "--advertise", &address].map(str::to_owned);
        self.start_controller_that_serves(replica, source, &discovery)
    }

    fn start_controller_that_serves(&self, replica: u8, source: &[String], discovery: &[String]) -> Result<()> {
        let name = format!("{}-controller{replica}", self.options.name);
        let state = self.folder.join(format!("controller{replica}"));
        fs::create_dir_all(&state)?;
        let mut command = Command::new(program("sheave-controller")?);
        command.arg("run").args(source).arg("--state-dir").arg(state);
        command.args(["--service-cidr", SERVICE_CIDRS, "--replica-name", &name]);
        command.arg("--admin").arg(self.controller_admin(replica).to_string());
        command.arg("--admin-socket").arg(self.controller_socket(replica));
        command.args(discovery);
        let process = Process::start(&name, command, &self.world.router, &self.world.run.logs())?;
        lock(&self.replicas)[usize::from(replica)].process = Some(process);
        Ok(())
    }

    /// Whether a controller has been started and not been ended.
    pub fn controller_runs(&self, replica: u8) -> bool {
        lock(&self.replicas)[usize::from(replica)].process.is_some()
    }

    /// Ends a controller with SIGKILL.
    pub fn kill_controller(&self, replica: u8) -> Result<()> {
        let process = lock(&self.replicas)[usize::from(replica)].process.take();
        process.with_context(|| format!("controller {replica} is not running"))?.kill()
    }

    /// The relay in front of a controller; there is one with TLS only.
    pub fn relay(&self, replica: u8) -> Result<Relay> {
        lock(&self.replicas)[usize::from(replica)].relay.clone().context("this cluster's discovery has no relay")
    }

    /// A controller's metrics.
    pub fn controller_metrics(&self, replica: u8) -> Result<metrics::Metrics> {
        let (status, body) = metrics::get(&self.world.router.netns, self.controller_admin(replica), "/metrics")?;
        ensure!(status == 200, "controller's metrics: {status}: {body}");
        Ok(metrics::Metrics::parse(&body))
    }

    /// The flags by which `sheave-proxy run` and `clean` know a node.
    pub fn node_arguments(node: &Node) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let flags = [
            ("--node-name", node.name.clone()),
            ("--cgroup", path(&node.cgroup)),
            ("--bpffs", path(&node.bpffs)),
            ("--state-dir", path(&node.state)),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Starts (again) the proxy of a node.
    pub fn start_proxy(&self, node: &Node) -> Result<()> {
        self.start_proxy_with(node, self.options.path.name())
    }

    /// Starts the proxy of a node with another `--datapath`.
    pub fn start_proxy_with(&self, node: &Node, path: &str) -> Result<()> {
        self.start_proxy_in(node, path, &node.cgroup)
    }

    /// Starts the proxy of a node with another `--datapath` and `--cgroup`.
    pub fn start_proxy_in(&self, node: &Node, path: &str, cgroup: &Path) -> Result<()> {
        let endpoints: Vec<_> = lock(&self.replicas).iter().map(|replica| replica.endpoint.clone()).collect();
        let mut discovery = vec!["--controller".to_owned(), endpoints.join(",")];
        if self.options.tls {
            discovery.extend(["--tls-dir".to_owned(), self.tls().join("nodes").join(&node.name).display().to_string()]);
        }
        self.start_proxy_that_finds(node, path, (cgroup, &node.bpffs), &discovery)
    }

    /// Starts the proxy of a node with the files that a kubelet would mount: `mounted` (a ConfigMap's) and `token`.
    pub fn start_proxy_by_token(&self, node: &Node, mounted: &Path, token: &Path) -> Result<()> {
        self.start_proxy_by_token_with(node, mounted, token, self.options.path.name(), &node.bpffs)
    }

    /// The same with another `--datapath` and `--bpffs`.
    pub fn start_proxy_by_token_with(
        &self,
        node: &Node,
        mounted: &Path,
        token: &Path,
        datapath: &str,
        bpffs: &Path,
    ) -> Result<()> {
        let path = |path: &Path| path.display().to_string();
        let discovery = ["--discovery-dir".to_owned(), path(mounted), "--token-file".to_owned(), path(token)];
        self.start_proxy_that_finds(node, datapath, (&node.cgroup, bpffs), &discovery)
    }

    fn start_proxy_that_finds(
        &self,
        node: &Node,
        path: &str,
        (cgroup, bpffs): (&Path, &Path),
        discovery: &[String],
    ) -> Result<()> {
        let mut command = Command::new(program("sheave-proxy")?);
        let mut arguments = Self::node_arguments(node);
        for (flag, folder) in [("--cgroup", cgroup), ("--bpffs", bpffs)] {
            if let Some(value) = arguments.iter().position(|argument| argument == flag).map(|flag| flag + 1) {
                arguments[value] = folder.display().to_string();
            }
        }
        command.arg("run").args(arguments).args(["--datapath", path]);
        command.args(discovery);
        let name = format!("{}-proxy-{}", self.options.name, node.name);
        let process = Process::start(&name, command, &node.system(), &self.world.run.logs())?;
        lock(&self.proxies).insert(node.name.clone(), process);
        Ok(())
    }

    /// Waits until a node's proxy says that it is ready.
    pub fn wait_ready(&self, node: &Node) -> Result<()> {
        until(&format!("proxy of {} ready", node.name), READY_WITHIN, || {
            if let Some(process) = lock(&self.proxies).get_mut(&node.name) {
                process.still_runs()?;
            }
            let (status, body) = metrics::get(&node.netns, SocketAddr::from(([127, 0, 0, 1], 15020)), "/readyz")?;
            if status == 200 { Ok(()) } else { bail!("/readyz: {status}: {body}") }
        })
    }

    fn take_proxy(&self, node: &Node) -> Result<Process> {
        lock(&self.proxies).remove(&node.name).with_context(|| format!("no proxy runs on {}", node.name))
    }

    /// Ends a node's proxy with SIGKILL.
    pub fn kill_proxy(&self, node: &Node) -> Result<()> {
        self.take_proxy(node)?.kill()
    }

    /// Ends a node's proxy with SIGTERM.
    pub fn stop_proxy(&self, node: &Node) -> Result<ExitStatus> {
        self.take_proxy(node)?.stop(STOP_WITHIN)
    }

    /// The process id of a node's proxy.
    pub fn proxy_id(&self, node: &Node) -> Result<u32> {
        lock(&self.proxies).get(&node.name).map(Process::id).with_context(|| format!("no proxy runs on {}", node.name))
    }

    /// Removes everything that a proxy has left on a node.
    pub fn clean(node: &Node) -> Result<()> {
        let command = program("sheave-proxy")?.display().to_string();
        let arguments = Self::node_arguments(node);
        let arguments: Vec<_> = ["clean"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        node.netns.output(&command, &arguments).map(drop)
    }

    /// A page of a node's proxy' admin socket.
    pub fn debug(&self, node: &Node, path: &str) -> Result<String> {
        let (status, body) = metrics::ask_socket(&node.state.join("admin.sock"), "GET", path)?;
        ensure!(status == 200, "{path} of {}: {status}: {body}", node.name);
        Ok(body)
    }

    /// Writes an object to the source, and remembers it for [`Cluster::forget`].
    pub fn apply(&self, object: &Value) -> Result<()> {
        let (kind, namespace, name) = identity(object)?;
        lock(&self.applied).insert((namespace.to_owned(), kind.to_owned(), name.to_owned()));
        self.source.apply(object)
    }

    /// Takes an object away.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        lock(&self.applied).remove(&(namespace.to_owned(), kind.to_owned(), name.to_owned()));
        self.source.remove(kind, namespace, name)
    }

    /// Takes away every object of a namespace that [`Cluster::apply`] wrote.
    pub fn forget(&self, namespace: &str) -> Result<()> {
        let here: Vec<_> = lock(&self.applied).iter().filter(|(its, ..)| its == namespace).cloned().collect();
        here.iter().try_for_each(|(namespace, kind, name)| self.remove(kind, namespace, name))
    }

    /// How long each log of this cluster's programs is now; see [`Cluster::logs_since`].
    pub fn log_marks(&self) -> BTreeMap<PathBuf, u64> {
        let length = |path: PathBuf| Some((path.clone(), fs::metadata(path).ok()?.len()));
        log_files(&self.world.run, &self.options.name).into_iter().filter_map(length).collect()
    }

    /// The ends of all logs of this cluster's programs.
    pub fn logs(&self, lines: usize) -> String {
        self.logs_since(&BTreeMap::new(), lines)
    }

    /// The ends of all logs of a cluster that may not have come up.
    pub fn logs_of(run: &Run, name: &str, lines: usize) -> String {
        ends(&log_files(run, name), &BTreeMap::new(), lines)
    }

    /// What the logs have said since these marks, at most so many lines of each.
    pub fn logs_since(&self, marks: &BTreeMap<PathBuf, u64>, lines: usize) -> String {
        ends(&log_files(&self.world.run, &self.options.name), marks, lines)
    }

    /// Ends every program with SIGTERM, takes every object away and cleans the nodes.
    pub fn stop(self) -> Result<()> {
        for node in &self.world.nodes {
            if lock(&self.proxies).contains_key(&node.name) {
                self.stop_proxy(node)?;
            }
            Self::clean(node)?;
            fs::remove_dir_all(&node.state).with_context(|| format!("state of {}", node.name))?;
            fs::create_dir_all(&node.state)?;
        }
        let running: Vec<_> = lock(&self.replicas).iter_mut().filter_map(|replica| replica.process.take()).collect();
        for process in running {
            process.stop(STOP_WITHIN)?;
        }
        self.forget(CLIENTS)?;
        self.forget("")
    }
}

/// Where controller `replica` serves discovery.
fn discovery_address(replica: u8) -> SocketAddr {
    SocketAddr::from((ROUTER.v4, 15010 + u16::from(replica) * 100))
}

/// The logs of the cluster of this name, in the order of their names.
fn log_files(run: &Run, name: &str) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(run.logs()).into_iter().flatten().flatten().map(|it| it.path()).collect();
    paths.sort();
    let own = format!("/{name}-");
    paths.retain(|path| path.to_string_lossy().contains(&own));
    paths
}

/// The last lines of each log after its mark.
fn ends(paths: &[PathBuf], marks: &BTreeMap<PathBuf, u64>, lines: usize) -> String {
    let end = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let from = marks.get(path).and_then(|&mark| usize::try_from(mark).ok()).unwrap_or(0);
        let new = tail(text.get(from..).unwrap_or_default(), lines);
        if new.is_empty() { String::new() } else { format!("--- {}\n{new}\n", path.display()) }
    };
    paths.iter().map(end).collect()
}
