//! Snapshots for tests, and what the maps should hold for one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use sheave_abi::{FRONTEND_LISTENER, FRONTEND_NODE_ONLY};
use sheave_model::{
    AppProtocol, ContentHash, Delta, Endpoint, Frontend, NodeFacts, Protocol, Resource, ResourceKey, Service,
    ServiceKey, ServicePort, Snapshot, Store, Upsert,
};

use crate::key::{frontend_key, socket};
use crate::{Fake, Reconciler, Report};

/// A store with a node in it.
pub(crate) fn store() -> Store {
    let mut store = Store::default();
    let node = NodeFacts { name: "node".into(), addresses: vec![ip("192.0.2.1")], ..NodeFacts::default() };
    apply(&mut store, vec![Resource::Node(node)], vec![]);
    store
}

pub(crate) fn apply(store: &mut Store, upserts: Vec<Resource>, removals: Vec<ServiceKey>) -> Snapshot {
    let hash = ContentHash(u128::from(store.snapshot().revision));
    let upserts = upserts.into_iter().map(|resource| Upsert { hash, resource }).collect();
    let removals = removals.into_iter().map(ResourceKey::Service).collect();
    store.apply(Delta { upserts, removals, ..Delta::default() }).clone()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A Service at one address with the given ports.
pub(crate) fn service(name: &str, address: &str, ports: Vec<ServicePort>, endpoints: Vec<Endpoint>) -> Service {
    Service {
        key: ServiceKey::new("ns", name),
        created: 0,
        cluster_ips: vec![ip(address)],
        external_ips: vec![],
        load_balancer_ips: vec![],
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity: None,
        source_ranges: vec![],
        ports,
        endpoints,
    }
}

pub(crate) fn port(number: u16, protocol: Protocol) -> ServicePort {
    ServicePort { name: format!("p{number}").into(), protocol, port: number, node_port: None, app: AppProtocol::Opaque }
}

/// A ready endpoint number `n` that serves `ports` ports, in a family.
pub(crate) fn endpoint(n: u16, ports: u16, v4: bool) -> Endpoint {
    let address = if v4 {
        IpAddr::from([10, 0, (n >> 8) as u8, n as u8])
    } else {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n))
    };
    let ports = (0..ports).map(|index| 8000 + index).collect();
    Endpoint { address, ports, ready: true, serving: true, terminating: false, node: None, zone: None }
}

pub(crate) fn terminating(mut endpoint: Endpoint) -> Endpoint {
    (endpoint.ready, endpoint.terminating) = (false, true);
    endpoint
}

/// Reconciler, maps and time.
pub(crate) struct Bench {
    pub(crate) reconciler: Reconciler,
    pub(crate) maps: Fake,
    pub(crate) now: Instant,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { reconciler: Reconciler::default(), maps: Fake::new(now), now }
    }

    pub(crate) fn update(&mut self, snapshot: &Snapshot) -> Report {
        self.maps.now = self.now;
        let mut report = self.reconciler.update(snapshot, self.now, &mut self.maps);
        // As the follower does: the grace of what is unused now begins.
        let after = self.reconciler.handle_timeout(self.now, &mut self.maps);
        report.writes += after.writes;
        report.failures.extend(after.failures);
        report
    }

    pub(crate) fn wait(&mut self, time: Duration) -> Report {
        self.now += time;
        self.maps.now = self.now;
        self.reconciler.handle_timeout(self.now, &mut self.maps)
    }

    pub(crate) fn restart(&mut self) {
        self.reconciler = Reconciler::new(&self.maps.restored());
    }
}

/// Calls timeouts until nothing waits; panics if that never happens.
pub(crate) fn drain(reconciler: &mut Reconciler, maps: &mut Fake) {
    for _ in 0..1000 {
        let Some(at) = reconciler.poll_timeout() else { return };
        maps.now = at.max(maps.now);
        reconciler.handle_timeout(maps.now, maps);
    }
    panic!("something waits for ever: {reconciler:?}");
}

/// The maps hold what a snapshot says, for every frontend of it, and no other frontend.
pub(crate) fn assert_follows(maps: &Fake, snapshot: &Snapshot) {
    let wanted: BTreeSet<_> = snapshot.frontends.keys().map(frontend_key).collect();
    let got: BTreeSet<_> = maps.frontends.keys().copied().collect();
    assert_eq!(got, wanted);
    for frontend in snapshot.frontends.keys() {
        assert_frontend(maps, snapshot, frontend);
    }
}

fn assert_frontend(maps: &Fake, snapshot: &Snapshot, frontend: &Frontend) {
    let key = frontend_key(frontend);
    let (route, state) = snapshot.lookup(frontend).unwrap();
    let flags = maps.frontends[&key].flags;
    assert_eq!(flags & FRONTEND_NODE_ONLY != 0, frontend.address.ip().is_loopback(), "{frontend}");
    if state.service.ports[route.port].app == AppProtocol::Http {
        assert_ne!(flags & FRONTEND_LISTENER, 0, "{frontend}");
        return;
    }
    let got = maps.backends_of(&key).unwrap_or_else(|| panic!("{frontend} is left to the listeners"));
    assert!(got.iter().all(|row| row.flags == 0), "{frontend} leads to a backend that is leaving");
    let mut got: Vec<_> = got.iter().map(|row| socket(&row.address, row.port)).collect();
    let mut wanted: Vec<SocketAddr> = snapshot.backends(frontend).unwrap().to_vec();
    got.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(got, wanted, "{frontend}");
}
