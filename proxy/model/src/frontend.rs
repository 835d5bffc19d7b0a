//! Frontends: the address, port and protocol a client connects to, and who keeps one that several Services claim.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{NodeFacts, Protocol, Service, ServiceKey};

/// What a client connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The destination address and port.
    pub address: SocketAddr,
    /// The destination protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// A frontend from its parts.
    pub const fn new(address: IpAddr, port: u16, protocol: Protocol) -> Self {
        Self { address: SocketAddr::new(address, port), protocol }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// Where a frontend's address comes from. The order is the order of precedence (SEMANTICS section 2): on one address and
/// port a ClusterIP beats a load balancer's address, which beats an external one, which beats a NodePort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort` on an address of this node.
    NodePort,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClusterIp => "ClusterIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::NodePort => "NodePort",
        })
    }
}

/// A Service port's wish to be reached at a frontend. The order puts the claims of one frontend together and the one that
/// keeps it first: the better kind, then the older Service, then the smaller key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// What is claimed.
    pub frontend: Frontend,
    /// By which kind of address.
    pub kind: FrontendKind,
    /// The claiming Service's age.
    pub created: i64,
    /// The claiming Service.
    pub service: ServiceKey,
    /// Index into its ports.
    pub port: usize,
}

/// Every claim of a Service on this node, in no order. NodePorts answer on the node's primary addresses and on localhost.
pub fn claims(service: &Service, node: &NodeFacts) -> Vec<Claim> {
    let mut out = Vec::with_capacity(service.ports.len() * (service.cluster_ips.len() + 1));
    for (index, port) in service.ports.iter().enumerate() {
        let mut claim = |address: IpAddr, number: u16, kind: FrontendKind| {
            out.push(Claim {
                frontend: Frontend::new(address, number, port.protocol),
                kind,
                created: service.created,
                service: service.key.clone(),
                port: index,
            });
        };
        for (addresses, kind) in [
            (&service.cluster_ips, FrontendKind::ClusterIp),
            (&service.load_balancer_ips, FrontendKind::LoadBalancer),
            (&service.external_ips, FrontendKind::ExternalIp),
        ] {
            for &address in addresses {
                claim(address, port.port, kind);
            }
        }
        let Some(number) = port.node_port else { continue };
        for address in node_port_addresses(service, node) {
            claim(address, number, FrontendKind::NodePort);
        }
    }
    out
}

/// The addresses of this node on which a Service's NodePorts answer: those of the Service's families.
fn node_port_addresses<'a>(service: &'a Service, node: &'a NodeFacts) -> impl Iterator<Item = IpAddr> + 'a {
    let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let family = |v4: bool| service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4);
    node.addresses.iter().copied().chain(localhost).filter(move |ip| family(ip.is_ipv4()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_kind_comes_first_then_the_older_service_then_the_smaller_name() {
        let claim = |kind, created, name: &str| Claim {
            frontend: Frontend::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 80, Protocol::Tcp),
            kind,
            created,
            service: ServiceKey::new("ns", name),
            port: 0,
        };
        let expected = [
            claim(FrontendKind::ClusterIp, 9, "z"),
            claim(FrontendKind::LoadBalancer, 1, "b"),
            claim(FrontendKind::LoadBalancer, 2, "a"),
            claim(FrontendKind::ExternalIp, 0, "a"),
            claim(FrontendKind::ExternalIp, 0, "b"),
            claim(FrontendKind::NodePort, 0, "a"),
        ];
        let mut shuffled: Vec<_> = expected.iter().rev().cloned().collect();
        shuffled.sort();
        assert_eq!(shuffled, expected);
    }
}
