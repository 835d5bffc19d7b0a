//! The model as JSON, for people. No program should read it: the names may change.

use serde_json::{Value, json};
use sheave_model::{AppProtocol, Claim, ClusterFacts, NodeFacts, Policy, ServiceState, Snapshot, claims};

use crate::metrics::{Direction, Path, ServiceMetrics};

pub(super) fn node(node: &NodeFacts) -> Value {
    json!({ "name": *node.name, "zone": node.zone.as_deref(), "addresses": node.addresses, "pods": node.pods })
}

pub(super) fn cluster(cluster: &ClusterFacts) -> Value {
    json!({ "serviceCidrs": cluster.service_cidrs })
}

/// A Service as it was received.
pub(super) fn service(state: &ServiceState) -> Value {
    let service = &state.service;
    let policy = |policy| if policy == Policy::Local { "Local" } else { "Cluster" };
    let ports = service.ports.iter().map(|port| {
        json!({
            "name": *port.name, "protocol": port.protocol.to_string(), "port": port.port, "nodePort": port.node_port,
            "app": match port.app { AppProtocol::Opaque => "opaque", AppProtocol::Http => "http" },
        })
    });
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({
            "address": endpoint.address, "ports": endpoint.ports, "ready": endpoint.ready, "serving": endpoint.serving,
            "terminating": endpoint.terminating, "node": endpoint.node.as_deref(), "zone": endpoint.zone.as_deref(),
        })
    });
    json!({
        "name": service.key.to_string(),
        "hash": format!("{:?}", state.hash),
        "created": service.created,
        "clusterIPs": service.cluster_ips,
        "loadBalancerIPs": service.load_balancer_ips,
        "externalIPs": service.external_ips,
        "internalTrafficPolicy": policy(service.internal_policy),
        "externalTrafficPolicy": policy(service.external_policy),
        "affinitySeconds": service.affinity.map(|time| time.as_secs()),
        "sourceRanges": service.source_ranges,
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// A Service as it is served.
pub(super) fn served(state: &ServiceState, snapshot: &Snapshot, metrics: &ServiceMetrics) -> Value {
    let service = &state.service;
    let facts = snapshot.node.as_ref().map(|(_, node)| node.clone()).unwrap_or_default();
    let ports = service.ports.iter().zip(&state.backends).map(|(port, backends)| {
        let counters = metrics.existing(&service.key, &port.name, port.protocol).unwrap_or_default();
        json!({
            "name": *port.name, "protocol": port.protocol.to_string(), "port": port.port,
            "backends": backends.v4.iter().chain(&*backends.v6).collect::<Vec<_>>(),
            "connections": {
                "hook": counters.connections_total(Path::Hook),
                "listener": counters.connections_total(Path::Listener),
            },
            "bytes": { "in": counters.bytes_total(Direction::In), "out": counters.bytes_total(Direction::Out) },
            "errors": counters.errors_total(),
        })
    });
    let frontends = claims(service, &facts).into_iter().map(|claim| frontend(&claim, state, snapshot));
    json!({
        "name": service.key.to_string(),
        "frontends": frontends.collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(),
    })
}

fn frontend(claim: &Claim, state: &ServiceState, snapshot: &Snapshot) -> Value {
    let backends = state.backends.get(claim.port).map_or(0, |port| port.of(claim.frontend.address.ip()).len());
    let keeper = snapshot.frontends.get(&claim.frontend);
    let mine = keeper.is_some_and(|route| route.service == claim.service && route.port == claim.port);
    let verdict = match (mine, backends) {
        (false, _) => "shadowed",
        (true, 0) => "refused: no endpoint",
        (true, _) => "served",
    };
    json!({
        "frontend": claim.frontend.to_string(),
        "kind": claim.kind.to_string(),
        "port": claim.port,
        "state": verdict,
        "backends": backends,
        "by": keeper.filter(|_| !mine).map(|route| route.service.to_string()),
    })
}
