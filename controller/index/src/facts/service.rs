//! Facts of Services. The part of them that proxies receive is kept in the form they receive it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service as Written, ServiceSpec};
use sheave_model::{Policy, Service, ServiceKey};

use super::address::may_be_vip;
use super::{Problems, labels, parse_address, parse_prefix, ports};
use crate::Strings;

/// One label or one requirement of a selector: key and value.
pub type Label = (Arc<str>, Arc<str>);

/// Whether a Service is forwarded here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// It is.
    #[default]
    Served,
    /// `type: ExternalName`: a name in DNS, no address.
    ExternalName,
    /// `clusterIP: None`, or labelled `service.kubernetes.io/headless`: service discovery only.
    Headless,
    /// Labelled `service.kubernetes.io/service-proxy-name`: another proxy's.
    Foreign,
    /// It has no ClusterIP yet; the API server is about to give it one.
    Unassigned,
}

/// Where a port leads in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To this number.
    Number(u16),
    /// To the container port with this name.
    Name(Arc<str>),
}

/// What is read of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// Who forwards it.
    pub class: Class,
    /// What proxies receive of it, without its endpoints.
    pub service: Service,
    /// `targetPort` of each of its ports.
    pub targets: Vec<Target>,
    /// `spec.selector`, sorted; `None` when it is absent or empty, which matches nothing.
    pub selector: Option<Box<[Label]>>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// It has IPv4 endpoints.
    pub v4: bool,
    /// It has IPv6 endpoints.
    pub v6: bool,
}

pub(super) fn read(written: &Written, problems: &mut Problems, strings: &mut Strings) -> ServiceFacts {
    let default = ServiceSpec::default();
    let spec = written.spec.as_ref().unwrap_or(&default);
    let meta = &written.metadata;
    let class = classify(written, spec);
    let cluster_ips = if class == Class::Served { cluster_ips(spec, problems) } else { Vec::new() };
    let (v4, v6) = families(spec, &cluster_ips);
    let http = meta.annotations.as_ref().and_then(|all| all.get("sheave.io/l7")).is_some_and(|value| value == "http");
    let (ports, targets) = ports::read(spec.ports.as_deref().unwrap_or_default(), http, problems, strings);
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
    let service = Service {
        key: ServiceKey { namespace: problems.object.namespace.clone(), name: problems.object.name.clone() },
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        cluster_ips,
        external_ips: external_ips(spec, (v4, v6), problems),
        load_balancer_ips: load_balancer_ips(written, (v4, v6), problems),
        internal_policy: policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy", problems),
        external_policy: policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy", problems),
        affinity: affinity(spec, problems),
        source_ranges: source_ranges(spec, problems),
        ports,
        endpoints: Vec::new(),
    };
    ServiceFacts {
        class,
        service,
        targets,
        selector: selector.map(|selector| labels(Some(selector), strings)),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        v4,
        v6,
    }
}

fn classify(written: &Written, spec: &ServiceSpec) -> Class {
    let labelled = |key: &str| written.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key));
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let first = spec.cluster_ips.iter().flatten().next().map(String::as_str).unwrap_or_default();
    if spec.type_.as_deref() == Some("ExternalName") {
        Class::ExternalName
    } else if labelled("service.kubernetes.io/service-proxy-name") {
        Class::Foreign
    } else if ip == "None" || first == "None" || labelled("service.kubernetes.io/headless") {
        Class::Headless
    } else if ip.is_empty() && first.is_empty() {
        Class::Unassigned
    } else {
        Class::Served
    }
}

fn cluster_ips(spec: &ServiceSpec, problems: &mut Problems) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut add = |field: String, text: &str| add_vip(&mut found, field, text, (true, true), problems);
    match &spec.cluster_ips {
        Some(ips) if !ips.is_empty() => {
            ips.iter().enumerate().for_each(|(index, ip)| add(format!("spec.clusterIPs[{index}]"), ip));
        }
        _ => add("spec.clusterIP".to_owned(), spec.cluster_ip.as_deref().unwrap_or_default()),
    }
    found
}

fn external_ips(spec: &ServiceSpec, families: (bool, bool), problems: &mut Problems) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        add_vip(&mut found, format!("spec.externalIPs[{index}]"), text, families, problems);
    }
    found
}

/// An ingress with `ipMode: Proxy` is left alone: its load balancer wants to see the traffic (KEP-1860).
fn load_balancer_ips(written: &Written, families: (bool, bool), problems: &mut Problems) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let is_balanced = written.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    let balancer = written.status.as_ref().and_then(|status| status.load_balancer.as_ref()).filter(|_| is_balanced);
    for (index, entry) in balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten().enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        if entry.ip_mode.as_deref() != Some("Proxy") {
            add_vip(&mut found, format!("status.loadBalancer.ingress[{index}].ip"), text, families, problems);
        }
    }
    found
}

fn add_vip(found: &mut Vec<IpAddr>, field: String, text: &str, (v4, v6): (bool, bool), problems: &mut Problems) {
    match parse_address(text) {
        None => problems.add(field, format!("{text:?} is not an IP address"), "write an IPv4 or IPv6 address"),
        Some(ip) if !may_be_vip(ip) => {
            problems.add(field, format!("{text} cannot be a Service's address"), "write a unicast address");
        }
        Some(ip) if !(if ip.is_ipv4() { v4 } else { v6 }) => {
            let message = format!("{text} is of a family that the Service does not have");
            problems.add(field, message, "add the family to spec.ipFamilies, or take the address out");
        }
        Some(ip) if found.contains(&ip) => {}
        Some(ip) => found.push(ip),
    }
}

fn families(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> (bool, bool) {
    let named = |family: &str| spec.ip_families.iter().flatten().any(|entry| entry == family);
    let written = (named("IPv4"), named("IPv6"));
    let carried = (cluster_ips.iter().any(IpAddr::is_ipv4), cluster_ips.iter().any(IpAddr::is_ipv6));
    [written, carried].into_iter().find(|&(v4, v6)| v4 || v6).unwrap_or((true, true))
}

fn policy(text: Option<&str>, field: &str, problems: &mut Problems) -> Policy {
    match text {
        None | Some("" | "Cluster") => Policy::Cluster,
        Some("Local") => Policy::Local,
        Some(other) => {
            problems.add(field, format!("{other:?} is not known, Cluster is taken"), "write Cluster or Local");
            Policy::Cluster
        }
    }
}

/// How long ClientIP affinity lasts where nothing is written: three hours, as in the API's reference.
const AFFINITY_SECONDS: u64 = 10_800;

fn affinity(spec: &ServiceSpec, problems: &mut Problems) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.add("spec.sessionAffinity", format!("{other:?} is not known"), "write None or ClientIP");
            return None;
        }
    }
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = client.and_then(|client| client.timeout_seconds) else {
        return Some(Duration::from_secs(AFFINITY_SECONDS));
    };
    let valid = u64::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
    if valid.is_none() {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        problems.add(field, format!("{seconds} is out of range, 10800 is taken"), "write a number from 1 to 86400");
    }
    Some(Duration::from_secs(valid.unwrap_or(AFFINITY_SECONDS)))
}

/// Ranges of which none can be read must let nobody in, rather than everybody: they become two that no client is in.
fn source_ranges(spec: &ServiceSpec, problems: &mut Problems) -> Vec<IpNet> {
    let mut found = Vec::new();
    let written = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    for (index, text) in written.iter().enumerate() {
        match parse_prefix(text) {
            Some(net) => found.push(net),
            None => problems.add(
                format!("spec.loadBalancerSourceRanges[{index}]"),
                format!("{text:?} is not a CIDR"),
                "write an address and a length, such as 192.0.2.0/24",
            ),
        }
    }
    if found.is_empty() && !written.is_empty() {
        found = ["0.0.0.0/32", "::/128"].iter().filter_map(|net| parse_prefix(net)).collect();
    }
    found
}
