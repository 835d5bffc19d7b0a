//! Values for this module's tests: Services in a few words, and any steps of a catalog.

use std::net::IpAddr;

use proptest::prelude::*;
use sheave_model::{
    AppProtocol, ClusterFacts, ContentHash, Delta, Endpoint, NodeFacts, Policy, Protocol, Resource, ResourceKey,
    Service, ServiceKey, ServicePort, Upsert, View,
};

/// A Service in namespace "ns" with ClusterIPs (blank-separated), and no ports or endpoints yet.
pub(crate) fn service(name: &str, ips: &str) -> Service {
    Service {
        key: ServiceKey::new("ns", name),
        created: 0,
        cluster_ips: ips.split_whitespace().map(|ip| ip.parse().unwrap()).collect(),
        external_ips: vec![],
        load_balancer_ips: vec![],
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        affinity: None,
        source_ranges: vec![],
        ports: vec![],
        endpoints: vec![],
    }
}

/// Adds to a Service.
pub(crate) trait Build: Sized {
    fn any_port(self, port: u16, protocol: Protocol, app: AppProtocol, node_port: Option<u16>) -> Self;
    fn ready(self, address: &str, ports: &[u16]) -> Self;

    fn port(self, port: u16) -> Self {
        self.any_port(port, Protocol::Tcp, AppProtocol::Opaque, None)
    }
    fn udp(self, port: u16) -> Self {
        self.any_port(port, Protocol::Udp, AppProtocol::Opaque, None)
    }
    fn http(self, port: u16) -> Self {
        self.any_port(port, Protocol::Tcp, AppProtocol::Http, None)
    }
}

impl Build for Service {
    fn any_port(mut self, port: u16, protocol: Protocol, app: AppProtocol, node_port: Option<u16>) -> Self {
        let name = format!("p{}", self.ports.len()).into();
        self.ports.push(ServicePort { name, protocol, port, node_port, app });
        self
    }

    fn ready(mut self, address: &str, ports: &[u16]) -> Self {
        self.endpoints.push(Endpoint {
            address: address.parse().unwrap(),
            ports: ports.to_vec(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
        });
        self
    }
}

/// A delta of Services; equal content gets equal hashes.
pub(crate) fn delta(services: Vec<Service>) -> Delta {
    let resources = services.into_iter().map(Resource::Service).collect();
    delta_of(resources, vec![])
}

/// A delta of any resources.
pub(crate) fn delta_of(resources: Vec<Resource>, removals: Vec<ResourceKey>) -> Delta {
    let hash = |r: &Resource| ContentHash(u128::from(crc32fast::hash(format!("{r:?}").as_bytes())));
    let upserts = resources.into_iter().map(|resource| Upsert { hash: hash(&resource), resource }).collect();
    Delta { upserts, removals, view: View::default(), observed_unix_nanos: 0 }
}

/// The facts of a node.
pub(crate) fn node(addresses: &[&str], pods: &[&str]) -> Resource {
    let parse = |list: &[&str]| {
        let mut out: Vec<IpAddr> = list.iter().map(|ip| ip.parse().unwrap()).collect();
        out.sort();
        out
    };
    Resource::Node(NodeFacts { name: "n".into(), zone: None, addresses: parse(addresses), pods: parse(pods) })
}

/// The cluster's facts.
pub(crate) fn cluster(cidrs: &[&str]) -> Resource {
    Resource::Cluster(ClusterFacts { service_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect() })
}

fn any_service() -> impl Strategy<Value = Service> {
    let ips = prop::collection::btree_set(prop_oneof![Just("10.96.0.1"), Just("10.96.0.2"), Just("fd96::1")], 0..3);
    let ports =
        prop::collection::vec((1_u16..4, any::<bool>(), any::<bool>(), prop::option::of(30_000_u16..30_003)), 1..3);
    let endpoints = prop::collection::btree_map(1_u8..4, (any::<bool>(), any::<bool>()), 0..3);
    let more = (prop::bool::ANY, prop::bool::ANY, 0_i64..3);
    (prop_oneof![Just("a"), Just("b"), Just("c")], ips, ports, endpoints, more).prop_map(
        |(name, ips, ports, endpoints, (external, balanced, created))| {
            let mut out = service(name, &ips.into_iter().collect::<Vec<_>>().join(" "));
            out.created = created;
            out.external_ips = external.then(|| "10.96.0.2".parse().unwrap()).into_iter().collect();
            out.load_balancer_ips = balanced.then(|| "192.0.2.1".parse().unwrap()).into_iter().collect();
            for (port, udp, http, node_port) in ports {
                let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                let app = if http && !udp { AppProtocol::Http } else { AppProtocol::Opaque };
                out = out.any_port(port, protocol, app, node_port);
            }
            for (last, (v6, ready)) in endpoints {
                let address = if v6 { format!("fd01::{last}") } else { format!("10.1.0.{last}") };
                out = out.ready(&address, &[8080, 8080]);
                let endpoint = out.endpoints.last_mut().unwrap();
                endpoint.ready = ready;
                endpoint.serving = ready;
            }
            out
        },
    )
}

/// Any step: Services that come, change and go, and facts that change.
pub(crate) fn any_delta() -> impl Strategy<Value = Delta> {
    let removals = prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 0..2);
    let node_addresses = prop::option::of(prop_oneof![Just("10.0.0.1"), Just("10.0.0.2"), Just("fd00::1")]);
    let cidr = prop::option::of(prop_oneof![Just("10.96.0.0/16"), Just("10.96.0.0/24"), Just("fd96::/112")]);
    (prop::collection::vec(any_service(), 0..3), removals, node_addresses, cidr).prop_map(
        |(services, removals, address, cidr)| {
            let mut resources: Vec<_> = services.into_iter().map(Resource::Service).collect();
            resources.extend(address.map(|a| node(&[a], &[])));
            resources.extend(cidr.map(|c| cluster(&[c])));
            let removals = removals.into_iter().map(|name| ResourceKey::Service(ServiceKey::new("ns", name)));
            delta_of(resources, removals.collect())
        },
    )
}
