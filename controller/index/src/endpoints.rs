//! The endpoints of a Service: from the Pods it selects and from its EndpointSlices, one for each address
//! (SEMANTICS section 6).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use sheave_model::{Endpoint, ServicePort};

use crate::facts::{NodeObjectFacts, PodFacts, ServiceFacts, SliceEndpoint, SliceFacts, Target};
use crate::index::MAX_ENDPOINTS;
use crate::space::{ServiceEntry, Space};

/// The endpoints of a Service that are served, sorted by address, and how many there are in all.
pub(crate) fn endpoints(
    name: &str,
    entry: &ServiceEntry,
    space: &Space,
    nodes: &HashMap<Arc<str>, Arc<NodeObjectFacts>>,
) -> (Vec<Endpoint>, usize) {
    let facts = &*entry.facts;
    let mut found = Vec::with_capacity(entry.members.len());
    for pod in entry.members.iter().filter_map(|member| space.pods.get(member)) {
        from_pod(facts, pod, nodes, &mut found);
    }
    for slice in space.slices_of(name).filter(|slice| facts.selector.is_none() || !slice.from_pods) {
        from_slice(facts, slice, &mut found);
    }
    let mut merged = merge(found);
    merged.retain(|endpoint| endpoint.ports.iter().any(|&port| port != 0));
    let all = merged.len();
    (limit(merged), all)
}

fn from_pod(
    facts: &ServiceFacts,
    pod: &PodFacts,
    nodes: &HashMap<Arc<str>, Arc<NodeObjectFacts>>,
    found: &mut Vec<Endpoint>,
) {
    if pod.finished {
        return;
    }
    let node = pod.node.as_ref().and_then(|name| nodes.get(name));
    if pod.node.is_some() && node.is_none() && !facts.publish_not_ready {
        return; // Its Node will come and bring it back.
    }
    let port = |(port, target): (&ServicePort, &Target)| match target {
        Target::Number(number) => *number,
        Target::Name(name) => pod.named(name, port.protocol).unwrap_or(0),
    };
    let ports: Vec<u16> = facts.service.ports.iter().zip(&facts.targets).map(port).collect();
    for &address in pod.ips.iter().filter(|ip| if ip.is_ipv4() { facts.v4 } else { facts.v6 }) {
        found.push(Endpoint {
            address,
            ports: ports.clone(),
            ready: facts.publish_not_ready || (pod.ready && !pod.terminating),
            serving: pod.ready,
            terminating: pod.terminating,
            node: pod.node.clone(),
            zone: node.and_then(|node| node.zone.clone()),
        });
    }
}

fn from_slice(facts: &ServiceFacts, slice: &SliceFacts, found: &mut Vec<Endpoint>) {
    let number = |port: &ServicePort| {
        let same = slice.ports.iter().find(|own| own.name == port.name && own.protocol == port.protocol);
        same.map_or(0, |own| own.port)
    };
    let ports: Vec<u16> = facts.service.ports.iter().map(number).collect();
    let wanted = |endpoint: &&SliceEndpoint| if endpoint.address.is_ipv4() { facts.v4 } else { facts.v6 };
    for endpoint in slice.endpoints.iter().filter(wanted) {
        found.push(Endpoint {
            address: endpoint.address,
            ports: ports.clone(),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            node: endpoint.node.clone(),
            zone: endpoint.zone.clone(),
        });
    }
}

/// One endpoint for each address: of several the one that is not terminating, then the ready one, then the first. Others
/// in the same state add the ports that it lacks, as slices of one address with different ports do.
fn merge(mut found: Vec<Endpoint>) -> Vec<Endpoint> {
    let rank = |e: &Endpoint| (e.address, e.terminating, !e.ready, !e.serving);
    found.sort_by_key(rank);
    let mut merged: Vec<Endpoint> = Vec::with_capacity(found.len());
    for endpoint in found {
        match merged.last_mut().filter(|kept| kept.address == endpoint.address) {
            None => merged.push(endpoint),
            Some(kept) if rank(kept) == rank(&endpoint) => {
                for (mine, other) in kept.ports.iter_mut().zip(endpoint.ports).filter(|(mine, _)| **mine == 0) {
                    *mine = other;
                }
            }
            Some(_) => {}
        }
    }
    merged
}

/// Keeps a Service encodable: of too many endpoints those that take connections stay, the smaller addresses first.
fn limit(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    if endpoints.len() > MAX_ENDPOINTS {
        let order = |e: &Endpoint| -> (bool, bool, IpAddr) { (!e.ready, !e.serving, e.address) };
        endpoints.sort_by_key(order);
        endpoints.truncate(MAX_ENDPOINTS);
        endpoints.sort_by_key(|e| e.address);
    }
    endpoints
}
