//! A Service as the data plane sees it: addresses, ports, policies and the endpoints behind them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// Namespace and name of a Service; orders by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ServiceKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A transport protocol that Services are forwarded for. SCTP is not: few kernels carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Protocol {
    /// The protocol's IANA number, as it stands in the IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// How the bytes of a Service port are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppProtocol {
    /// As they come: TCP streams and UDP datagrams.
    #[default]
    Opaque,
    /// As HTTP/1.1 requests, a backend being chosen for each (`appProtocol: http` or `sheave.io/l7: http`).
    Http,
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Every endpoint of the cluster.
    #[default]
    Cluster,
    /// The endpoints of the client's (internal) or the receiving (external) node only.
    Local,
}

/// A Service and everything needed to forward to it. ExternalName and headless Services never become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Who it is.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp` in seconds since 1970; of two Services that claim one address, the older keeps it.
    pub created: i64,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose ipMode is VIP.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: Policy,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, when sessionAffinity is ClientIP.
    pub affinity: Option<Duration>,
    /// `spec.loadBalancerSourceRanges`.
    pub source_ranges: Vec<IpNet>,
    /// In the order of the spec.
    pub ports: Vec<ServicePort>,
    /// Sorted by address, one for each.
    pub endpoints: Vec<Endpoint>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty where a Service has one port without a name.
    pub name: Arc<str>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port of the Service's own addresses; never 0.
    pub port: u16,
    /// The port on every node, if it has one.
    pub node_port: Option<u16>,
    /// How it is carried.
    pub app: AppProtocol,
}

/// A pod's address behind a Service, or an address out of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: IpAddr,
    /// The port that each of the Service's ports reaches here, by index; 0 where it has none.
    pub ports: Vec<u16>,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, whether or not it is being deleted.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// That node's zone.
    pub zone: Option<Arc<str>>,
}

impl Endpoint {
    /// Where the Service's port number `index` (in spec order) is served here.
    pub fn socket(&self, index: usize) -> Option<SocketAddr> {
        match self.ports.get(index) {
            Some(&port) if port != 0 => Some(SocketAddr::new(self.address, port)),
            _ => None,
        }
    }
}
