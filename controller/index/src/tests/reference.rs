//! What the index must say, computed from all objects at once with nothing but loops.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sheave_model::{ClusterFacts, Endpoint, NodeFacts, Resource, ResourceKey};

use crate::facts::{Class, NodeObjectFacts, PodFacts, ServiceFacts, Target};
use crate::{Facts, Object, ObjectKey};

pub(crate) type Objects = BTreeMap<ObjectKey, Object>;

/// Every resource of a set of objects.
pub(crate) fn resources(objects: &Objects) -> BTreeMap<ResourceKey, Resource> {
    let mut all = vec![Resource::Cluster(cluster(objects))];
    for object in objects.values() {
        match &object.facts {
            Facts::Node(facts) => all.push(Resource::Node(node(&object.key.name, facts, objects))),
            Facts::Service(facts) if facts.class == Class::Served => {
                let endpoints = endpoints(facts, objects);
                all.push(Resource::Service(sheave_model::Service { endpoints, ..facts.service.clone() }));
            }
            _ => {}
        }
    }
    all.into_iter().map(|resource| (resource.key(), resource)).collect()
}

fn cluster(objects: &Objects) -> ClusterFacts {
    let mut facts = ClusterFacts::default();
    for object in objects.values() {
        if let Facts::ServiceCidr(cidr) = &object.facts {
            facts.service_cidrs.extend(
                cidr.cidrs.iter().filter(|net| !facts.service_cidrs.contains(net)).copied().collect::<Vec<_>>(),
            );
        }
    }
    facts.service_cidrs.sort();
    facts
}

fn pods(objects: &Objects) -> impl Iterator<Item = (&ObjectKey, &Arc<PodFacts>)> {
    objects.values().filter_map(|object| match &object.facts {
        Facts::Pod(pod) => Some((&object.key, pod)),
        _ => None,
    })
}

fn node(name: &Arc<str>, facts: &NodeObjectFacts, objects: &Objects) -> NodeFacts {
    let here = pods(objects).filter(|(_, pod)| pod.node.as_ref() == Some(name) && !pod.host_network && !pod.finished);
    let ips: std::collections::BTreeSet<IpAddr> = here.flat_map(|(_, pod)| pod.ips.iter().copied()).collect();
    NodeFacts {
        name: name.clone(),
        zone: facts.zone.clone(),
        addresses: facts.addresses.clone(),
        pods: ips.into_iter().collect(),
    }
}

fn endpoints(facts: &ServiceFacts, objects: &Objects) -> Vec<Endpoint> {
    let key = &facts.service.key;
    let mut found = Vec::new();
    for (pod_key, pod) in pods(objects) {
        let Some(selector) = &facts.selector else { continue };
        let selected = selector.iter().all(|pair| pod.labels.contains(pair));
        let node = pod.node.as_ref().map(|name| objects.get(&ObjectKey::new(crate::Kind::Node, "", name.clone())));
        let waits = matches!(node, Some(None)) && !facts.publish_not_ready;
        if pod_key.namespace != key.namespace || !selected || pod.finished || waits {
            continue;
        }
        let zone = node.flatten().and_then(|object| match &object.facts {
            Facts::Node(node) => node.zone.clone(),
            _ => None,
        });
        let ports = facts.service.ports.iter().zip(&facts.targets).map(|(port, target)| match target {
            Target::Number(number) => *number,
            Target::Name(name) => {
                let own = pod.ports.iter().find(|own| own.name == *name && own.protocol == port.protocol);
                own.map_or(0, |own| own.port)
            }
        });
        let ports: Vec<u16> = ports.collect();
        for &address in &pod.ips {
            found.push(Endpoint {
                address,
                ports: ports.clone(),
                ready: facts.publish_not_ready || (pod.ready && !pod.terminating),
                serving: pod.ready,
                terminating: pod.terminating,
                node: pod.node.clone(),
                zone: zone.clone(),
            });
        }
    }
    for object in objects.values().filter(|object| object.key.namespace == key.namespace) {
        let Facts::EndpointSlice(slice) = &object.facts else { continue };
        if slice.service.as_ref() != Some(&key.name) || (facts.selector.is_some() && slice.from_pods) {
            continue;
        }
        for endpoint in &slice.endpoints {
            let ports = facts.service.ports.iter().map(|port| {
                let own = slice.ports.iter().find(|own| own.name == port.name && own.protocol == port.protocol);
                own.map_or(0, |own| own.port)
            });
            found.push(Endpoint {
                address: endpoint.address,
                ports: ports.collect(),
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                node: endpoint.node.clone(),
                zone: endpoint.zone.clone(),
            });
        }
    }
    found.retain(|e| if e.address.is_ipv4() { facts.v4 } else { facts.v6 });
    best(found)
}

/// For each address, the best endpoint with the ports of its equals.
fn best(found: Vec<Endpoint>) -> Vec<Endpoint> {
    let mut by_address: BTreeMap<IpAddr, Vec<Endpoint>> = BTreeMap::new();
    for endpoint in found {
        by_address.entry(endpoint.address).or_default().push(endpoint);
    }
    let mut kept = Vec::new();
    for candidates in by_address.into_values() {
        let state = |e: &Endpoint| (e.terminating, !e.ready, !e.serving);
        let least = candidates.iter().map(state).min().unwrap();
        let equals: Vec<&Endpoint> = candidates.iter().filter(|e| state(e) == least).collect();
        let mut winner = equals[0].clone();
        for (index, port) in winner.ports.iter_mut().enumerate() {
            *port = equals.iter().map(|e| e.ports[index]).find(|&port| port != 0).unwrap_or(0);
        }
        if winner.ports.iter().any(|&port| port != 0) {
            kept.push(winner);
        }
    }
    kept
}
