//! Tests of the whole index: SEMANTICS section 6 as tables, bad input, and any sequence of events against a naive reference.

mod bad_input;
mod changes;
mod property;
mod reference;
mod semantics;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use sheave_model::{Endpoint, NodeFacts, Resource, ResourceKey, ServiceKey};

use crate::{Index, Object, Strings, facts};

/// Lays `over` on `base`: objects are merged, everything else is replaced.
fn lay(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                lay(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Service `ns/NAME` that selects `app: web`, port 80 to 8080, with `over` laid upon it.
pub(crate) fn service(name: &str, over: Value) -> Object {
    let mut written = json!({
        "metadata": {"namespace": "ns", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}]
        }
    });
    lay(&mut written, over);
    let written: Service = serde_json::from_value(written).unwrap();
    facts::from_service(&written, &mut Strings::default()).unwrap()
}

/// Pod `ns/NAME`, `app: web`, Running and Ready on node `n1`, with `over` laid upon it.
pub(crate) fn pod(name: &str, ip: &str, over: Value) -> Object {
    let mut written = json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": "True"}]}
    });
    lay(&mut written, over);
    let written: Pod = serde_json::from_value(written).unwrap();
    facts::from_pod(&written, &mut Strings::default()).unwrap()
}

/// Node NAME in a zone.
pub(crate) fn node(name: &str, zone: &str, ips: &[&str]) -> Object {
    let addresses: Vec<Value> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    let written = json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}, "status": {"addresses": addresses}
    });
    let written: Node = serde_json::from_value(written).unwrap();
    facts::from_node(&written, &mut Strings::default()).unwrap()
}

/// Slice `ns/NAME` of Service `web`, made by nobody in particular, with `over` laid upon it.
pub(crate) fn slice(name: &str, over: Value) -> Object {
    let mut written = json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]
    });
    lay(&mut written, over);
    let written: EndpointSlice = serde_json::from_value(written).unwrap();
    facts::from_slice(&written, &mut Strings::default()).unwrap()
}

pub(crate) fn key(name: &str) -> ResourceKey {
    ResourceKey::Service(ServiceKey::new("ns", name))
}

/// An index of node `n1` in zone `a` and the objects given.
pub(crate) fn index(objects: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::default();
    index.apply(node("n1", "a", &["192.0.2.1"]));
    for object in objects {
        index.apply(object);
    }
    index
}

pub(crate) fn service_of(index: &Index, name: &str) -> Option<sheave_model::Service> {
    index.compute(&key(name)).map(|resource| match resource {
        Resource::Service(service) => service,
        other => panic!("{other:?} is no Service"),
    })
}

pub(crate) fn node_of(index: &Index, name: &str) -> Option<NodeFacts> {
    index.compute(&ResourceKey::Node(Arc::from(name))).map(|resource| match resource {
        Resource::Node(node) => node,
        other => panic!("{other:?} is no Node"),
    })
}

/// Endpoints of Service `ns/web`.
pub(crate) fn endpoints(index: &Index) -> Vec<Endpoint> {
    service_of(index, "web").map(|service| service.endpoints).unwrap_or_default()
}

/// `address:port,port` with `R`eady, `S`erving, `T`erminating, for each endpoint of `ns/web`.
pub(crate) fn shown(index: &Index) -> Vec<String> {
    let show = |e: &Endpoint| {
        let ports: Vec<String> = e.ports.iter().map(u16::to_string).collect();
        let flag = |set: bool, letter: &'static str| if set { letter } else { "" };
        let flags = format!("{}{}{}", flag(e.ready, "R"), flag(e.serving, "S"), flag(e.terminating, "T"));
        format!("{}:{} {flags}", e.address, ports.join(","))
    };
    endpoints(index).iter().map(show).collect()
}

/// `field: message` of every condition.
pub(crate) fn wrong(index: &Index) -> Vec<String> {
    index.conditions().map(|c| format!("{}: {}: {}", c.object, c.field, c.message)).collect()
}
