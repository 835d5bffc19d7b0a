//! Facts of Nodes and of ServiceCIDRs.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::ServiceCIDR;

use super::{Problems, parse_address, parse_prefix};
use crate::Strings;

/// What is read of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeObjectFacts {
    /// Label `topology.kubernetes.io/zone`; an empty one says nothing.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, in their order.
    pub addresses: Vec<IpAddr>,
}

/// What is read of a ServiceCIDR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CidrFacts {
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

pub(super) fn read_node(node: &Node, problems: &mut Problems, strings: &mut Strings) -> NodeObjectFacts {
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get("topology.kubernetes.io/zone")).filter(|zone| !zone.is_empty());
    let mut facts = NodeObjectFacts { zone: zone.map(|zone| strings.get(zone)), addresses: Vec::new() };
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    for (index, entry) in listed.into_iter().flatten().enumerate().filter(|(_, entry)| entry.type_ == "InternalIP") {
        match parse_address(&entry.address) {
            Some(ip) if facts.addresses.contains(&ip) => {}
            Some(ip) => facts.addresses.push(ip),
            None => problems.add(
                format!("status.addresses[{index}].address"),
                format!("{:?} is not an IP address", entry.address),
                "write an IPv4 or IPv6 address for type InternalIP",
            ),
        }
    }
    facts
}

pub(super) fn read_cidrs(cidr: &ServiceCIDR, problems: &mut Problems) -> CidrFacts {
    let mut facts = CidrFacts::default();
    let listed = cidr.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    for (index, text) in listed.into_iter().flatten().enumerate() {
        match parse_prefix(text) {
            Some(net) => facts.cidrs.push(net),
            None => problems.add(
                format!("spec.cidrs[{index}]"),
                format!("{text:?} is not a CIDR"),
                "write an address and a length, such as 10.96.0.0/16",
            ),
        }
    }
    facts
}
