//! What travels from a controller to a proxy: resources, each with the hash of its content, and the view they come from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{ClusterFacts, NodeFacts, Service, ServiceKey};

/// The hash of a resource's encoded form. Equal hashes mean equal content, whichever replica computed it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub u128);

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Names a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceKey {
    /// A Service.
    Service(ServiceKey),
    /// A node's own facts, by its name.
    Node(Arc<str>),
    /// The cluster's facts.
    Cluster,
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Cluster => f.write_str("cluster"),
        }
    }
}

/// A resource's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A Service with its endpoints.
    Service(Service),
    /// A node's own facts.
    Node(NodeFacts),
    /// The cluster's facts.
    Cluster(ClusterFacts),
}

impl Resource {
    /// The name it goes by.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Service(service) => ResourceKey::Service(service.key.clone()),
            Self::Node(node) => ResourceKey::Node(node.name.clone()),
            Self::Cluster(_) => ResourceKey::Cluster,
        }
    }
}

/// A resource that is new or has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upsert {
    /// Hash of `resource`'s encoded form.
    pub hash: ContentHash,
    /// The content.
    pub resource: Resource,
}

/// A step from one state of the controller's catalog to a later one. Applying it twice changes nothing more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// What is new or has changed.
    pub upserts: Vec<Upsert>,
    /// What is gone.
    pub removals: Vec<ResourceKey>,
    /// What it was computed from.
    pub view: View,
    /// When the controller saw the newest change in here, in nanoseconds since 1970; 0 where that says nothing (a first
    /// list, a file). Programming latency is measured from it.
    pub observed_unix_nanos: u64,
}

/// What a replica has seen of its source: resourceVersions are comparable within a kind (KEP-5504).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The source's id: of a cluster, or of a folder's state. Versions of two sources say nothing about each other.
    pub source: String,
    /// The newest resourceVersion seen, for each kind of object.
    pub versions: BTreeMap<String, u64>,
}
