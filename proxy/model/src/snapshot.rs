//! The proxy's state of the world: a [`Store`] applies deltas and yields immutable [`Snapshot`]s.
//!
//! The maps are persistent (`imbl`), so a snapshot is a pointer copy, applying one change costs O(log n), and a reader that
//! skipped some snapshots finds what changed by `old.frontends.diff(&new.frontends)` without walking what is shared.

use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use crate::{
    Claim, ClusterFacts, ContentHash, Delta, Frontend, FrontendKind, NodeFacts, Resource, ResourceKey, Service,
    ServiceKey, View, choose, claims, names::Names,
};

/// Where a frontend leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The Service.
    pub service: ServiceKey,
    /// Index into its ports.
    pub port: usize,
    /// Which of its addresses the frontend is.
    pub kind: FrontendKind,
}

/// The backends of one Service port, per family; those that take new connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortBackends {
    /// For frontends with an IPv4 address.
    pub v4: Arc<[SocketAddr]>,
    /// For frontends with an IPv6 address.
    pub v6: Arc<[SocketAddr]>,
}

impl PortBackends {
    /// Those of an address's family.
    pub fn of(&self, address: IpAddr) -> &Arc<[SocketAddr]> {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

/// A Service with what follows from it on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceState {
    /// Hash of the Service's encoded form.
    pub hash: ContentHash,
    /// The Service.
    pub service: Service,
    /// By index of its ports.
    pub backends: Vec<PortBackends>,
}

impl ServiceState {
    fn new(hash: ContentHash, service: Service) -> Self {
        let of_port = |index| PortBackends {
            v4: choose(&service, index, true).into(),
            v6: choose(&service, index, false).into(),
        };
        let backends = (0..service.ports.len()).map(of_port).collect();
        Self { hash, service, backends }
    }
}

/// One consistent state. Cheap to clone; never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the deltas applied by this store; 0 is the empty start.
    pub revision: u64,
    /// The view of the last delta. Whoever applies one that doesn't reach the one before means it: the source went back.
    pub view: View,
    /// [`Delta::observed_unix_nanos`] of the last delta.
    pub observed_unix_nanos: u64,
    /// This node's facts, once received.
    pub node: Option<(ContentHash, Arc<NodeFacts>)>,
    /// The cluster's facts, once received.
    pub cluster: Option<(ContentHash, Arc<ClusterFacts>)>,
    /// Every Service.
    pub services: OrdMap<ServiceKey, Arc<ServiceState>>,
    /// Every frontend and who has it.
    pub frontends: OrdMap<Frontend, Route>,
    claims: OrdSet<Claim>,
}

impl Snapshot {
    /// Who answers at a frontend, and with which backends.
    pub fn lookup(&self, frontend: &Frontend) -> Option<(&Route, &Arc<ServiceState>)> {
        let route = self.frontends.get(frontend)?;
        self.services.get(&route.service).map(|state| (route, state))
    }

    /// The backends of a frontend; empty where it is refused.
    pub fn backends(&self, frontend: &Frontend) -> Option<&Arc<[SocketAddr]>> {
        let (route, state) = self.lookup(frontend)?;
        state.backends.get(route.port).map(|port| port.of(frontend.address.ip()))
    }

    /// The claims on a frontend, the one that keeps it first.
    pub fn claims_on(&self, frontend: &Frontend) -> impl Iterator<Item = &Claim> {
        let first = least_claim(*frontend);
        let frontend = *frontend;
        self.claims
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |claim| claim.frontend == frontend)
    }

    /// How many claims are on frontends that another claim keeps.
    pub fn shadowed(&self) -> usize {
        self.claims.len() - self.frontends.len()
    }

    /// The hash of a resource that this snapshot holds.
    pub fn hash_of(&self, key: &ResourceKey) -> Option<ContentHash> {
        match key {
            ResourceKey::Service(key) => self.services.get(key).map(|state| state.hash),
            ResourceKey::Node(name) => self.node.as_ref().filter(|(_, node)| node.name == *name).map(|(hash, _)| *hash),
            ResourceKey::Cluster => self.cluster.as_ref().map(|(hash, _)| *hash),
        }
    }

    /// Every resource held, with its hash: what Hello tells a controller.
    pub fn hashes(&self) -> impl Iterator<Item = (ResourceKey, ContentHash)> {
        let node = self.node.iter().map(|(hash, node)| (ResourceKey::Node(node.name.clone()), *hash));
        let cluster = self.cluster.iter().map(|(hash, _)| (ResourceKey::Cluster, *hash));
        let services = self.services.iter().map(|(key, state)| (ResourceKey::Service(key.clone()), state.hash));
        node.chain(cluster).chain(services)
    }

    /// Everything held, as the delta that makes it out of nothing.
    pub fn to_delta(&self) -> Delta {
        let node = self.node.iter().map(|(hash, node)| (*hash, Resource::Node((**node).clone())));
        let cluster = self.cluster.iter().map(|(hash, facts)| (*hash, Resource::Cluster((**facts).clone())));
        let services = self.services.values().map(|state| (state.hash, Resource::Service(state.service.clone())));
        let upserts = node.chain(cluster).chain(services).map(|(hash, resource)| crate::Upsert { hash, resource });
        Delta { upserts: upserts.collect(), removals: Vec::new(), view: self.view.clone(), observed_unix_nanos: 0 }
    }
}

/// Smaller than every real claim on a frontend.
fn least_claim(frontend: Frontend) -> Claim {
    let service = ServiceKey::new("", "");
    Claim { frontend, kind: FrontendKind::ClusterIp, created: i64::MIN, service, port: 0 }
}

/// Applies deltas. One task owns it; readers get snapshots.
#[derive(Debug, Default)]
pub struct Store {
    now: Snapshot,
    names: Names,
}

impl Store {
    /// A store that holds a snapshot's content.
    pub fn new(snapshot: Snapshot) -> Self {
        Self { now: snapshot, names: Names::default() }
    }

    /// The state after the last delta.
    pub fn snapshot(&self) -> &Snapshot {
        &self.now
    }

    /// Applies a delta and returns the state after it. Costs O(changed x log n), but for a change of the node's own facts,
    /// which NodePorts depend on.
    pub fn apply(&mut self, delta: Delta) -> &Snapshot {
        for key in &delta.removals {
            match key {
                ResourceKey::Service(key) => self.remove(key),
                ResourceKey::Node(name) => {
                    if self.now.node.as_ref().is_some_and(|(_, node)| node.name == *name) {
                        self.now.node = None;
                        self.reclaim_all();
                    }
                }
                ResourceKey::Cluster => self.now.cluster = None,
            }
        }
        for upsert in delta.upserts {
            match upsert.resource {
                Resource::Service(service) => self.upsert(upsert.hash, service),
                Resource::Node(node) => {
                    let moved = self.now.node.as_ref().is_none_or(|(_, old)| old.addresses != node.addresses);
                    self.now.node = Some((upsert.hash, Arc::new(node)));
                    if moved {
                        self.reclaim_all();
                    }
                }
                Resource::Cluster(facts) => self.now.cluster = Some((upsert.hash, Arc::new(facts))),
            }
        }
        self.now.view = delta.view;
        self.now.observed_unix_nanos = delta.observed_unix_nanos;
        self.now.revision += 1;
        &self.now
    }

    /// Gives back what decoding took too much: a Service is kept for long, and there are many.
    fn compact(&mut self, service: &mut Service) {
        self.names.share(&mut service.key.namespace);
        service.endpoints.shrink_to_fit();
        for endpoint in &mut service.endpoints {
            for name in [&mut endpoint.node, &mut endpoint.zone].into_iter().flatten() {
                self.names.share(name);
            }
        }
    }

    fn upsert(&mut self, hash: ContentHash, mut service: Service) {
        self.compact(&mut service);
        let node = self.node();
        let key = service.key.clone();
        let mine = claims(&service, &node);
        let old = self.now.services.insert(key, Arc::new(ServiceState::new(hash, service)));
        let before = old.map(|state| claims(&state.service, &node)).unwrap_or_default();
        if before != mine {
            self.reclaim(&before, &mine);
        }
    }

    fn remove(&mut self, key: &ServiceKey) {
        if let Some(state) = self.now.services.remove(key) {
            let before = claims(&state.service, &self.node());
            self.reclaim(&before, &[]);
        }
    }

    fn node(&self) -> Arc<NodeFacts> {
        self.now.node.as_ref().map(|(_, node)| node.clone()).unwrap_or_default()
    }

    /// Replaces claims and settles anew who keeps the frontends that they touch.
    fn reclaim(&mut self, before: &[Claim], after: &[Claim]) {
        for claim in before {
            self.now.claims.remove(claim);
        }
        for claim in after {
            self.now.claims.insert(claim.clone());
        }
        for frontend in before.iter().chain(after).map(|claim| claim.frontend) {
            let keeper = self.now.claims_on(&frontend).next();
            let route = keeper.map(|c| Route { service: c.service.clone(), port: c.port, kind: c.kind });
            match route {
                Some(route) => {
                    self.now.frontends.insert(frontend, route);
                }
                None => {
                    self.now.frontends.remove(&frontend);
                }
            }
        }
    }

    fn reclaim_all(&mut self) {
        let node = self.node();
        let before: Vec<Claim> = self.now.claims.iter().cloned().collect();
        let after: Vec<Claim> = self.now.services.values().flat_map(|state| claims(&state.service, &node)).collect();
        self.reclaim(&before, &after);
    }
}
