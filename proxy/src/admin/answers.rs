//! Answers to operators' questions about this node: the same by way of a controller's stream and on the unix socket.
//!
//! They are made part by part while somebody takes them, so that a large cluster's answer is never in memory as a whole.

use std::collections::HashSet;
use std::net::SocketAddr;

use prometheus::proto::MetricFamily;
use prost::Message;
use sheave_api::proto::node_question::What;
use sheave_api::proto::{
    Count, MapFill, NodeAnswer, NodeQuestion, NodeStatus, Refused, ServedEndpoint, ServedFrontend, ServedService,
    ServiceFilter,
};
use sheave_api::{MAX_ANSWER_BYTES, MAX_PART_BYTES, hash_to_bytes};
use sheave_model::{Claim, Endpoint, ServiceState, Snapshot, claims};

use super::Admin;
use crate::status::{Source, unix_nanos};

/// An answer's parts, in order.
pub(crate) type AnswerParts = Box<dyn Iterator<Item = NodeAnswer> + Send>;

/// Metrics that count what went wrong.
const ERRORS: [&str; 7] = [
    "sheave_reconcile_errors_total",
    "sheave_nftables_errors_total",
    "sheave_listener_limited_total",
    "sheave_disk_errors_total",
    "sheave_nacks_total",
    "sheave_stream_refused_total",
    "sheave_task_panics_total",
];

/// Answers a question.
pub(crate) async fn answer(admin: &Admin, question: &NodeQuestion) -> AnswerParts {
    match &question.what {
        Some(What::Status(_)) => {
            let status = Some(status(admin).await);
            Box::new(std::iter::once(NodeAnswer { status, ..NodeAnswer::default() }))
        }
        Some(What::Services(filter)) => services(&admin.snapshot(), filter),
        None => {
            let error = "this proxy's version doesn't know the question".to_owned();
            Box::new(std::iter::once(NodeAnswer { error, ..NodeAnswer::default() }))
        }
    }
}

async fn status(admin: &Admin) -> NodeStatus {
    admin.refresh().await;
    let (state, report, snapshot) = (admin.status.get(), admin.freshness.report(), admin.snapshot());
    let (datapath, reason) = state.datapath.clone().unwrap_or_default();
    let families = admin.metrics.gather();
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    NodeStatus {
        node: admin.config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        not_ready: state.not_ready(report.applied).unwrap_or_default(),
        datapath: datapath.to_owned(),
        reason,
        snapshot: match state.source {
            Source::Nothing => "none",
            Source::Disk => "disk",
            Source::StaleDisk => "stale",
            Source::Controller => "controller",
        }
        .to_owned(),
        age_millis: state.age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        controller: state.controller.clone().unwrap_or_default(),
        received: report.received,
        applied: report.applied,
        lagging_millis: u64::try_from(report.lagging.as_millis()).unwrap_or(u64::MAX),
        services: count(snapshot.services.len()),
        frontends: count(snapshot.frontends.len()),
        shadowed: count(snapshot.shadowed()),
        maps: maps(&families),
        refused: state.refused.into_iter().map(|(resource, reason)| Refused { resource, reason }).collect(),
        errors: ERRORS.iter().filter_map(|name| errors(&families, name)).collect(),
        unix_millis: unix_nanos() / 1_000_000,
    }
}

/// The value of each map in a metric.
fn by_map<'a>(families: &'a [MetricFamily], name: &'a str) -> impl Iterator<Item = (&'a str, u64)> {
    let family = families.iter().filter(move |family| family.name() == name);
    family.flat_map(MetricFamily::get_metric).filter_map(|metric| {
        let label = metric.get_label().iter().find(|label| label.name() == "map")?;
        Some((label.value(), metric.get_gauge().get_value() as u64))
    })
}

fn maps(families: &[MetricFamily]) -> Vec<MapFill> {
    let entries = |map| by_map(families, "sheave_map_entries").find(|(name, _)| *name == map).map_or(0, |(_, n)| n);
    let all = by_map(families, "sheave_map_capacity");
    all.map(|(map, capacity)| MapFill { name: map.to_owned(), entries: entries(map), capacity }).collect()
}

/// A counter's sum over its labels; nothing where it has counted nothing.
fn errors(families: &[MetricFamily], name: &str) -> Option<Count> {
    let metrics = families.iter().filter(|family| family.name() == name).flat_map(MetricFamily::get_metric);
    let value = metrics.map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64;
    (value > 0).then(|| Count { name: name.to_owned(), value })
}

/// Services that the filter names, several to a part.
fn services(snapshot: &Snapshot, filter: &ServiceFilter) -> AnswerParts {
    let (filter, snapshot) = (filter.clone(), snapshot.clone());
    let mut states = snapshot.services.clone().into_iter().filter(move |(key, _)| {
        (filter.namespace.is_empty() || *key.namespace == *filter.namespace)
            && (filter.name.is_empty() || *key.name == *filter.name)
    });
    let (mut whole, mut over) = (0, false);
    Box::new(std::iter::from_fn(move || {
        let (mut part, mut size) = (NodeAnswer::default(), 0);
        while size < MAX_PART_BYTES && !over {
            let Some((_, state)) = states.next() else { break };
            let service = served(&state, &snapshot);
            size += service.encoded_len();
            whole += service.encoded_len();
            over = whole > MAX_ANSWER_BYTES;
            if over {
                part.error = format!("the rest is left out, because an answer has at most {MAX_ANSWER_BYTES} bytes");
                return Some(part);
            }
            part.services.push(service);
        }
        (!part.services.is_empty()).then_some(part)
    }))
}

fn served(state: &ServiceState, snapshot: &Snapshot) -> ServedService {
    let service = &state.service;
    let facts = snapshot.node.as_ref().map(|(_, node)| node.clone()).unwrap_or_default();
    let frontends = claims(service, &facts);
    // By port; looking through a list for each endpoint would take minutes where there are many.
    let backends: Vec<HashSet<SocketAddr>> =
        state.backends.iter().map(|port| port.v4.iter().chain(&*port.v6).copied().collect()).collect();
    ServedService {
        namespace: service.key.namespace.to_string(),
        name: service.key.name.to_string(),
        hash: hash_to_bytes(state.hash),
        frontends: frontends.iter().map(|claim| frontend(claim, state, snapshot)).collect(),
        endpoints: service.endpoints.iter().map(|one| endpoint(one, &backends)).collect(),
    }
}

fn frontend(claim: &Claim, state: &ServiceState, snapshot: &Snapshot) -> ServedFrontend {
    let backends = state.backends.get(claim.port).map_or(0, |port| port.of(claim.frontend.address.ip()).len());
    let keeper = snapshot.frontends.get(&claim.frontend);
    let other = keeper.filter(|route| route.service != claim.service || route.port != claim.port);
    let port = state.service.ports.get(claim.port);
    ServedFrontend {
        address: claim.frontend.to_string(),
        kind: claim.kind.to_string(),
        port: port.map(|port| port.name.to_string()).unwrap_or_default(),
        backends: u32::try_from(backends).unwrap_or(u32::MAX),
        kept_by: other.map(|route| route.service.to_string()).unwrap_or_default(),
    }
}

fn endpoint(endpoint: &Endpoint, backends: &[HashSet<SocketAddr>]) -> ServedEndpoint {
    let takes = |(index, backends): (usize, &HashSet<SocketAddr>)| {
        endpoint.socket(index).is_some_and(|socket| backends.contains(&socket))
    };
    let used = backends.iter().enumerate().any(takes);
    let name = |name: &Option<std::sync::Arc<str>>| name.as_deref().unwrap_or_default().to_owned();
    ServedEndpoint {
        address: endpoint.address.to_string(),
        ports: endpoint.ports.iter().copied().map(u32::from).collect(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        node: name(&endpoint.node),
        zone: name(&endpoint.zone),
        used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::{admin, snapshots};
    use crate::store::tests::service;
    use sheave_api::proto::NodeStatusWanted;

    fn wanted(namespace: &str, name: &str) -> NodeQuestion {
        let filter = ServiceFilter { namespace: namespace.to_owned(), name: name.to_owned() };
        NodeQuestion { node: String::new(), what: Some(What::Services(filter)) }
    }

    #[tokio::test]
    async fn services_are_found_by_name_and_shown_with_who_keeps_a_frontend() {
        let admin = admin();
        admin.own(snapshots(vec![service("a", "10.0.0.1"), service("b", "10.0.0.1")]), Vec::new());
        let parts: Vec<_> = answer(&admin, &wanted("ns", "b")).await.collect();
        let [part] = parts.as_slice() else { panic!("{parts:?}") };
        let [b] = part.services.as_slice() else { panic!("{part:?}") };
        assert_eq!((b.frontends[0].address.as_str(), b.frontends[0].kept_by.as_str()), ("10.0.0.1:80/TCP", "ns/a"));
        assert!(b.endpoints[0].used && b.endpoints[0].ready, "{b:?}");
        assert_eq!(answer(&admin, &wanted("ns", "c")).await.count(), 0);
        assert_eq!(answer(&admin, &wanted("", "")).await.map(|part| part.services.len()).sum::<usize>(), 2);
    }

    #[tokio::test]
    async fn a_large_answer_comes_in_parts_that_merge_and_ends_at_the_bound() {
        let admin = admin();
        let many = |endpoints: usize| {
            let mut large = service("large", "10.0.0.1");
            let one = large.endpoints[0].clone();
            large.endpoints = (0..endpoints as u32)
                .map(|n| Endpoint { address: std::net::Ipv4Addr::from(0x0a01_0000 + n).into(), ..one.clone() })
                .collect();
            large
        };
        let services = (0..40).map(|n| {
            let mut service = many(20_000);
            service.key = sheave_model::ServiceKey::new("ns", format!("s{n:02}"));
            service
        });
        admin.own(snapshots(services.collect()), Vec::new());
        let parts: Vec<_> = answer(&admin, &wanted("", "")).await.collect();
        let bytes: Vec<u8> = parts.iter().flat_map(Message::encode_to_vec).collect();
        let whole = NodeAnswer::decode(bytes.as_slice()).unwrap();
        assert!(parts.len() > 10 && bytes.len() <= MAX_ANSWER_BYTES + MAX_PART_BYTES, "{} parts", parts.len());
        assert!(whole.error.contains("left out") && whole.services.len() < 40, "{} services", whole.services.len());
    }

    #[tokio::test]
    async fn the_status_says_why_a_node_is_not_ready_and_what_went_wrong() {
        let admin = admin();
        admin.metrics.nacks.inc();
        admin.metrics.map_capacity.with_label_values(&["frontends"]).set(10);
        admin.metrics.map_entries.with_label_values(&["frontends"]).set(9);
        let question = NodeQuestion { node: String::new(), what: Some(What::Status(NodeStatusWanted {})) };
        let status = answer(&admin, &question).await.next().unwrap().status.unwrap();
        assert_eq!((status.not_ready.as_str(), status.snapshot.as_str()), ("starting", "none"));
        assert_eq!(status.maps, [MapFill { name: "frontends".to_owned(), entries: 9, capacity: 10 }]);
        assert_eq!(status.errors, [Count { name: "sheave_nacks_total".to_owned(), value: 1 }]);
        let unknown = answer(&admin, &NodeQuestion::default()).await.next().unwrap();
        assert!(unknown.error.contains("version"), "{unknown:?}");
    }
}
