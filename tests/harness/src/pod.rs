//! Test pods: a namespace routed through its node by a veth, as AWS's VPC CNI does it, or the node's own namespace.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::address::{self, Pair};
use crate::agent::Agent;
use crate::cgroup;
use crate::netns::Netns;
use crate::process::Place;
use crate::testpod::protocol::Kind;
use crate::wait::until;
use crate::world::Node;

/// Far more than a link takes to come up.
const CARRIES: Duration = Duration::from_secs(10);

/// A running pod; dropped, its process is killed and its network goes.
#[derive(Debug)]
pub struct Pod {
    /// As its object is called.
    pub name: String,
    /// Where it runs.
    pub node: Arc<Node>,
    /// Its addresses; the node's, when it is on the host network.
    pub address: Pair,
    /// Its servers and its client.
    pub agent: Agent,
    /// Its servers as started.
    pub servers: Vec<(Kind, u16)>,
    network: Option<Network>,
    place: Place,
}

#[derive(Debug)]
struct Network {
    number: u8,
    link: String,
}

impl Pod {
    pub(crate) fn start(node: &Arc<Node>, name: &str, servers: &[(Kind, u16)]) -> Result<Self> {
        let number = node.take_number()?;
        let address = address::pod(node.number, number);
        let link = format!("v{number}");
        let netns = Netns::create(&format!("{}-{number}", node.name))?;
        connect(node, &netns, &link, number, address)?;
        let place = Place { netns, cgroup: node.cgroup.join("pods").join(name) };
        Self::run(node, name, address, servers, Some(Network { number, link }), place)
    }

    pub(crate) fn start_on_host(node: &Arc<Node>, name: &str, servers: &[(Kind, u16)]) -> Result<Self> {
        let place = Place { netns: node.netns.clone(), cgroup: node.cgroup.join("pods").join(name) };
        Self::run(node, name, node.address, servers, None, place)
    }

    fn run(
        node: &Arc<Node>,
        name: &str,
        address: Pair,
        servers: &[(Kind, u16)],
        network: Option<Network>,
        place: Place,
    ) -> Result<Self> {
        cgroup::make(&place.cgroup)?;
        let agent = Agent::start(name, &place, servers, &node.sockets())?;
        let (name, node, servers) = (name.to_owned(), Arc::clone(node), servers.to_vec());
        Ok(Self { name, node, address, agent, servers, network, place })
    }

    /// Whether it shares its node's network.
    pub fn on_host(&self) -> bool {
        self.network.is_none()
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.place.netns
    }
}

/// A veth from the node to the pod. Neighbours are written down on both sides, so that neither ARP nor neighbour
/// discovery can lose a test's first packet.
fn connect(node: &Node, pod: &Netns, link: &str, number: u8, address: Pair) -> Result<()> {
    let mac = |side: u8| format!("02:53:{side:02x}:00:{:02x}:{number:02x}", node.number);
    let (node_mac, pod_mac) = (mac(1), mac(2));
    node.netns.ip(&[
        format!("link add {link} address {node_mac} type veth peer name eth0 address {pod_mac} netns {}", pod.name()),
        format!("link set {link} up"),
        format!("route replace {}/32 dev {link}", address.v4),
        format!("route replace {}/128 dev {link}", address.v6),
        format!("neigh replace {} lladdr {pod_mac} dev {link} nud permanent", address.v4),
        format!("neigh replace {} lladdr {pod_mac} dev {link} nud permanent", address.v6),
    ])?;
    pod.ip(&[
        format!("addr add {}/32 dev eth0", address.v4),
        format!("addr add {}/128 dev eth0 nodad", address.v6),
        "link set eth0 up".to_owned(),
        "route add 169.254.1.1/32 dev eth0 scope link".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
        "route add ::/0 via fe80::1 dev eth0".to_owned(),
        format!("neigh replace 169.254.1.1 lladdr {node_mac} dev eth0 nud permanent"),
        format!("neigh replace fe80::1 lladdr {node_mac} dev eth0 nud permanent"),
    ])?;
    // The kernel takes packets on a link that came up only after a worker of its own has seen so, which on a busy machine
    // takes up to a second; until then it drops them.
    for (netns, device) in [(&node.netns, link), (pod, "eth0")] {
        until("a pod's link carries packets", CARRIES, || {
            let state = netns.output("ip", &["-o", "link", "show", "dev", device])?;
            ensure!(state.contains(" state UP "), "{state}");
            Ok(())
        })?;
    }
    Ok(())
}

impl Drop for Pod {
    fn drop(&mut self) {
        // What is left after a failure here goes with the run.
        let _ = self.agent.kill();
        let _ = cgroup::remove(&self.place.cgroup);
        if let Some(network) = &self.network {
            let _ = self.node.netns.ip(&[format!("link del {}", network.link)]);
            self.node.return_number(network.number);
        }
    }
}
