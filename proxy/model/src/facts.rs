//! What a proxy knows of its own node and of the cluster, so that nothing is guessed from CIDRs.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// One node's own facts; each proxy receives those of its node and of no other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP: the primary addresses, on which NodePorts answer.
    pub addresses: Vec<IpAddr>,
    /// Addresses of this node's pods that are not on the host network, sorted. A client with one of these is "pod".
    pub pods: Vec<IpAddr>,
}

/// What is the same for every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterFacts {
    /// The ServiceCIDRs, sorted. An address in one that no Service has is dropped.
    pub service_cidrs: Vec<IpNet>,
}
