//! Resources as proxies receive them, made from the facts that the index holds now.

use std::sync::Arc;

use sheave_model::{ClusterFacts, NodeFacts, Resource, ResourceKey, Service, ServiceKey};

use crate::Index;
use crate::endpoints::endpoints;
use crate::facts::Class;

impl Index {
    /// What a resource is now; `None` when there is no such resource (any more). Costs as much as the one resource is big.
    pub fn compute(&self, key: &ResourceKey) -> Option<Resource> {
        match key {
            ResourceKey::Service(key) => self.service(key).map(Resource::Service),
            ResourceKey::Node(name) => self.node(name).map(Resource::Node),
            ResourceKey::Cluster => Some(Resource::Cluster(self.cluster())),
        }
    }

    /// Every resource there is.
    pub fn keys(&self) -> Vec<ResourceKey> {
        let nodes = self.nodes.keys().cloned().map(ResourceKey::Node);
        let served = self.spaces.values().flat_map(|space| space.services.values());
        let served = served.filter(|entry| entry.facts.class == Class::Served);
        let services = served.map(|entry| ResourceKey::Service(entry.facts.service.key.clone()));
        std::iter::once(ResourceKey::Cluster).chain(nodes).chain(services).collect()
    }

    fn service(&self, key: &ServiceKey) -> Option<Service> {
        let space = self.spaces.get(&key.namespace)?;
        let entry = space.services.get(&key.name).filter(|entry| entry.facts.class == Class::Served)?;
        let endpoints = endpoints(&key.name, entry, space, &self.nodes);
        Some(Service { endpoints, ..entry.facts.service.clone() })
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
