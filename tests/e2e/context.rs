//! What a case works with: its namespace, addresses of its own, and clients of every kind.

use std::cell::Cell;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sheave_harness::address::{self, Pair};
use sheave_harness::agent::Agent;
use sheave_harness::cluster::{Cluster, DataPath};
use sheave_harness::deployment::Deployment;
use sheave_harness::kube::Kube;
use sheave_harness::metrics;
use sheave_harness::objects;
use sheave_harness::source::Folder;
use sheave_harness::wait::until;
use sheave_harness::world::Node;

/// A snapshot is saved at the lowest priority, which on a busy machine takes its time.
const SAVED: Duration = Duration::from_secs(40);

/// Each case takes its addresses from here, so that no case meets what another left behind.
static NEXT: AtomicU16 = AtomicU16::new(10);
/// NodePorts of cases: the part of the range from which an API server assigns last.
const NODE_PORTS: std::ops::Range<u16> = 30_000..30_086;

/// What a case is given.
pub(crate) struct Context {
    /// The running cluster.
    pub(crate) cluster: Arc<Cluster>,
    /// The case's own Kubernetes namespace.
    pub(crate) namespace: String,
    /// The API server, where that is the source.
    pub(crate) kube: Option<Arc<Kube>>,
    /// The folder, where that is the source.
    pub(crate) folder: Option<Arc<Folder>>,
    /// What has been counted while a case insisted, or none where it proves its path by itself.
    pub(crate) counts: Cell<Option<Counts>>,
}

/// Questions asked while a case insisted, and what the proxies' counters did meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// How many questions.
    pub(crate) asked: u64,
    /// By how much `sheave_hook_translations_total` grew on all nodes.
    pub(crate) translated: f64,
    /// By how much `sheave_listener_accepts_total` grew on all nodes.
    pub(crate) accepted: f64,
}

/// Who asks. Nodes count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// A pod of this node.
    Pod(usize),
    /// The node itself: a process on its host network.
    Node(usize),
    /// A machine that is no node, and sends to this one.
    Outside(usize),
}

/// Everybody on the nodes: whom the socket hook serves.
pub(crate) const INSIDE: [From; 4] = [From::Pod(1), From::Pod(2), From::Node(1), From::Node(2)];

/// What kind of address is asked; it decides which source address is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// A cluster IP.
    ClusterIp,
    /// A NodePort, a load balancer's IP or an external IP.
    Outer,
}

impl Context {
    /// The data path under test.
    pub(crate) fn path(&self) -> DataPath {
        self.cluster.options.path
    }

    /// Node `number`, from 1.
    pub(crate) fn node(&self, number: usize) -> &Arc<Node> {
        self.cluster.world.node(number)
    }

    /// Who stands behind a client.
    pub(crate) fn agent(&self, from: From) -> &Agent {
        match from {
            From::Pod(node) => &self.cluster.clients[node - 1].agent,
            From::Node(node) => &self.node(node).agent,
            From::Outside(node) => &self.cluster.world.outside[node - 1].agent,
        }
    }

    /// The addresses that a backend may see (SEMANTICS section 2): the client's own where no SNAT is asked for, else the
    /// node's; the hook may keep the client's there too.
    pub(crate) fn sources(&self, from: From, to: To, v6: bool) -> Vec<IpAddr> {
        let node = |number: usize| self.node(number).address.of(v6);
        match from {
            From::Node(number) | From::Outside(number) => vec![node(number)],
            From::Pod(number) => {
                let own = self.cluster.clients[number - 1].address.of(v6);
                match (to, self.path()) {
                    (To::ClusterIp, _) => vec![own],
                    (To::Outer, DataPath::Ebpf | DataPath::Auto) => vec![node(number), own],
                    (To::Outer, DataPath::Userspace) => vec![node(number)],
                }
            }
        }
    }

    fn next() -> u16 {
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// A cluster IP that nobody has.
    pub(crate) fn vip(&self) -> Pair {
        address::cluster_ip(Self::next())
    }

    /// A load balancer's IP that nobody has.
    pub(crate) fn load_balancer(&self) -> Pair {
        address::load_balancer(Self::next())
    }

    /// An external IP that nobody has.
    pub(crate) fn external(&self) -> Pair {
        address::external(Self::next())
    }

    /// A NodePort that nobody has.
    pub(crate) fn node_port(&self) -> u16 {
        NODE_PORTS.start + Self::next() % NODE_PORTS.len() as u16
    }

    /// A deployment with this many ready pods, on the nodes in turn.
    pub(crate) fn deployment(&self, name: &str, count: usize) -> Result<Deployment> {
        let mut deployment = Deployment::new(&self.cluster, &self.namespace, name);
        deployment.scale(count)?;
        Ok(deployment)
    }

    /// A Service object in front of a deployment, not yet applied.
    pub(crate) fn service(&self, name: &str, vip: Pair, of: &Deployment, ports: &[Value]) -> Value {
        objects::service(&self.namespace, name, vip, &of.selector(), &json!(ports))
    }

    /// Writes an object.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        self.cluster.apply(object)
    }

    /// Takes an object of this case's namespace away.
    pub(crate) fn remove(&self, kind: &str, name: &str) -> Result<()> {
        self.cluster.remove(kind, &self.namespace, name)
    }

    /// Waits until every node's snapshot on disk has this case's Services; it is written at most once a second.
    pub(crate) fn saved(&self) -> Result<()> {
        let wanted = self.namespace.as_bytes();
        until("the case's Services are in every snapshot on disk", SAVED, || {
            for node in &self.cluster.world.nodes {
                let files = fs::read_dir(&node.state)?.flatten().map(|entry| entry.path());
                let has = |path: PathBuf| {
                    let bytes = fs::read(path).unwrap_or_default(); // replaced just now, or no file at all
                    bytes.windows(wanted.len()).any(|window| window == wanted)
                };
                ensure!(files.filter(|path| path.is_file()).any(has), "not on {} yet", node.name);
            }
            Ok(())
        })
    }

    /// Both counters, of all nodes together.
    fn counters(&self) -> Result<(f64, f64)> {
        let mut sum = (0.0, 0.0);
        for node in &self.cluster.world.nodes {
            let metrics = metrics::proxy(node)?;
            sum.0 += metrics.sum("sheave_hook_translations_total", &[]);
            sum.1 += metrics.sum("sheave_listener_accepts_total", &[]);
        }
        Ok(sum)
    }

    /// Asks (how often is what `ask` returns), and adds what the counters did meanwhile to the case's proof.
    pub(crate) fn counted(&self, ask: impl FnOnce() -> Result<u64>) -> Result<()> {
        let Some(so_far) = self.counts.get() else { return ask().map(drop) };
        let before = self.counters()?;
        let asked = ask()?;
        let after = self.counters()?;
        self.counts.set(Some(Counts {
            asked: so_far.asked + asked,
            translated: so_far.translated + after.0 - before.0,
            accepted: so_far.accepted + after.1 - before.1,
        }));
        Ok(())
    }
}

/// The ports that the servers of ordinary test pods are behind: TCP 80, UDP 53 and HTTP 8000.
pub(crate) fn ports() -> Vec<Value> {
    vec![objects::port("tcp", "TCP", 80, 8080), objects::port("udp", "UDP", 53, 5353)]
}

/// Both addresses of a pair with a port.
pub(crate) fn sockets(pair: Pair, port: u16) -> [SocketAddr; 2] {
    pair.both().map(|address| SocketAddr::new(address, port))
}
