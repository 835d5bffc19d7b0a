//! From Kubernetes objects to what is to be balanced, and to what a Service's status says.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Numbers of Services, from which their addresses are made.
const NUMBERS: std::ops::RangeInclusive<u8> = 1..=250;

/// One port of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Balanced {
    /// The load balancer's address.
    pub(crate) address: IpAddr,
    /// `tcp` or `udp`.
    pub(crate) protocol: String,
    /// The Service's port.
    pub(crate) port: u16,
    /// The port on the nodes.
    pub(crate) node_port: u16,
    /// The nodes' addresses, of the same family.
    pub(crate) nodes: Vec<IpAddr>,
    /// One client stays with one node.
    pub(crate) sticky: bool,
    /// Nodes are asked here whether they have endpoints.
    health_port: Option<u16>,
}

impl Balanced {
    /// Whom to ask before this one can be used.
    pub(crate) fn checks(&self) -> impl Iterator<Item = SocketAddr> {
        self.nodes.iter().filter_map(|node| Some(SocketAddr::new(*node, self.health_port?)))
    }

    /// Leaves only nodes that answered.
    pub(crate) fn keep_healthy(&mut self, answers: &BTreeMap<SocketAddr, bool>) {
        let Some(port) = self.health_port else { return };
        self.nodes.retain(|node| answers.get(&SocketAddr::new(*node, port)) == Some(&true));
    }
}

/// Which number each Service has, by uid: it keeps it, and its addresses with it, as long as it is balanced.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    numbers: BTreeMap<String, u8>,
}

impl Addresses {
    /// Numbers of Services that are no longer balanced become free.
    pub(crate) fn forget_all_but(&mut self, services: &[Value]) {
        self.numbers.retain(|uid, _| services.iter().any(|it| is_ours(it) && it["metadata"]["uid"] == **uid));
        // What an earlier life of this program has given away stays with its owner.
        for service in services.iter().filter(|service| is_ours(service)) {
            let given =
                service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().and_then(|ip| number(ip.parse().ok()?));
            if let (Some(uid), Some(number)) = (service["metadata"]["uid"].as_str(), given) {
                self.numbers.entry(uid.to_owned()).or_insert(number);
            }
        }
    }

    /// The Service's number, a free one at first.
    pub(crate) fn of(&mut self, service: &Value) -> Result<u8> {
        let uid = service["metadata"]["uid"].as_str().context("a Service without uid")?;
        if let Some(number) = self.numbers.get(uid) {
            return Ok(*number);
        }
        let free = NUMBERS.into_iter().find(|number| !self.numbers.values().any(|taken| taken == number));
        let free = free.context("every address is taken")?;
        self.numbers.insert(uid.to_owned(), free);
        Ok(free)
    }
}

/// 10.89.0.N and fd00:89::N.
fn address(number: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x89, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 89, 0, number).into()
    }
}

fn number(ip: IpAddr) -> Option<u8> {
    NUMBERS.into_iter().find(|it| address(*it, ip.is_ipv6()) == ip)
}

/// Whether this program balances a Service: those of another class are somebody else's.
pub(crate) fn is_ours(service: &Value) -> bool {
    let (spec, metadata) = (&service["spec"], &service["metadata"]);
    spec["type"] == "LoadBalancer" && spec["loadBalancerClass"].is_null() && metadata["deletionTimestamp"].is_null()
}

/// A Service's namespace and name.
pub(crate) fn name(service: &Value) -> Result<(&str, &str)> {
    let field = |name: &str| service["metadata"][name].as_str().with_context(|| format!("a Service without {name}"));
    Ok((field("namespace")?, field("name")?))
}

/// Addresses of nodes that are Ready, each node's of both families.
pub(crate) fn ready_nodes(nodes: &[Value]) -> Vec<IpAddr> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is_ready = |node: &&Value| {
        list(&node["status"]["conditions"]).iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    let internal = |node: &Value| {
        let addresses = list(&node["status"]["addresses"]).into_iter().filter(|it| it["type"] == "InternalIP");
        addresses.filter_map(|it| it["address"].as_str()?.parse().ok()).collect::<Vec<IpAddr>>()
    };
    nodes.iter().filter(is_ready).flat_map(internal).collect()
}

fn is_v6(family: &Value) -> bool {
    family == "IPv6"
}

fn families(service: &Value) -> Vec<Value> {
    service["spec"]["ipFamilies"].as_array().cloned().unwrap_or_default()
}

/// Each port of a Service at each of its addresses. A port without a NodePort has nowhere to go.
pub(crate) fn balanced(service: &Value, number: u8, nodes: &[IpAddr]) -> Vec<Balanced> {
    let spec = &service["spec"];
    let small = |value: &Value| value.as_u64().and_then(|it| u16::try_from(it).ok()).filter(|it| *it != 0);
    let health_port = (spec["externalTrafficPolicy"] == "Local").then(|| small(&spec["healthCheckNodePort"])).flatten();
    let ports = spec["ports"].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for address in families(service).iter().map(|family| address(number, is_v6(family))) {
        for port in &ports {
            let (Some(at), Some(node_port)) = (small(&port["port"]), small(&port["nodePort"])) else { continue };
            all.push(Balanced {
                address,
                protocol: port["protocol"].as_str().unwrap_or("TCP").to_lowercase(),
                port: at,
                node_port,
                nodes: nodes.iter().copied().filter(|node| node.is_ipv6() == address.is_ipv6()).collect(),
                sticky: spec["sessionAffinity"] == "ClientIP",
                health_port,
            });
        }
    }
    all
}

/// What `status.loadBalancer.ingress` ought to be: null where there is nothing, and untouched where it isn't ours.
pub(crate) fn status(service: &Value, addresses: &mut Addresses) -> Value {
    let now = &service["status"]["loadBalancer"]["ingress"];
    if !is_ours(service) {
        let was_ours = now[0]["ip"].as_str().and_then(|ip| number(ip.parse().ok()?)).is_some();
        return if was_ours && service["spec"]["type"] != "LoadBalancer" { Value::Null } else { now.clone() };
    }
    let Ok(number) = addresses.of(service) else { return now.clone() };
    let entry = |family: &Value| json!({"ip": address(number, is_v6(family)), "ipMode": "VIP"});
    families(service).iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Value {
        json!({"metadata": {"uid": "u", "namespace": "a", "name": "b"},
            "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4", "IPv6"], "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 31000, "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}})
    }

    #[test]
    fn a_service_keeps_its_addresses_and_a_restart_learns_them_from_its_status() {
        let (mut addresses, mut service) = (Addresses::default(), service());
        addresses.numbers.insert("another".into(), 1);
        let status = status(&service, &mut addresses);
        assert_eq!(status, json!([{"ip": "10.89.0.2", "ipMode": "VIP"}, {"ip": "fd00:89::2", "ipMode": "VIP"}]));
        service["status"]["loadBalancer"]["ingress"] = status.clone();
        let mut later = Addresses::default();
        later.forget_all_but(std::slice::from_ref(&service));
        assert_eq!(super::status(&service, &mut later), status);
        service["spec"]["type"] = "ClusterIP".into();
        assert_eq!(super::status(&service, &mut later), Value::Null);
        later.forget_all_but(std::slice::from_ref(&service));
        assert!(later.numbers.is_empty());
    }

    #[test]
    fn policy_local_leaves_only_nodes_that_answer() {
        let nodes: Vec<IpAddr> = ["10.88.0.11", "10.88.0.12", "fd00:88::11"].map(|it| it.parse().unwrap()).to_vec();
        let mut all = balanced(&service(), 2, &nodes);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].nodes, nodes[..2]);
        all[0].keep_healthy(&BTreeMap::from([("10.88.0.12:31000".parse().unwrap(), true)]));
        assert_eq!(all[0].nodes, nodes[1..2]);
    }
}
