//! What a case is, and what it works with: a namespace of its own, Services in it, and clients everywhere.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sheave_harness::agent::Agent;
use sheave_harness::objects;

use crate::fixture::{Fixture, Node};
use crate::workload::{self, Deployment};

/// A claim about the cluster, and the function that tries to disprove it.
pub(crate) struct Case {
    /// The claim.
    pub(crate) name: &'static str,
    /// Tries it; both families inside.
    pub(crate) run: fn(&Context<'_>) -> Result<()>,
}

/// What a case is given.
pub(crate) struct Context<'a> {
    /// What all cases share.
    pub(crate) fixture: &'a Fixture,
    /// The case's own namespace.
    pub(crate) namespace: String,
}

impl<'a> Context<'a> {
    /// For a case in this namespace.
    pub(crate) fn new(fixture: &'a Fixture, namespace: String) -> Self {
        Self { fixture, namespace }
    }

    /// Makes the namespace.
    pub(crate) fn prepare(&self) -> Result<()> {
        workload::namespace(&self.fixture.api, &self.namespace)
    }

    /// Deletes the namespace with all that is in it; that goes on beside the next case, which has another.
    pub(crate) fn forget(&self) -> Result<()> {
        self.fixture.api.delete("Namespace", "", &self.namespace, 0)
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> &'a [Node] {
        &self.fixture.nodes
    }

    /// Every client in the cluster: a pod and a pod on the host network of each node.
    pub(crate) fn inside(&self) -> impl Iterator<Item = &'a Agent> + use<'a> {
        self.fixture.nodes.iter().flat_map(|node| [&node.pod, &node.host])
    }

    /// A Deployment, ready.
    pub(crate) fn deployment<'b>(&'b self, name: &'b str, replicas: usize) -> Result<Deployment<'b>> {
        Deployment::start(&self.fixture.api, &self.namespace, name, replicas)
    }

    /// A dual-stack Service of this type in front of the Deployment of the same name (TCP 80, UDP 53), as the API server made it.
    pub(crate) fn service(&self, name: &str, kind: &str) -> Result<Service> {
        let ports = [objects::port("tcp", "TCP", 80, 8080), objects::port("udp", "UDP", 53, 5353)];
        self.fixture.api.apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"type": kind, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "selector": {"app": name}, "ports": ports},
        }))?;
        Service::read(self, name)
    }
}

/// A Service's addresses, as the API server and the cloud gave them.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Both cluster IPs.
    pub(crate) cluster_ips: Vec<IpAddr>,
    /// NodePorts, where it has some: TCP, then UDP.
    pub(crate) node_ports: Vec<u16>,
}

impl Service {
    /// As the API server has it.
    pub(crate) fn read(context: &Context<'_>, name: &str) -> Result<Self> {
        let object = context.fixture.api.read("Service", &context.namespace, name)?;
        let ports = object["spec"]["ports"].as_array().context("ports")?;
        let node_port = |port: &Value| port["nodePort"].as_u64().and_then(|it| u16::try_from(it).ok());
        Ok(Self {
            cluster_ips: addresses(&object["spec"]["clusterIPs"], |it| it),
            node_ports: ports.iter().filter_map(node_port).collect(),
        })
    }

    /// A port at each cluster IP.
    pub(crate) fn sockets(&self, port: u16) -> Vec<SocketAddr> {
        self.cluster_ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }
}

/// Addresses in a list; `of` finds the text of one entry.
pub(crate) fn addresses(list: &Value, of: impl Fn(&Value) -> &Value) -> Vec<IpAddr> {
    list.as_array().into_iter().flatten().filter_map(|it| of(it).as_str()?.parse().ok()).collect()
}
