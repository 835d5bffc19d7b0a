//! What the listeners count besides each Service port's own numbers.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// One protocol's numbers.
#[derive(Clone, Debug)]
pub(crate) struct ProtocolMetrics {
    /// Connections accepted (TCP), client flows begun (UDP).
    pub(crate) accepts: IntCounter,
    /// Of those, how many are open.
    pub(crate) active: IntGauge,
    /// Turned away because a bound was reached.
    pub(crate) limited: IntCounter,
    /// For an address and port that is no frontend.
    pub(crate) unknown: IntCounter,
}

/// The handles, made once.
#[derive(Clone, Debug)]
pub(crate) struct ListenerMetrics {
    /// TCP.
    pub(crate) tcp: ProtocolMetrics,
    /// UDP.
    pub(crate) udp: ProtocolMetrics,
    /// Sessions in the table.
    pub(crate) udp_sessions: IntGauge,
    /// Sessions that the table has room for.
    pub(crate) udp_capacity: IntGauge,
    /// Replies to UDP clients that could not be sent.
    pub(crate) udp_lost: IntCounter,
    /// Pipes that splicing connections hold right now.
    pub(crate) pipes: IntGauge,
    /// Transactions that the kernel refused.
    pub(crate) table_errors: IntCounter,
    /// Elements in each of our sets.
    pub(crate) table_elements: IntGaugeVec,
}

impl ListenerMetrics {
    /// All of them, registered.
    ///
    /// # Errors
    /// Where the registry has one of these names already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counters =
            |name: &str, help: &str| registered(registry, IntCounterVec::new(Opts::new(name, help), &["protocol"])?);
        let gauges = |name: &str, help: &str, label: &str| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), &[label])?)
        };
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let accepts = counters(
            "sheave_listener_accepts_total",
            "Connections (TCP) and client flows (UDP) that the transparent listeners took.",
        )?;
        let active = gauges("sheave_listener_active", "Of those, how many are open.", "protocol")?;
        let limited = counters(
            "sheave_listener_limited_total",
            "Connections and flows turned away because descriptors or the session table ran out.",
        )?;
        let unknown = counters(
            "sheave_listener_unknown_total",
            "Connections and datagrams that reached a listener for an address that is no frontend (any more).",
        )?;
        let of = |protocol: &str| ProtocolMetrics {
            accepts: accepts.with_label_values(&[protocol]),
            active: active.with_label_values(&[protocol]),
            limited: limited.with_label_values(&[protocol]),
            unknown: unknown.with_label_values(&[protocol]),
        };
        Ok(Self {
            tcp: of("TCP"),
            udp: of("UDP"),
            udp_sessions: gauge("sheave_udp_sessions", "UDP sessions of the userspace path.")?,
            udp_capacity: gauge("sheave_udp_sessions_capacity", "UDP sessions that the table has room for.")?,
            udp_lost: registered(
                registry,
                IntCounter::new(
                    "sheave_udp_replies_lost_total",
                    "Replies to UDP clients that the kernel did not take: no room, no route, or dropped by a firewall.",
                )?,
            )?,
            pipes: gauge("sheave_listener_pipes", "Pipes that TCP connections hold while bytes are in flight.")?,
            table_errors: registered(
                registry,
                IntCounter::new(
                    "sheave_nftables_errors_total",
                    "Changes of the nftables table or of routing rules that the kernel refused; each is tried again.",
                )?,
            )?,
            table_elements: gauges("sheave_nftables_elements", "Elements of a set of the nftables table.", "set")?,
        })
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
