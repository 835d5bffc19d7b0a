//! kube-proxy's well-known metrics, by `--compat-metrics`, for dashboards and alerts that were made for it.
//!
//! Names, types, labels and buckets are those of kube-proxy 1.36 (pkg/proxy/metrics/metrics.go of k8s.io/kubernetes), as far as
//! they mean something here; docs/metrics.md says how ours relate and which are left out. kube-proxy programs each family by
//! itself, this proxy both in one pass, which is why both families then show the same.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets, linear_buckets,
};
use sheave_model::{Delta, Endpoint, Policy, Resource, ResourceKey, Service, ServicePort, Snapshot};
use tokio::sync::watch;
use tokio::time::Instant;

use super::registered;
use crate::status::unix_nanos;

/// Values of label `ip_family`.
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// Revisions whose changes are told apart while they wait for the data paths; beyond, the newest are taken together.
const WAITING_LIMIT: usize = 1024;

/// The handles, and what waits for the data paths.
#[derive(Debug)]
pub(crate) struct Compat {
    sync: [Histogram; 2],
    programming: [Histogram; 2],
    queued: GaugeVec,
    synced: GaugeVec,
    endpoints: Changes,
    services: Changes,
    no_local: IntGaugeVec,
    healthz: IntCounterVec,
    livez: IntCounterVec,
    waiting: Mutex<VecDeque<Waiting>>,
}

/// Changes seen, and those of them that a data path lacks.
#[derive(Debug)]
struct Changes {
    total: IntCounter,
    pending: IntGauge,
}

/// What came with a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waiting {
    revision: u64,
    endpoints: i64,
    services: i64,
}

/// Which health page was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// /healthz.
    Healthz,
    /// /livez.
    Livez,
}

impl Compat {
    /// All of them, registered.
    ///
    /// # Errors
    /// Where the registry has one of these names already.
    pub(crate) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histograms = |name: &str, help: &str, buckets: Vec<f64>| {
            let vec = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &["ip_family"])?;
            let vec = registered(registry, vec)?;
            Ok::<_, prometheus::Error>(FAMILIES.map(|family| vec.with_label_values(&[family])))
        };
        let times = |name: &str, help: &str| {
            let vec = registered(registry, GaugeVec::new(Opts::new(name, help), &["ip_family"])?)?;
            FAMILIES.iter().for_each(|family| drop(vec.with_label_values(&[family])));
            Ok::<_, prometheus::Error>(vec)
        };
        let codes = |name: &str, help: &str| {
            let vec = registered(registry, IntCounterVec::new(Opts::new(name, help), &["code"])?)?;
            ["200", "503"].iter().for_each(|code| drop(vec.with_label_values(&[code])));
            Ok::<_, prometheus::Error>(vec)
        };
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        Ok(Self {
            sync: histograms(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "From a snapshot being handed to the data paths to all of them having it.",
                exponential_buckets(0.001, 2.0, 15)?,
            )?,
            programming: histograms(
                "kubeproxy_network_programming_duration_seconds",
                "From the controller seeing a change to every data path of this node having it.",
                programming_buckets()?,
            )?,
            queued: times(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a snapshot was last handed to the data paths.",
            )?,
            synced: times(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the data paths last had all that they were handed.",
            )?,
            endpoints: Changes {
                total: counter(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                    "Changes of a Service's endpoints.",
                )?,
                pending: gauge(
                    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                    "Changes of a Service's endpoints that a data path lacks.",
                )?,
            },
            services: Changes {
                total: counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of a Service itself.")?,
                pending: gauge(
                    "kubeproxy_sync_proxy_rules_service_changes_pending",
                    "Changes of a Service itself that a data path lacks.",
                )?,
            },
            no_local: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new(
                        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                        "Service ports with policy Local and endpoints on other nodes only.",
                    ),
                    &["traffic_policy", "ip_family"],
                )?,
            )?,
            healthz: codes("kubeproxy_proxy_healthz_total", "Answers at /healthz of the health port.")?,
            livez: codes("kubeproxy_proxy_livez_total", "Answers at /livez of the health port.")?,
            waiting: Mutex::default(),
        })
    }

    /// What a delta changes of what the store holds. Counts nothing yet.
    pub(crate) fn compare(&self, before: &Snapshot, delta: &Delta) -> Pending {
        let mut found = Waiting::default();
        for key in &delta.removals {
            let ResourceKey::Service(key) = key else { continue };
            if let Some(old) = before.services.get(key) {
                found.services += 1;
                found.endpoints += i64::from(!old.service.endpoints.is_empty());
            }
        }
        for upsert in &delta.upserts {
            let Resource::Service(new) = &upsert.resource else { continue };
            let old = before.services.get(&new.key).map(|state| &state.service);
            found.endpoints += i64::from(old.map_or(&[][..], |old| &old.endpoints[..]) != &new.endpoints[..]);
            found.services += i64::from(old.is_none_or(|old| !same_but_endpoints(old, new)));
        }
        Pending(found)
    }

    /// Counts what was found to change, under the revision that has it.
    pub(crate) fn changed(&self, Pending(found): Pending, revision: u64) {
        if (found.endpoints, found.services) == (0, 0) {
            return;
        }
        self.endpoints.total.inc_by(found.endpoints.unsigned_abs());
        self.services.total.inc_by(found.services.unsigned_abs());
        self.endpoints.pending.add(found.endpoints);
        self.services.pending.add(found.services);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let full = waiting.len() >= WAITING_LIMIT;
        match waiting.back_mut().filter(|_| full) {
            Some(last) => {
                last.revision = revision;
                last.endpoints += found.endpoints;
                last.services += found.services;
            }
            None => waiting.push_back(Waiting { revision, ..found }),
        }
    }

    /// The data paths have everything up to a revision.
    fn programmed(&self, revision: u64) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(first) = waiting.front().copied().filter(|first| first.revision <= revision) {
            self.endpoints.pending.sub(first.endpoints);
            self.services.pending.sub(first.services);
            waiting.pop_front();
        }
    }

    /// A change that the controller saw so long ago is in every data path now.
    pub(crate) fn took(&self, time: Duration) {
        self.programming.iter().for_each(|family| family.observe(time.as_secs_f64()));
    }

    /// The health port has answered with this status.
    pub(crate) fn answered(&self, page: Page, code: u16) {
        let counted = if page == Page::Healthz { &self.healthz } else { &self.livez };
        counted.with_label_values(&[code.to_string().as_str()]).inc();
    }

    /// Counts anew what a snapshot says of this node; for whoever is about to show it.
    pub(crate) fn refresh(&self, snapshot: &Snapshot, node: &str) {
        for (family, v4) in FAMILIES.into_iter().zip([true, false]) {
            let services = || snapshot.services.values().map(|state| &state.service);
            let [internal, external] =
                [|it: &Service| it.internal_policy, |it: &Service| it.external_policy].map(|of| {
                    let local = services().filter(|service| of(service) == Policy::Local);
                    local.map(|service| elsewhere_only(service, node, v4)).sum::<usize>()
                });
            for (policy, count) in [("internal", internal), ("external", external)] {
                self.no_local.with_label_values(&[policy, family]).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Follows snapshots into the data paths until one of both ends. A round is from the first snapshot that they lack to
    /// their having it; what is published meanwhile belongs to the next.
    pub(crate) async fn follow(
        self: Arc<Self>,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut applied: watch::Receiver<u64>,
    ) {
        let now = |gauge: &GaugeVec| {
            let seconds = unix_nanos() as f64 / 1e9;
            FAMILIES.iter().for_each(|family| gauge.with_label_values(&[family]).set(seconds));
        };
        let (mut round, mut queued): (Option<(u64, Instant)>, u64) = (None, 0);
        loop {
            let published = snapshots.borrow_and_update().revision;
            if published != queued {
                queued = published;
                now(&self.queued);
            }
            let programmed = *applied.borrow_and_update();
            if let Some((_, since)) = round.filter(|(revision, _)| *revision <= programmed) {
                self.sync.iter().for_each(|family| family.observe(since.elapsed().as_secs_f64()));
                now(&self.synced);
                round = None;
            }
            self.programmed(programmed);
            if round.is_none() && published > programmed {
                round = Some((published, Instant::now()));
            }
            let changed = tokio::select! {
                changed = snapshots.changed() => changed,
                changed = applied.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// What a delta is found to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending(Waiting);

fn same_but_endpoints(old: &Service, new: &Service) -> bool {
    // The order of ports decides about endpoints' ports, so both are compared as they are.
    let bare = |service: &Service| Service { endpoints: Vec::new(), ..service.clone() };
    bare(old) == bare(new)
}

/// How many ports of a Service have endpoints in this family that could be used, and none of them on this node.
fn elsewhere_only(service: &Service, node: &str, v4: bool) -> usize {
    if !service.cluster_ips.iter().any(|ip: &IpAddr| ip.is_ipv4() == v4) {
        return 0;
    }
    let usable = |port: usize| {
        let of_family = service.endpoints.iter().filter(move |it| it.address.is_ipv4() == v4);
        of_family.filter(move |it| it.socket(port).is_some() && (it.ready || it.serving && it.terminating))
    };
    let here = |it: &Endpoint| it.node.as_deref() == Some(node);
    let elsewhere = |&port: &usize| usable(port).next().is_some() && !usable(port).any(here);
    service.ports.iter().enumerate().map(|(index, _): (usize, &ServicePort)| index).filter(elsewhere).count()
}

/// 0.25 and 0.5 s, each second up to 59 s, every 5 s up to 115 s, every 30 s up to 5 minutes.
fn programming_buckets() -> prometheus::Result<Vec<f64>> {
    let parts = [(0.25, 0.25, 2), (1.0, 1.0, 59), (60.0, 5.0, 12), (120.0, 30.0, 7)];
    let parts = parts.map(|(start, width, count)| linear_buckets(start, width, count));
    parts.into_iter().try_fold(Vec::new(), |all, part| Ok([all, part?].concat()))
}

#[cfg(test)]
#[path = "compat_tests.rs"]
mod tests;
