//! Services in front of workloads, with the addresses that the API server and the cloud gave them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::kube::Api;
use crate::objects;

/// A Service's addresses, as the API server and the cloud gave them.
#[derive(Clone, Debug)]
pub struct Service {
    /// Both cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// NodePorts, where it has some: TCP, then UDP.
    pub node_ports: Vec<u16>,
}

impl Service {
    /// Makes a dual-stack Service of this type in front of the workload of the same name (TCP 80, UDP 53).
    pub fn apply(api: &Api, namespace: &str, name: &str, kind: &str) -> Result<Self> {
        let ports = [objects::port("tcp", "TCP", 80, 8080), objects::port("udp", "UDP", 53, 5353)];
        api.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"type": kind, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "selector": {"app": name}, "ports": ports},
        }))?;
        Self::read(api, namespace, name)
    }

    /// The Service as it is.
    pub fn read(api: &Api, namespace: &str, name: &str) -> Result<Self> {
        let object = api.read("Service", namespace, name)?;
        let ports = object["spec"]["ports"].as_array().context("ports")?;
        let node_port = |port: &Value| port["nodePort"].as_u64().and_then(|it| u16::try_from(it).ok());
        Ok(Self {
            cluster_ips: addresses(&object["spec"]["clusterIPs"], |it| it),
            node_ports: ports.iter().filter_map(node_port).collect(),
        })
    }

    /// A port at each cluster IP.
    pub fn sockets(&self, port: u16) -> Vec<SocketAddr> {
        self.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }
}

/// Addresses in a list; `of` finds the text of one entry.
pub fn addresses(list: &Value, of: impl Fn(&Value) -> &Value) -> Vec<IpAddr> {
    list.as_array().into_iter().flatten().filter_map(|it| of(it).as_str()?.parse().ok()).collect()
}
