//! Facts of Pods: what decides whether and how a Pod is an endpoint (SEMANTICS section 6).

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use sheave_model::Protocol;

use super::ports::{Carried, number, protocol};
use super::{Label, Problems, labels, parse_address};
use crate::Strings;

/// What is read of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.labels`, sorted.
    pub labels: Box<[Label]>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`, or `status.podIP` where there are none.
    pub ips: Box<[IpAddr]>,
    /// Container ports with a name, in the order in which a name is looked up: app containers, then sidecars.
    pub ports: Box<[NamedPort]>,
    /// The condition Ready is True.
    pub ready: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Phase Failed or Succeeded: its address may belong to another pod by now.
    pub finished: bool,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// `name`.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `containerPort`.
    pub port: u16,
}

impl PodFacts {
    /// The number behind a name for a protocol: the first container port with both.
    pub fn named(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports.iter().find(|port| *port.name == *name && port.protocol == protocol).map(|port| port.port)
    }

    /// The addresses that mean this pod and nothing else of its node.
    pub fn own_addresses(&self) -> &[IpAddr] {
        if self.host_network || self.finished { &[] } else { &self.ips }
    }

    /// Whether a label has this value.
    pub fn has(&self, (key, value): &Label) -> bool {
        self.labels.binary_search_by(|(mine, _)| mine.cmp(key)).is_ok_and(|at| self.labels[at].1 == *value)
    }
}

pub(super) fn read(pod: &Pod, problems: &mut Problems, strings: &mut Strings) -> PodFacts {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let node = spec.and_then(|spec| spec.node_name.as_deref()).filter(|node| !node.is_empty());
    PodFacts {
        labels: labels(pod.metadata.labels.as_ref(), strings),
        node: node.map(|node| strings.get(node)),
        ips: status.map(|status| addresses(status, problems)).unwrap_or_default(),
        ports: spec.map(|spec| ports(spec, problems, strings)).unwrap_or_default(),
        ready: conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        finished: matches!(status.and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded")),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
    }
}

fn addresses(status: &PodStatus, problems: &mut Problems) -> Box<[IpAddr]> {
    let mut found = Vec::new();
    let mut add = |field: String, text: &str| match parse_address(text) {
        Some(ip) if ip.is_unspecified() || ip.is_multicast() => {
            problems.add(field, format!("{text:?} cannot be a pod's address"), "write the address the pod has");
        }
        Some(ip) if found.contains(&ip) => {}
        Some(ip) => found.push(ip),
        None => problems.add(field, format!("{text:?} is not an IP address"), "write an IPv4 or IPv6 address"),
    };
    match &status.pod_ips {
        Some(ips) if !ips.is_empty() => {
            ips.iter().enumerate().for_each(|(index, entry)| add(format!("status.podIPs[{index}].ip"), &entry.ip));
        }
        _ => {
            if let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()) {
                add("status.podIP".to_owned(), ip);
            }
        }
    }
    found.into()
}

/// App containers first; of the init containers only the restartable ones, which run beside them (KEP-753).
fn ports(spec: &PodSpec, problems: &mut Problems, strings: &mut Strings) -> Box<[NamedPort]> {
    let mut found = Vec::new();
    let mut add = |list: &str, index: usize, container: &Container| {
        for (at, port) in container.ports.iter().flatten().enumerate() {
            let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let Carried::Yes(protocol) = protocol(port.protocol.as_deref()) else { continue };
            match number(port.container_port) {
                Some(port) => found.push(NamedPort { name: strings.get(name), protocol, port }),
                None => problems.add(
                    format!("spec.{list}[{index}].ports[{at}].containerPort"),
                    format!("{} is not a port", port.container_port),
                    "write a number from 1 to 65535",
                ),
            }
        }
    };
    for (index, container) in spec.containers.iter().enumerate() {
        add("containers", index, container);
    }
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        if container.restart_policy.as_deref() == Some("Always") {
            add("initContainers", index, container);
        }
    }
    found.into()
}
