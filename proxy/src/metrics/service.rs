//! Counters per Service port, of a bounded number of ports: what the listeners and the socket hook carried for each.
//!
//! The forwarding path holds an `Arc<PortCounters>` for as long as a connection lasts and only adds to atomics. Label
//! strings are made when somebody scrapes, so an idle port costs its counters and no text.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Counter, LabelPair, Metric, MetricFamily, MetricType};
use sheave_model::{Protocol, ServiceKey, Snapshot};

/// Service ports with labels of their own. What comes beyond is counted together under service="other", so that a
/// cluster of any size makes a page that Prometheus reads in one go (at most 12 series per port).
pub(crate) const LIMIT: usize = 1024;

/// Who carried a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// The socket hook translated it.
    Hook,
    /// A transparent listener accepted it.
    Listener,
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the client to the backend.
    In,
    /// From the backend to the client.
    Out,
}

/// Why a connection, a datagram or a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No endpoint takes new connections.
    NoEndpoint,
    /// Every backend tried answered with a reset or "port unreachable".
    Refused,
    /// No backend answered in time.
    Timeout,
    /// No backend could be reached for another reason: no route, no memory, no free port.
    Unreachable,
    /// The backend's leg of an established connection ended by an error.
    Broken,
    /// A bound was reached: descriptors, sessions, pipes.
    Limit,
}

impl Reason {
    const ALL: [Self; 6] =
        [Self::NoEndpoint, Self::Refused, Self::Timeout, Self::Unreachable, Self::Broken, Self::Limit];

    const fn label(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Limit => "limit",
        }
    }
}

/// What was carried for one Service port. All relaxed: the numbers order nothing.
#[derive(Debug, Default)]
pub(crate) struct PortCounters {
    connections: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    errors: [AtomicU64; Reason::ALL.len()],
}

impl PortCounters {
    /// Counts new connections (TCP), client sockets (UDP) or requests' connections (HTTP).
    pub(crate) fn connections(&self, path: Path, count: u64) {
        self.connections[path as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Counts payload bytes.
    pub(crate) fn bytes(&self, direction: Direction, count: u64) {
        self.bytes[direction as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Counts one that was not served.
    pub(crate) fn error(&self, reason: Reason) {
        self.errors[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Connections so far.
    pub(crate) fn connections_total(&self, path: Path) -> u64 {
        self.connections[path as usize].load(Ordering::Relaxed)
    }

    /// Bytes so far.
    pub(crate) fn bytes_total(&self, direction: Direction) -> u64 {
        self.bytes[direction as usize].load(Ordering::Relaxed)
    }

    /// Errors so far, all reasons together.
    pub(crate) fn errors_total(&self) -> u64 {
        self.errors.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// A Service port by name, so that renumbering or reordering ports keeps their counters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PortId {
    service: ServiceKey,
    port: Arc<str>,
    protocol: Protocol,
}

/// The counters of every Service port that has carried something, up to [`LIMIT`] of them.
#[derive(Debug)]
pub(crate) struct ServiceMetrics {
    ports: RwLock<HashMap<PortId, Arc<PortCounters>>>,
    other: Arc<PortCounters>,
    limit: usize,
}

impl ServiceMetrics {
    /// With room for `limit` Service ports.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { ports: RwLock::default(), other: Arc::default(), limit })
    }

    /// The counters of a Service port: its own, or, where all are taken, the shared ones. Costs a hash and a read lock;
    /// keep the result for as long as the connection lasts.
    pub(crate) fn of(&self, service: &ServiceKey, port: &Arc<str>, protocol: Protocol) -> Arc<PortCounters> {
        let id = PortId { service: service.clone(), port: port.clone(), protocol };
        if let Some(counters) = self.get(&id) {
            return counters;
        }
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let room = ports.len() < self.limit;
        match ports.entry(id) {
            Entry::Occupied(entry) => entry.get().clone(),
            Entry::Vacant(entry) if room => entry.insert(Arc::default()).clone(),
            Entry::Vacant(_) => self.other.clone(),
        }
    }

    /// The counters of a Service port that has its own.
    pub(crate) fn existing(
        &self,
        service: &ServiceKey,
        port: &Arc<str>,
        protocol: Protocol,
    ) -> Option<Arc<PortCounters>> {
        self.get(&PortId { service: service.clone(), port: port.clone(), protocol })
    }

    fn get(&self, id: &PortId) -> Option<Arc<PortCounters>> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Forgets the ports that no Service has any more, which makes room for others.
    pub(crate) fn retain(&self, snapshot: &Snapshot) {
        let exists = |id: &PortId| {
            let state = snapshot.services.get(&id.service);
            state.is_some_and(|s| s.service.ports.iter().any(|p| p.name == id.port && p.protocol == id.protocol))
        };
        self.ports.write().unwrap_or_else(PoisonError::into_inner).retain(|id, _| exists(id));
    }
}

/// Shows a [`ServiceMetrics`] to a registry. Series that are 0 are left out.
pub(crate) struct ServiceCollector {
    metrics: Arc<ServiceMetrics>,
    connections: Desc,
    bytes: Desc,
    errors: Desc,
}

impl ServiceCollector {
    /// A collector of `metrics`.
    pub(crate) fn new(metrics: Arc<ServiceMetrics>) -> prometheus::Result<Self> {
        let desc = |name: &str, help: &str, last: &str| {
            let labels = ["namespace", "service", "port", "protocol", last].map(str::to_owned);
            Desc::new(name.to_owned(), help.to_owned(), labels.to_vec(), HashMap::new())
        };
        Ok(Self {
            metrics,
            connections: desc(
                "sheave_service_connections_total",
                "New connections (TCP) and client flows (UDP) of a Service port, by who carried them.",
                "path",
            )?,
            bytes: desc(
                "sheave_service_bytes_total",
                "Payload bytes that a listener carried for a Service port: in is towards the backend.",
                "direction",
            )?,
            errors: desc(
                "sheave_service_errors_total",
                "Connections, flows and requests of a Service port that a listener could not serve.",
                "reason",
            )?,
        })
    }
}

impl Collector for ServiceCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.connections, &self.bytes, &self.errors]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.desc().into_iter().map(family).collect::<Vec<_>>();
        let mut add = |index: usize, id: Option<&PortId>, last: &str, value: u64| {
            if value > 0 {
                families[index].mut_metric().push(metric(
                    id,
                    [&self.connections, &self.bytes, &self.errors][index],
                    last,
                    value,
                ));
            }
        };
        let mut add_port = |id: Option<&PortId>, counters: &PortCounters| {
            for (path, label) in [(Path::Hook, "hook"), (Path::Listener, "listener")] {
                add(0, id, label, counters.connections_total(path));
            }
            for (direction, label) in [(Direction::In, "in"), (Direction::Out, "out")] {
                add(1, id, label, counters.bytes_total(direction));
            }
            for reason in Reason::ALL {
                add(2, id, reason.label(), counters.errors[reason as usize].load(Ordering::Relaxed));
            }
        };
        let ports = self.metrics.ports.read().unwrap_or_else(PoisonError::into_inner);
        for (id, counters) in ports.iter() {
            add_port(Some(id), counters);
        }
        add_port(None, &self.metrics.other);
        families
    }
}

fn family(desc: &Desc) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(desc.fq_name.clone());
    family.set_help(desc.help.clone());
    family.set_field_type(MetricType::COUNTER);
    family
}

fn metric(id: Option<&PortId>, desc: &Desc, last: &str, value: u64) -> Metric {
    let values = match id {
        Some(id) => [
            id.service.namespace.to_string(),
            id.service.name.to_string(),
            id.port.to_string(),
            id.protocol.to_string(),
            last.to_owned(),
        ],
        None => ["", "other", "", "", last].map(str::to_owned),
    };
    let pair = |(name, value): (&String, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.clone());
        pair.set_value(value);
        pair
    };
    let mut metric = Metric::from_label(desc.variable_labels.iter().zip(values).map(pair).collect());
    let mut counter = Counter::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use sheave_model::Store;

    fn key(name: &str) -> ServiceKey {
        ServiceKey::new("ns", name)
    }

    fn series(metrics: &Arc<ServiceMetrics>) -> Vec<(String, Vec<String>, u64)> {
        let families = ServiceCollector::new(metrics.clone()).unwrap().collect();
        let mut out = Vec::new();
        for family in &families {
            for metric in family.get_metric() {
                let labels = metric.get_label().iter().map(|l| l.value().to_owned()).collect();
                out.push((family.name().to_owned(), labels, metric.get_counter().get_value() as u64));
            }
        }
        out
    }

    #[test]
    fn what_is_counted_is_shown_and_zeroes_are_not() {
        let metrics = ServiceMetrics::new(4);
        let counters = metrics.of(&key("a"), &"http".into(), Protocol::Tcp);
        counters.connections(Path::Listener, 2);
        counters.bytes(Direction::Out, 7);
        counters.error(Reason::Timeout);
        let labels = |last: &str| ["ns", "a", "http", "TCP", last].map(str::to_owned).to_vec();
        assert_eq!(
            series(&metrics),
            [
                ("sheave_service_connections_total".to_owned(), labels("listener"), 2),
                ("sheave_service_bytes_total".to_owned(), labels("out"), 7),
                ("sheave_service_errors_total".to_owned(), labels("timeout"), 1),
            ]
        );
    }

    #[test]
    fn beyond_the_limit_ports_share_one_series_until_room_is_made() {
        let metrics = ServiceMetrics::new(2);
        let port: Arc<str> = "".into();
        for name in ["a", "b", "c", "d"] {
            metrics.of(&key(name), &port, Protocol::Udp).connections(Path::Hook, 1);
        }
        let shown = series(&metrics);
        assert_eq!(shown.len(), 3);
        assert!(shown.iter().any(|(_, labels, count)| labels[1] == "other" && *count == 2));

        metrics.retain(Store::default().snapshot());
        assert!(metrics.existing(&key("a"), &port, Protocol::Udp).is_none());
        metrics.of(&key("c"), &port, Protocol::Udp).connections(Path::Hook, 1);
        assert_eq!(metrics.existing(&key("c"), &port, Protocol::Udp).unwrap().connections_total(Path::Hook), 1);
    }
}
