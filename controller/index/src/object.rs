//! Objects as a source hands them over: which one it is, which version, and the facts that are read of it.

use std::fmt;
use std::sync::Arc;

use crate::Condition;
use crate::facts::{CidrFacts, NodeObjectFacts, PodFacts, ServiceFacts, SliceFacts};

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Node.
    Node,
    /// core/v1 Namespace.
    Namespace,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Pod.
    Pod,
}

impl Kind {
    /// Every kind, in the order that lets a first list publish the fewest intermediate states: what others refer to first.
    pub const ALL: [Self; 6] =
        [Self::Node, Self::Namespace, Self::ServiceCidr, Self::Service, Self::EndpointSlice, Self::Pod];

    /// The kind as it stands in an object's `kind` field.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
        }
    }

    /// The object's `apiVersion`.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Namespace | Self::Service | Self::Pod => "v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
        }
    }

    /// Whether objects of this kind live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::Pod | Self::EndpointSlice)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names an object. Prints as `Service shop/cart` or `Node worker-1`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// What it is.
    pub kind: Kind,
    /// `metadata.namespace`; empty for kinds that live in none.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One version of an object. Cloning shares the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Which object.
    pub key: ObjectKey,
    /// `metadata.resourceVersion`; 0 where the source gives none that is a number.
    pub version: u64,
    /// What is read of it.
    pub facts: Facts,
    /// What is wrong with it and was left out of the facts.
    pub conditions: Vec<Condition>,
}

/// What is read of an object, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// Of a Node.
    Node(Arc<NodeObjectFacts>),
    /// Of a Namespace nothing is read yet but that it exists.
    Namespace,
    /// Of a ServiceCIDR.
    ServiceCidr(Arc<CidrFacts>),
    /// Of a Service.
    Service(Arc<ServiceFacts>),
    /// Of an EndpointSlice.
    EndpointSlice(Arc<SliceFacts>),
    /// Of a Pod.
    Pod(Arc<PodFacts>),
}
