//! Resources as proxies receive them, made from the facts that the index holds now.

use std::sync::Arc;

use sheave_model::{ClusterFacts, NodeFacts, Resource, ResourceKey, Service, ServiceKey};

use crate::condition::Origin;
use crate::endpoints::endpoints;
use crate::facts::Class;
use crate::{Condition, Index, Kind, MAX_ENDPOINTS, ObjectKey};

impl Index {
    /// What a resource is now; `None` when there is no such resource (any more). Costs as much as the one resource is big.
    pub fn compute(&self, key: &ResourceKey) -> Option<Resource> {
        match key {
            ResourceKey::Service(key) => self.service(key).map(|(service, _)| Resource::Service(service)),
            ResourceKey::Node(name) => self.node(name).map(Resource::Node),
            ResourceKey::Cluster => Some(Resource::Cluster(self.cluster())),
        }
    }

    /// The same for whoever serves it: what has to be left out of a Service becomes a condition of it.
    pub fn compute_and_note(&mut self, key: &ResourceKey) -> Option<Resource> {
        let ResourceKey::Service(key) = key else { return self.compute(key) };
        let found = self.service(key);
        let all = found.as_ref().map_or(0, |(_, all)| *all);
        let object = ObjectKey::new(Kind::Service, key.namespace.clone(), key.name.clone());
        let condition = Condition {
            object: object.clone(),
            field: "endpoints".to_owned(),
            message: format!("more than {MAX_ENDPOINTS}; that many are served, those that are ready first"),
            remedy: "split the Service".to_owned(),
        };
        let conditions = if all > MAX_ENDPOINTS { vec![condition] } else { Vec::new() };
        self.book.set(&object, Origin::Endpoints, conditions);
        found.map(|(service, _)| Resource::Service(service))
    }

    /// Every resource there is.
    pub fn keys(&self) -> Vec<ResourceKey> {
        let nodes = self.nodes.keys().cloned().map(ResourceKey::Node);
        let served = self.spaces.values().flat_map(|space| space.services.values());
        let served = served.filter(|entry| entry.facts.class == Class::Served);
        let services = served.map(|entry| ResourceKey::Service(entry.facts.service.key.clone()));
        std::iter::once(ResourceKey::Cluster).chain(nodes).chain(services).collect()
    }

    /// A Service, and how many endpoints it has in all.
    fn service(&self, key: &ServiceKey) -> Option<(Service, usize)> {
        let space = self.spaces.get(&key.namespace)?;
        let entry = space.services.get(&key.name).filter(|entry| entry.facts.class == Class::Served)?;
        let (endpoints, all) = endpoints(&key.name, entry, space, &self.nodes);
        Some((Service { endpoints, ..entry.facts.service.clone() }, all))
    }

    fn node(&self, name: &Arc<str>) -> Option<NodeFacts> {
        let facts = self.nodes.get(name)?;
        let here = self.pods_on.get(name).into_iter().flatten();
        let pods = here.filter_map(|(namespace, pod)| self.spaces.get(namespace)?.pods.get(pod));
        let mut pods: Vec<_> = pods.flat_map(|pod| pod.own_addresses().iter().copied()).collect();
        pods.sort_unstable();
        pods.dedup();
        Some(NodeFacts { name: name.clone(), zone: facts.zone.clone(), addresses: facts.addresses.clone(), pods })
    }

    fn cluster(&self) -> ClusterFacts {
        let mut service_cidrs: Vec<_> = self.cidrs.values().flat_map(|facts| facts.cidrs.iter().copied()).collect();
        service_cidrs.sort_unstable();
        service_cidrs.dedup();
        ClusterFacts { service_cidrs }
    }
}
