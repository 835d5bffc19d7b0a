//! The store against a reference that knows no persistent maps and no increments: it keeps the resources and works out
//! every frontend from nothing after each delta.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use sheave_model::{
    AppProtocol, Claim, ClusterFacts, ContentHash, Delta, Endpoint, Frontend, FrontendKind, NodeFacts, Policy,
    Protocol, Resource, ResourceKey, Route, Service, ServiceKey, ServicePort, Snapshot, Store, Upsert, View, choose,
    claims,
};

/// Few of each, so that Services meet.
fn address() -> impl Strategy<Value = IpAddr> {
    select(vec!["10.0.0.1", "10.0.0.2", "127.0.0.1", "192.0.2.1", "fd00::1", "fd00::2"])
        .prop_map(|a| a.parse().unwrap())
}

fn port() -> impl Strategy<Value = ServicePort> {
    (select(vec![Protocol::Tcp, Protocol::Udp]), 79..82_u16, proptest::option::of(79..82_u16)).prop_map(
        |(protocol, port, node_port)| ServicePort {
            name: format!("{protocol}-{port}").into(),
            protocol,
            port,
            node_port,
            app: AppProtocol::Opaque,
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (address(), vec(0..3_u16, 0..3), any::<[bool; 3]>()).prop_map(|(address, ports, [ready, serving, terminating])| {
        Endpoint { address, ports, ready, serving, terminating, node: None, zone: None }
    })
}

fn service() -> impl Strategy<Value = Service> {
    let addresses = || vec(address(), 0..3);
    (
        select(vec!["a", "b", "c", "d"]),
        0..3_i64,
        addresses(),
        addresses(),
        addresses(),
        vec(port(), 0..3),
        vec(endpoint(), 0..5),
    )
        .prop_map(|(name, created, cluster_ips, external_ips, load_balancer_ips, ports, endpoints)| Service {
            key: ServiceKey::new("ns", name),
            created,
            cluster_ips,
            external_ips,
            load_balancer_ips,
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            affinity: Some(Duration::from_secs(9)),
            source_ranges: Vec::new(),
            ports,
            endpoints,
        })
}

fn resource() -> impl Strategy<Value = Resource> {
    let node = vec(address(), 0..3)
        .prop_map(|addresses| Resource::Node(NodeFacts { name: "n".into(), addresses, ..NodeFacts::default() }));
    prop_oneof![
        6 => service().prop_map(Resource::Service),
        2 => node,
        1 => Just(Resource::Cluster(ClusterFacts::default())),
    ]
}

fn key() -> impl Strategy<Value = ResourceKey> {
    prop_oneof![
        6 => select(vec!["a", "b", "c", "d", "e"]).prop_map(|name| ResourceKey::Service(ServiceKey::new("ns", name))),
        1 => select(vec!["n", "other"]).prop_map(|name| ResourceKey::Node(name.into())),
        1 => Just(ResourceKey::Cluster),
    ]
}

fn delta() -> impl Strategy<Value = Delta> {
    (vec((resource(), any::<u128>()), 0..4), vec(key(), 0..3), 0..9_u64).prop_map(|(resources, removals, version)| {
        let upsert = |(resource, hash)| Upsert { hash: ContentHash(hash), resource };
        Delta {
            upserts: resources.into_iter().map(upsert).collect(),
            removals,
            view: View { source: "s".into(), versions: [("Pod".to_owned(), version)].into() },
            observed_unix_nanos: version,
        }
    })
}

/// What is held, in the order of the wire: removals first, then what is new.
#[derive(Default)]
struct Reference {
    held: BTreeMap<ResourceKey, (ContentHash, Resource)>,
    version: u64,
}

impl Reference {
    fn apply(&mut self, delta: &Delta) {
        for key in &delta.removals {
            self.held.remove(key);
        }
        for upsert in &delta.upserts {
            self.held.insert(upsert.resource.key(), (upsert.hash, upsert.resource.clone()));
        }
        self.version = delta.view.versions["Pod"];
    }

    fn services(&self) -> Vec<&Service> {
        let services = self.held.values().map(|(_, resource)| match resource {
            Resource::Service(service) => Some(service),
            Resource::Node(_) | Resource::Cluster(_) => None,
        });
        services.flatten().collect()
    }

    fn node(&self) -> NodeFacts {
        match self.held.get(&ResourceKey::Node("n".into())) {
            Some((_, Resource::Node(node))) => node.clone(),
            _ => NodeFacts::default(),
        }
    }

    /// Every wish, by a rule written out again: the port on each address, the NodePort on the node's of that family.
    fn wishes(&self) -> Vec<(Frontend, FrontendKind, i64, ServiceKey, usize)> {
        let node = self.node();
        let mut wishes = Vec::new();
        for service in self.services() {
            for (index, port) in service.ports.iter().enumerate() {
                let mut wish = |ip: &IpAddr, number: u16, kind| {
                    let frontend = Frontend { address: SocketAddr::new(*ip, number), protocol: port.protocol };
                    wishes.push((frontend, kind, service.created, service.key.clone(), index));
                };
                service.cluster_ips.iter().for_each(|ip| wish(ip, port.port, FrontendKind::ClusterIp));
                service.load_balancer_ips.iter().for_each(|ip| wish(ip, port.port, FrontendKind::LoadBalancer));
                service.external_ips.iter().for_each(|ip| wish(ip, port.port, FrontendKind::ExternalIp));
                let localhost = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
                for ip in node.addresses.iter().chain(&localhost) {
                    let family = service.cluster_ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
                    if let (true, Some(number)) = (family, port.node_port) {
                        wish(ip, number, FrontendKind::NodePort);
                    }
                }
            }
        }
        wishes
    }

    fn frontends(&self) -> BTreeMap<Frontend, Route> {
        let mut keepers: BTreeMap<Frontend, (FrontendKind, i64, ServiceKey, usize)> = BTreeMap::new();
        for (frontend, kind, created, service, port) in self.wishes() {
            let wish = (kind, created, service, port);
            let keeper = keepers.entry(frontend).or_insert_with(|| wish.clone());
            if wish < *keeper {
                *keeper = wish;
            }
        }
        let route = |(kind, _, service, port)| Route { service, port, kind };
        keepers.into_iter().map(|(frontend, keeper)| (frontend, route(keeper))).collect()
    }
}

fn backends(service: &Service, index: usize, v4: bool) -> Vec<SocketAddr> {
    let mut ready = Vec::new();
    let mut leaving = Vec::new();
    for endpoint in &service.endpoints {
        let port = endpoint.ports.get(index).copied().unwrap_or(0);
        if endpoint.address.is_ipv4() != v4 || port == 0 {
            continue;
        }
        let socket = SocketAddr::new(endpoint.address, port);
        if endpoint.ready {
            ready.push(socket);
        } else if endpoint.serving && endpoint.terminating {
            leaving.push(socket);
        }
    }
    if ready.is_empty() { leaving } else { ready }
}

fn check(snapshot: &Snapshot, reference: &Reference) -> Result<(), TestCaseError> {
    let frontends: BTreeMap<Frontend, Route> = snapshot.frontends.iter().map(|(f, r)| (*f, r.clone())).collect();
    prop_assert_eq!(&frontends, &reference.frontends());
    let held: BTreeMap<ResourceKey, ContentHash> = snapshot.hashes().collect();
    let expected: BTreeMap<_, _> = reference.held.iter().map(|(key, (hash, _))| (key.clone(), *hash)).collect();
    prop_assert_eq!(&held, &expected);
    for (key, hash) in &held {
        prop_assert_eq!(snapshot.hash_of(key), Some(*hash));
    }
    for service in reference.services() {
        let state = &snapshot.services[&service.key];
        prop_assert_eq!(&state.service, service);
        for index in 0..service.ports.len() {
            prop_assert_eq!(&*state.backends[index].v4, backends(service, index, true));
            prop_assert_eq!(&*state.backends[index].v6, backends(service, index, false));
        }
    }
    for (frontend, route) in &frontends {
        let service = &snapshot.services[&route.service].service;
        let expected = backends(service, route.port, frontend.address.is_ipv4());
        prop_assert_eq!(&**snapshot.backends(frontend).unwrap(), expected);
        let first = snapshot.claims_on(frontend).next().unwrap();
        prop_assert_eq!((&first.service, first.port, first.kind), (&route.service, route.port, route.kind));
    }
    let mut wishes = reference.wishes();
    wishes.sort();
    wishes.dedup();
    prop_assert_eq!(snapshot.shadowed(), wishes.len() - frontends.len());
    prop_assert_eq!(snapshot.view.versions.get("Pod").copied().unwrap_or(0), reference.version);
    Ok(())
}

proptest! {
    #[test]
    fn after_any_deltas_the_store_says_what_the_reference_says(deltas in vec(delta(), 1..12)) {
        let (mut store, mut reference) = (Store::default(), Reference::default());
        for (count, delta) in deltas.into_iter().enumerate() {
            reference.apply(&delta);
            let before = store.snapshot().clone();
            let revision = store.apply(delta.clone()).revision;
            prop_assert_eq!(revision, count as u64 + 1);
            check(store.snapshot(), &reference)?;
            prop_assert_eq!(before.revision, count as u64, "a snapshot that was taken never changes");
            // Applying it twice changes nothing more.
            let mut again = Store::new(store.snapshot().clone());
            again.apply(delta);
            check(again.snapshot(), &reference)?;
        }
        let mut rebuilt = Store::default();
        rebuilt.apply(store.snapshot().to_delta());
        check(rebuilt.snapshot(), &reference)?;
    }

    #[test]
    fn a_ready_endpoint_is_always_preferred_and_none_is_invented(service in service(), index in 0..3_usize, v4: bool) {
        let chosen = choose(&service, index, v4);
        let of = |socket: &SocketAddr| service.endpoints.iter().filter(|e| e.socket(index) == Some(*socket)).collect::<Vec<_>>();
        prop_assert!(chosen.iter().all(|socket| socket.is_ipv4() == v4 && socket.port() != 0 && !of(socket).is_empty()));
        let reachable = |e: &&Endpoint| e.address.is_ipv4() == v4 && e.socket(index).is_some();
        let ready = service.endpoints.iter().filter(reachable).filter(|e| e.ready).count();
        if ready > 0 {
            prop_assert_eq!(chosen.len(), ready);
        } else {
            prop_assert!(chosen.iter().all(|socket| of(socket).iter().any(|e| e.serving && e.terminating)));
        }
    }

    #[test]
    fn claims_name_every_address_once_for_each_port(service in service(), addresses in vec(address(), 0..3)) {
        let node = NodeFacts { addresses: addresses.clone(), ..NodeFacts::default() };
        let claims: Vec<Claim> = claims(&service, &node);
        for (index, port) in service.ports.iter().enumerate() {
            let of = |kind| claims.iter().filter(|c| c.port == index && c.kind == kind).count();
            prop_assert_eq!(of(FrontendKind::ClusterIp), service.cluster_ips.len());
            prop_assert_eq!(of(FrontendKind::LoadBalancer), service.load_balancer_ips.len());
            prop_assert_eq!(of(FrontendKind::ExternalIp), service.external_ips.len());
            if port.node_port.is_none() {
                prop_assert_eq!(of(FrontendKind::NodePort), 0);
            }
        }
        prop_assert!(claims.iter().all(|claim| claim.service == service.key && claim.created == service.created));
    }
}
