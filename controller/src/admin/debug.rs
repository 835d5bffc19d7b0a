//! The /debug pages, as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sheave_api::decode_resource;
use sheave_index::{Condition, Kind, ObjectKey};
use sheave_model::{NodeFacts, Resource, ResourceKey, Service, claims};
use tokio::sync::mpsc;

use crate::engine::{self, Question};
use crate::publish::Publisher;
use crate::serve::Nodes;

/// The catalog: every resource with its hash and size, the view it was computed from, and who receives it.
pub(super) fn snapshot(publisher: &Publisher, nodes: &Nodes) -> Value {
    let ready = publisher.is_ready();
    let (shelf, view, age) = publisher.read(|catalog, view, age| (catalog.shelf(), view.clone(), age));
    let resource = |(key, encoded, revision): (&ResourceKey, &sheave_api::Encoded, u64)| {
        json!({
            "name": key.to_string(),
            "hash": format!("{:?}", encoded.hash),
            "bytes": encoded.bytes.len(),
            "revision": revision,
        })
    };
    json!({
        "ready": ready,
        "source": view.source,
        "versions": view.versions,
        "age_milliseconds": u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        "revision": shelf.revision(),
        "resources": shelf.iter().map(resource).collect::<Value>(),
        "nodes": nodes.to_json(),
    })
}

/// Every Service with its frontends, endpoints and what is wrong with it; what is wrong elsewhere beside it. `None` while no
/// source is being read, or when the index task has no time to answer.
pub(super) async fn services(publisher: &Publisher, questions: &mpsc::Sender<Question>) -> Option<Value> {
    let wrong = engine::wrong(questions).await?;
    let mut of: BTreeMap<ObjectKey, Vec<Value>> = BTreeMap::new();
    for condition in &wrong.conditions {
        of.entry(condition.object.clone()).or_default().push(condition_json(condition));
    }
    let shelf = publisher.read(|catalog, _, _| catalog.shelf());
    let mut services = Vec::new();
    for (key, encoded, _) in shelf.iter().filter(|(key, ..)| matches!(key, ResourceKey::Service(_))) {
        let Ok(Resource::Service(service)) = decode_resource(key, encoded.bytes.clone()) else { continue };
        let object = ObjectKey::new(Kind::Service, service.key.namespace.clone(), service.key.name.clone());
        services.push(service_json(&service, &of.remove(&object).unwrap_or_default()));
    }
    let others: Vec<Value> = of.into_values().flatten().collect();
    Some(json!({ "services": services, "conditions": others, "problems": wrong.problems }))
}

fn service_json(service: &Service, conditions: &[Value]) -> Value {
    let frontends = claims(service, &NodeFacts::default());
    let frontends: Vec<String> = frontends.iter().map(|c| format!("{} {}", c.frontend, c.kind)).collect();
    let count = |test: fn(&sheave_model::Endpoint) -> bool| service.endpoints.iter().filter(|e| test(e)).count();
    json!({
        "namespace": &*service.key.namespace,
        "name": &*service.key.name,
        "frontends": frontends,
        "ports": service.ports.iter().map(|p| json!({
            "name": &*p.name,
            "protocol": p.protocol.to_string(),
            "port": p.port,
            "node_port": p.node_port,
        })).collect::<Value>(),
        "endpoints": service.endpoints.len(),
        "ready": count(|e| e.ready),
        "terminating": count(|e| e.terminating),
        "conditions": conditions,
    })
}

fn condition_json(condition: &Condition) -> Value {
    json!({
        "object": condition.object.to_string(),
        "field": condition.field,
        "message": condition.message,
        "remedy": condition.remedy,
    })
}
