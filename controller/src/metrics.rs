//! What the controller counts. One registry, owned; labels are bounded by the kinds of objects and the names of tasks.

use prometheus::core::Collector;
use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use sheave_index::Kind;

/// Every metric of the controller.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Objects held, by kind.
    pub(crate) objects: IntGaugeVec,
    /// What was newly found wrong with objects, by kind: a line of the log each.
    pub(crate) objects_rejected: IntCounterVec,
    /// Conditions that leave something of an object out, as long as they last, by kind.
    pub(crate) object_faults: IntGaugeVec,
    /// Lists and watches that failed, by kind.
    pub(crate) watch_errors: IntCounterVec,
    /// Lists after the first, by kind: the watch's history was gone (410), the server went back, or a proxy held something newer.
    pub(crate) relists: IntCounterVec,
    /// Proxies with a stream.
    pub(crate) subscribers: IntGauge,
    /// Streams that were refused or cut, by reason.
    pub(crate) streams_refused: IntCounterVec,
    /// Resources in the catalog.
    pub(crate) catalog_resources: IntGauge,
    /// Changes of the catalog since the start.
    pub(crate) catalog_revision: IntGauge,
    /// Resources that wait to be sent to the slowest subscriber.
    pub(crate) queue_depth: IntGauge,
    /// Seconds since the source was last heard from about the kind that is quiet longest.
    pub(crate) view_age: Gauge,
    /// Resources that are too large to be sent.
    pub(crate) resources_oversized: IntCounter,
    /// Updates that proxies acknowledged.
    pub(crate) acks: IntCounter,
    /// Resources that proxies refused.
    pub(crate) nacks: IntCounter,
    /// 1 on the replica that may write.
    pub(crate) leader: IntGauge,
    /// Tokens looked at, by what came of it.
    pub(crate) token_reviews: IntCounterVec,
    /// Answers about tokens that are remembered.
    pub(crate) token_cache_entries: IntGauge,
    /// Calls of operators, by call and by what came of it.
    pub(crate) operator_calls: IntCounterVec,
    /// Operators' questions to proxies, by what came of it.
    pub(crate) relayed_questions: IntCounterVec,
    /// TLS handshakes of proxies that failed.
    pub(crate) handshakes_failed: IntCounter,
    /// Looks at discovery's objects at the API server that could not do everything.
    pub(crate) trust_errors: IntCounter,
    /// When the CA that signs ends, in seconds since 1970.
    pub(crate) ca_expiry: IntGauge,
    /// Nodes that a CA which is being introduced waits for; shown by the leader.
    pub(crate) ca_unacknowledged: IntGauge,
    /// Panics of background tasks, by task.
    pub(crate) task_panics: IntCounterVec,
}

impl Metrics {
    /// All of them at zero, the labels that are known in advance with them.
    pub(crate) fn new() -> Self {
        let r = Registry::new();
        let metrics = Self {
            objects: gauges(&r, "sheave_objects", "Objects held.", "kind"),
            objects_rejected: counters(
                &r,
                "sheave_objects_rejected_total",
                "What was newly found wrong with objects.",
                "kind",
            ),
            object_faults: gauges(&r, "sheave_object_faults", "What is left out of objects now.", "kind"),
            watch_errors: counters(&r, "sheave_watch_errors_total", "Lists and watches that failed.", "kind"),
            relists: counters(&r, "sheave_relists_total", "Lists after the first.", "kind"),
            subscribers: gauge(&r, "sheave_subscribers", "Proxies with a stream."),
            streams_refused: counters(&r, "sheave_streams_refused_total", "Streams refused or cut.", "reason"),
            catalog_resources: gauge(&r, "sheave_catalog_resources", "Resources in the catalog."),
            catalog_revision: gauge(&r, "sheave_catalog_revision", "Changes of the catalog since the start."),
            queue_depth: gauge(&r, "sheave_queue_depth", "Resources that wait for the slowest subscriber."),
            view_age: add(
                &r,
                Gauge::new(
                    "sheave_view_age_seconds",
                    "Time since the source was last heard from about the kind that is quiet longest.",
                ),
            ),
            resources_oversized: counter(&r, "sheave_resources_oversized_total", "Resources too large to be sent."),
            acks: counter(&r, "sheave_acks_total", "Updates that proxies acknowledged."),
            nacks: counter(&r, "sheave_nacks_total", "Resources that proxies refused."),
            leader: gauge(&r, "sheave_leader", "1 on the replica that may write."),
            token_reviews: counters(&r, "sheave_token_reviews_total", "Tokens of proxies looked at.", "result"),
            token_cache_entries: gauge(&r, "sheave_token_cache_entries", "Answers about tokens that are remembered."),
            operator_calls: add(
                &r,
                IntCounterVec::new(
                    Opts::new("sheave_operator_calls_total", "Calls of operators."),
                    &["call", "result"],
                ),
            ),
            relayed_questions: counters(
                &r,
                "sheave_relayed_questions_total",
                "Operators' questions to proxies.",
                "result",
            ),
            handshakes_failed: counter(&r, "sheave_tls_handshakes_failed_total", "TLS handshakes that failed."),
            trust_errors: counter(
                &r,
                "sheave_trust_errors_total",
                "Looks at discovery's Secret, ConfigMap and Leases that could not do everything.",
            ),
            ca_expiry: gauge(&r, "sheave_ca_expiry_timestamp_seconds", "When the CA that signs ends."),
            ca_unacknowledged: gauge(
                &r,
                "sheave_ca_unacknowledged_nodes",
                "Nodes that a CA which is being introduced waits for.",
            ),
            task_panics: counters(&r, "sheave_task_panics_total", "Panics of background tasks.", "task"),
            registry: r,
        };
        for kind in Kind::ALL {
            metrics.objects.with_label_values(&[kind.as_str()]);
            metrics.object_faults.with_label_values(&[kind.as_str()]);
            for family in [&metrics.objects_rejected, &metrics.watch_errors, &metrics.relists] {
                family.with_label_values(&[kind.as_str()]);
            }
        }
        for result in ["accepted", "refused", "cached", "kept", "failed"] {
            metrics.token_reviews.with_label_values(&[result]);
        }
        for result in ["answered", "failed", "late"] {
            metrics.relayed_questions.with_label_values(&[result]);
        }
        metrics
    }

    /// Prometheus text. Empty only if a metric can't be written, which its constructor rules out.
    pub(crate) fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("metric names are valid, because they are constants");
    registry.register(Box::new(metric.clone())).expect("metric names are unique, because each is added once");
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    add(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    add(registry, IntCounter::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_shown_from_the_start() {
        let metrics = Metrics::new();
        metrics.nacks.inc();
        let text = metrics.text();
        assert!(text.contains("sheave_nacks_total 1\n"), "{text}");
        assert!(text.contains("sheave_watch_errors_total{kind=\"ServiceCIDR\"} 0\n"), "{text}");
        assert!(text.contains("sheave_leader 0\n"), "{text}");
    }
}
