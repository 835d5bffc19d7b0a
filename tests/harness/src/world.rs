//! The test world: a bridge with nodes and outside machines on it, and a router that leads nowhere.
//!
//! Nodes are network namespaces with a cgroup, a bpffs and a state folder of their own. Their default route, and that of
//! outside machines, is the run's own namespace, whose default route is a black hole: a packet for an address that nobody
//! has is silently lost there, as it would be in a well-kept network, and none can leave the machine.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::address::{self, Pair};
use crate::agent::Agent;
use crate::cgroup;
use crate::netns::Netns;
use crate::pod::Pod;
use crate::process::Place;
use crate::run::Run;
use crate::sys::{self, Mount};
use crate::testpod::protocol::Kind;

/// What a router or node of this world needs set. rp_filter 2 is what systemd and EKS's nodes have.
const ROUTING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "2"),
    ("net/ipv4/conf/default/rp_filter", "2"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// The bridge's own netfilter would show each bridged packet to the router's tables as well.
const BRIDGING: &[(&str, &str)] =
    &[("net/bridge/bridge-nf-call-iptables", "0"), ("net/bridge/bridge-nf-call-ip6tables", "0")];

/// Everything of one run's network.
#[derive(Debug)]
pub struct World {
    /// The run it belongs to.
    pub run: Run,
    /// The run's own namespace: router, API server, controllers.
    pub router: Place,
    /// Node 1 first.
    pub nodes: Vec<Arc<Node>>,
    /// Machines that are no nodes; the first sends to node 1, the second to node 2, and so on.
    pub outside: Vec<Outside>,
}

/// A machine on the bridge that is no node.
#[derive(Debug)]
pub struct Outside {
    /// Its addresses.
    pub address: Pair,
    /// Its network namespace.
    pub netns: Netns,
    /// Its client.
    pub agent: Agent,
}

/// A node: a namespace, a cgroup subtree, folders, and pods.
#[derive(Debug)]
pub struct Node {
    /// As its Node object is called.
    pub name: String,
    /// From 1.
    pub number: u8,
    /// Its primary addresses.
    pub address: Pair,
    /// Its zone label.
    pub zone: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Where the product attaches: everything of this node is in here.
    pub cgroup: PathBuf,
    /// Its own BPF file system.
    pub bpffs: PathBuf,
    /// The proxy's state folder.
    pub state: PathBuf,
    /// A process on the host network: the node itself as a client.
    pub agent: Agent,
    folder: PathBuf,
    taken: Mutex<[bool; 251]>,
}

impl World {
    /// Builds a world of `nodes` nodes and as many outside machines, each with its own node to send to.
    pub fn build(run: &Run, nodes: u8) -> Result<Self> {
        for folder in ["pods", "nodes"] {
            fs::create_dir_all(run.folder.join(folder))?;
        }
        let netns = Netns::current("world")?;
        let cgroup = run.cgroup.join("world");
        cgroup::make(&cgroup)?;
        netns.settings(ROUTING)?;
        let mut lines = vec![
            "link add br0 type bridge forward_delay 0 mcast_snooping 0".to_owned(),
            format!("addr add {}/16 dev br0", address::ROUTER.v4),
            format!("addr add {}/64 dev br0 nodad", address::ROUTER.v6),
            "link set br0 up".to_owned(),
            "route add blackhole default".to_owned(),
            "route add blackhole ::/0".to_owned(),
        ];
        for number in 1..=nodes {
            lines.extend(routes_to_pods(number));
        }
        netns.ip(&lines)?;
        if PathBuf::from("/proc/sys/net/bridge").exists() {
            netns.settings(BRIDGING)?;
        }
        let router = Place { netns, cgroup };
        let node = |number| Node::build(run, &router.netns, number, nodes).map(Arc::new);
        let nodes = (1..=nodes).map(node).collect::<Result<Vec<_>>>()?;
        let outside = |number| Outside::build(run, &router.netns, number);
        let outside = (1..=nodes.len() as u8).map(outside).collect::<Result<Vec<_>>>()?;
        Ok(Self { run: run.clone(), router, nodes, outside })
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: usize) -> &Arc<Node> {
        &self.nodes[number - 1]
    }
}

fn routes_to_pods(number: u8) -> [String; 2] {
    let [v4, v6] = address::pod_ranges(number);
    let node = address::node(number);
    [format!("route add {v4} via {}", node.v4), format!("route add {v6} via {}", node.v6)]
}

/// A new namespace with `eth0` on the bridge, and the router as its way to everything else.
fn machine(router: &Netns, name: &str, address: Pair) -> Result<Netns> {
    let netns = Netns::create(name)?;
    router.ip(&[
        format!("link add {name} type veth peer name eth0 netns {name}"),
        format!("link set {name} master br0 up"),
    ])?;
    netns.ip(&[
        format!("addr add {}/16 dev eth0", address.v4),
        format!("addr add {}/64 dev eth0 nodad", address.v6),
        "link set eth0 up".to_owned(),
        format!("route add default via {}", address::ROUTER.v4),
        format!("route add ::/0 via {}", address::ROUTER.v6),
    ])?;
    Ok(netns)
}

impl Outside {
    fn build(run: &Run, router: &Netns, number: u8) -> Result<Self> {
        let name = format!("outside{number}");
        let address = address::outside(number);
        let netns = machine(router, &name, address)?;
        let node = address::node(number);
        let route = |range: &&str| format!("route add {range} via {}", node.of(range.contains(':')));
        netns.ip(&address::VIP_RANGES.iter().map(route).collect::<Vec<_>>())?;
        let cgroup = run.cgroup.join(&name);
        cgroup::make(&cgroup)?;
        let place = Place { netns: netns.clone(), cgroup };
        let agent = Agent::start(&name, &place, &[], &run.folder.join("pods"))?;
        Ok(Self { address, netns, agent })
    }
}

impl Node {
    fn build(run: &Run, router: &Netns, number: u8, nodes: u8) -> Result<Self> {
        let name = format!("node{number}");
        let address = address::node(number);
        let netns = machine(router, &name, address)?;
        netns.settings(ROUTING)?;
        netns.settings(&[("net/ipv4/conf/eth0/rp_filter", "2"), ("net/ipv6/conf/eth0/forwarding", "1")])?;
        netns.ip(&(1..=nodes).filter(|&other| other != number).flat_map(routes_to_pods).collect::<Vec<_>>())?;
        let folder = run.folder.join("nodes").join(&name);
        let (cgroup, bpffs, state) = (run.cgroup.join(&name), folder.join("bpf"), folder.join("state"));
        for path in [&bpffs, &state] {
            fs::create_dir_all(path).with_context(|| format!("{}", path.display()))?;
        }
        for group in ["system", "host", "pods"] {
            cgroup::make(&cgroup.join(group))?;
        }
        sys::mount(Mount::New("bpf"), &bpffs).context("bpffs")?;
        let place = Place { netns: netns.clone(), cgroup: cgroup.join("host") };
        let agent = Agent::start(&name, &place, &[], &run.folder.join("pods"))?;
        let (zone, folder) = (format!("zone{number}"), run.folder.clone());
        let taken = Mutex::new([false; 251]);
        Ok(Self { name, number, address, zone, netns, cgroup, bpffs, state, agent, folder, taken })
    }

    /// Where the node's own programs run, the proxy among them.
    pub fn system(&self) -> Place {
        Place { netns: self.netns.clone(), cgroup: self.cgroup.join("system") }
    }

    /// Where sockets of test pods are.
    pub(crate) fn sockets(&self) -> PathBuf {
        self.folder.join("pods")
    }

    /// Starts a pod with these servers.
    pub fn pod(self: &Arc<Self>, name: &str, servers: &[(Kind, u16)]) -> Result<Pod> {
        Pod::start(self, name, servers)
    }

    /// Starts a pod on the host network.
    pub fn host_pod(self: &Arc<Self>, name: &str, servers: &[(Kind, u16)]) -> Result<Pod> {
        Pod::start_on_host(self, name, servers)
    }

    pub(crate) fn take_number(&self) -> Result<u8> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (2..taken.len()).find(|&number| !taken[number]).context("this node has no pod address left")?;
        taken[free] = true;
        Ok(free as u8)
    }

    pub(crate) fn return_number(&self, number: u8) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(number)] = false;
    }
}
