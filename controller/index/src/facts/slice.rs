//! Facts of EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use sheave_model::Protocol;

use super::ports::{Carried, number, protocol};
use super::{Problems, parse_address};
use crate::Strings;

/// Its value of `endpointslice.kubernetes.io/managed-by` marks slices that the cluster made out of Pods.
const POD_SLICES: &str = "endpointslice-controller.k8s.io";

/// What is read of an EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceFacts {
    /// Label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// Made by the cluster's own controller out of the same Pods that are read here.
    pub from_pods: bool,
    /// `ports`.
    pub ports: Box<[SlicePort]>,
    /// `endpoints`, one for each address; none where the addresses are names.
    pub endpoints: Box<[SliceEndpoint]>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port that it serves.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
}

/// An address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// One of `addresses`.
    pub address: IpAddr,
    /// `conditions.ready`; absent means true.
    pub ready: bool,
    /// `conditions.serving`; absent means true.
    pub serving: bool,
    /// `conditions.terminating`; absent means false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
}

pub(super) fn read(slice: &EndpointSlice, problems: &mut Problems, strings: &mut Strings) -> SliceFacts {
    let label = |key: &str| slice.metadata.labels.as_ref().and_then(|labels| labels.get(key));
    let mut facts = SliceFacts {
        service: label("kubernetes.io/service-name").map(|service| strings.get(service)),
        from_pods: label("endpointslice.kubernetes.io/managed-by").is_some_and(|manager| manager == POD_SLICES),
        ports: ports(slice, problems, strings),
        endpoints: Box::default(),
    };
    match slice.address_type.as_str() {
        "IPv4" | "IPv6" => {
            let v4 = slice.address_type == "IPv4";
            let mut found = Vec::new();
            for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
                addresses(index, endpoint, v4, problems, strings, &mut found);
            }
            facts.endpoints = found.into();
        }
        "FQDN" => {}
        other => problems.add("addressType", format!("{other:?} is not known"), "write IPv4, IPv6 or FQDN"),
    }
    facts
}

fn addresses(
    index: usize,
    endpoint: &Endpoint,
    v4: bool,
    problems: &mut Problems,
    strings: &mut Strings,
    found: &mut Vec<SliceEndpoint>,
) {
    let conditions = endpoint.conditions.as_ref();
    let mut shared = |text: &Option<String>| text.as_deref().filter(|t| !t.is_empty()).map(|t| strings.get(t));
    let (node, zone) = (shared(&endpoint.node_name), shared(&endpoint.zone));
    for (at, text) in endpoint.addresses.iter().enumerate() {
        let Some(address) = parse_address(text).filter(|ip| ip.is_ipv4() == v4 && !ip.is_unspecified()) else {
            problems.add(
                format!("endpoints[{index}].addresses[{at}]"),
                format!("{text:?} is not an address of the slice's addressType"),
                if v4 { "write an IPv4 address" } else { "write an IPv6 address" },
            );
            continue;
        };
        found.push(SliceEndpoint {
            address,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            node: node.clone(),
            zone: zone.clone(),
        });
    }
}

fn ports(slice: &EndpointSlice, problems: &mut Problems, strings: &mut Strings) -> Box<[SlicePort]> {
    let mut found = Vec::new();
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let Carried::Yes(protocol) = protocol(port.protocol.as_deref()) else { continue };
        // A port without a number means "all ports" to consumers that are not Services; a frontend has no use for it.
        let Some(value) = port.port else { continue };
        match number(value) {
            Some(port_number) => {
                let name = strings.get(port.name.as_deref().unwrap_or_default());
                found.push(SlicePort { name, protocol, port: port_number });
            }
            None => problems.add(
                format!("ports[{index}].port"),
                format!("{value} is not a port"),
                "write a number from 1 to 65535",
            ),
        }
    }
    found.into()
}
