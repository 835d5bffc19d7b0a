//! Every number this proxy shows, in one registry that it owns. docs/metrics.md lists the names.
//!
//! Handles are made once and passed to who counts; there are no statics. Numbers that live elsewhere (kernel maps, ages)
//! are written into their gauges by `admin` just before a page is made.

pub(crate) mod compat;
mod service;

use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

pub(crate) use compat::{Compat, Page};
pub(crate) use service::{Direction, Path, PortCounters, Reason, ServiceMetrics};

/// From a controller seeing a change to the data paths having it: 100 us to 60 s, about three steps to a decade.
const PROGRAMMING_BUCKETS: [f64; 19] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
    60.0,
];

/// The registry and the handles of what this program counts itself.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Per Service port, bounded.
    pub(crate) services: Arc<ServiceMetrics>,
    /// Seconds since a controller last confirmed the snapshot.
    pub(crate) snapshot_age: Gauge,
    /// 1 while the snapshot comes from a disk of another boot or namespace and no controller has confirmed it.
    pub(crate) snapshot_stale: IntGauge,
    /// Revision of the newest snapshot.
    pub(crate) revision_received: IntGauge,
    /// Revision that every data path has.
    pub(crate) revision_applied: IntGauge,
    /// From observed to programmed, in seconds.
    pub(crate) programming_latency: Histogram,
    /// 1 while a stream to a controller is up.
    pub(crate) stream_connected: IntGauge,
    /// Streams that ended and were opened anew.
    pub(crate) stream_reconnects: IntCounter,
    /// Updates refused because they would have gone back in time.
    pub(crate) stream_refused: IntCounter,
    /// Replicas of the controller whose address is known.
    pub(crate) controllers_known: IntGauge,
    /// Updates whose acknowledgement waits for the data paths.
    pub(crate) acks_pending: IntGauge,
    /// Resources refused.
    pub(crate) nacks: IntCounter,
    /// Questions of operators that came by a stream, by `result`.
    pub(crate) operator_questions: IntCounterVec,
    /// By `mode` and `reason`: always 1.
    pub(crate) datapath_info: IntGaugeVec,
    /// By `task`.
    pub(crate) task_panics: IntCounterVec,
    /// Passes that could not write all of a snapshot into the kernel's maps.
    pub(crate) reconcile_errors: IntCounter,
    /// By `family` and `protocol`.
    pub(crate) hook_translations: IntCounterVec,
    /// Connections that the hook refused for lack of an endpoint.
    pub(crate) hook_refused: IntCounter,
    /// Calls that the hook left to the packet path, by `reason`.
    pub(crate) hook_passed: IntCounterVec,
    /// By `map`.
    pub(crate) map_entries: IntGaugeVec,
    /// By `map`.
    pub(crate) map_capacity: IntGaugeVec,
    /// Snapshots and directories that could not be written to disk.
    pub(crate) disk_errors: IntCounter,
    /// Frontends that more than one Service claims.
    pub(crate) frontends_shadowed: IntGauge,
    /// kube-proxy's names, where they are asked for.
    pub(crate) compat: Option<Arc<Compat>>,
}

impl Metrics {
    /// All of our own.
    ///
    /// # Errors
    /// As [`Metrics::with`].
    #[cfg(test)]
    pub(crate) fn new() -> prometheus::Result<Self> {
        Self::with(false)
    }

    /// All of them, registered; kube-proxy's where they are asked for.
    ///
    /// # Errors
    /// None in practice: only if two had one name.
    pub(crate) fn with(compat: bool) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let services = ServiceMetrics::new(service::LIMIT);
        registry.register(Box::new(service::ServiceCollector::new(services.clone())?))?;
        let gauge = |name: &str, help: &str| registered(&registry, IntGauge::new(name, help)?);
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help)?);
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let latency = HistogramOpts::new(
            "sheave_programming_latency_seconds",
            "From the controller seeing a change to every data path of this node having it.",
        );
        let hook_translations = counters(
            "sheave_hook_translations_total",
            "Destinations that the socket hook replaced by a backend.",
            &["family", "protocol"],
        )?;
        // From the start, so that 0 is shown where nothing is attached.
        for (family, protocol) in [("ipv4", "TCP"), ("ipv6", "TCP"), ("ipv4", "UDP"), ("ipv6", "UDP")] {
            hook_translations.with_label_values(&[family, protocol]);
        }
        Ok(Self {
            services,
            hook_translations,
            snapshot_age: registered(
                &registry,
                Gauge::new("sheave_snapshot_age_seconds", "Since a controller last confirmed the snapshot.")?,
            )?,
            snapshot_stale: gauge(
                "sheave_snapshot_stale",
                "1 while what is served comes from the disk of another boot or network namespace.",
            )?,
            revision_received: gauge("sheave_revision_received", "Revision of the newest snapshot.")?,
            revision_applied: gauge("sheave_revision_applied", "Revision that every data path has.")?,
            programming_latency: registered(
                &registry,
                Histogram::with_opts(latency.buckets(PROGRAMMING_BUCKETS.to_vec()))?,
            )?,
            stream_connected: gauge("sheave_stream_connected", "1 while a stream to a controller is up.")?,
            stream_reconnects: counter("sheave_stream_reconnects_total", "Streams that ended and were opened anew.")?,
            stream_refused: counter(
                "sheave_stream_refused_total",
                "Updates refused because the controller's view was older than this proxy's.",
            )?,
            controllers_known: gauge(
                "sheave_controllers_known",
                "Addresses of the controller's replicas that are known from flags, ConfigMap and streams.",
            )?,
            acks_pending: gauge("sheave_acks_pending", "Updates that are applied once the data paths have them.")?,
            nacks: counter("sheave_nacks_total", "Resources that this proxy refused; the log says why.")?,
            operator_questions: counters(
                "sheave_operator_questions_total",
                "Questions of operators that came by a controller's stream.",
                &["result"],
            )?,
            datapath_info: gauges(
                "sheave_datapath_info",
                "Always 1: the data path that was chosen, and why.",
                &["mode", "reason"],
            )?,
            task_panics: counters("sheave_task_panics_total", "Panics of supervised tasks.", &["task"])?,
            reconcile_errors: counter(
                "sheave_reconcile_errors_total",
                "Passes that could not write all of a snapshot into the kernel's maps; each is tried again.",
            )?,
            hook_refused: counter("sheave_hook_refused_total", "Connections the socket hook refused: no endpoint.")?,
            hook_passed: counters(
                "sheave_hook_passed_total",
                "Calls to a frontend that the socket hook left to the packet path.",
                &["reason"],
            )?,
            map_entries: gauges("sheave_map_entries", "Entries of a kernel map.", &["map"])?,
            map_capacity: gauges("sheave_map_capacity", "Entries that a kernel map has room for.", &["map"])?,
            disk_errors: counter(
                "sheave_disk_errors_total",
                "Snapshots and lists of replicas that could not be written to disk.",
            )?,
            frontends_shadowed: gauge("sheave_frontends_shadowed", "Claims on frontends that another Service keeps.")?,
            compat: if compat { Some(Arc::new(Compat::new(&registry)?)) } else { None },
            registry,
        })
    }

    /// Where other parts of this program register theirs.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Every number as it is now.
    pub(crate) fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.registry.gather()
    }

    /// The page in Prometheus' text format.
    ///
    /// # Errors
    /// Where a metric can't be written as text.
    pub(crate) fn page(&self) -> prometheus::Result<Vec<u8>> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.gather(), &mut page)?;
        Ok(page)
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_was_counted() {
        let metrics = Metrics::new().unwrap();
        metrics.nacks.inc();
        metrics.datapath_info.with_label_values(&["userspace", "asked for"]).set(1);
        metrics.programming_latency.observe(0.0003);
        let page = String::from_utf8(metrics.page().unwrap()).unwrap();
        for line in [
            "sheave_nacks_total 1",
            "sheave_datapath_info{mode=\"userspace\",reason=\"asked for\"} 1",
            "sheave_programming_latency_seconds_bucket{le=\"0.0005\"} 1",
            "sheave_programming_latency_seconds_bucket{le=\"60\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not on the page:\n{page}");
        }
    }
}
