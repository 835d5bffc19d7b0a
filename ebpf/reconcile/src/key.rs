//! Names of targets, and the model's values in the maps' form.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use sheave_abi::{Address, FRONTEND_NODE_ONLY, FrontendKey};
use sheave_model::{Frontend, Protocol, ServiceKey, ServicePort};

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; may be empty.
    pub port: Arc<str>,
    /// The port's number.
    pub number: u16,
    /// The port's protocol.
    pub protocol: Protocol,
    /// IPv4 or IPv6.
    pub v4: bool,
}

impl TargetKey {
    pub(crate) fn new(service: &ServiceKey, port: &ServicePort, v4: bool) -> Self {
        Self { service: service.clone(), port: port.name.clone(), number: port.port, protocol: port.protocol, v4 }
    }

    /// Whether it is this port's.
    pub(crate) fn is_of(&self, port: &ServicePort) -> bool {
        self.port == port.name && self.number == port.port && self.protocol == port.protocol
    }

    /// What a target's row says of whose it is. SHA-256, cut to 16 bytes: nobody can name a Service such that a restarted
    /// proxy takes it for another.
    pub(crate) fn identity(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        // Kubernetes names hold no NUL, so the parts can't run into each other.
        for part in [&self.service.namespace, &self.service.name, &self.port] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(self.number.to_be_bytes());
        hash.update([self.protocol.number(), u8::from(self.v4)]);
        let mut identity = [0; 16];
        identity.copy_from_slice(&hash.finalize()[..16]);
        identity
    }
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.v4 { "IPv4" } else { "IPv6" };
        write!(f, "{}:{}/{} {family}", self.service, self.number, self.protocol)
    }
}

pub(crate) fn frontend_key(frontend: &Frontend) -> FrontendKey {
    FrontendKey {
        address: Address::from_ip(frontend.address.ip()),
        port: frontend.address.port().to_be_bytes(),
        protocol: frontend.protocol.number(),
        pad: 0,
    }
}

/// The flags that follow from a frontend's address: each namespace has loopback addresses of its own, and only the node's
/// are frontends.
pub(crate) fn frontend_flags(key: &FrontendKey) -> u32 {
    if key.address.to_ip().is_loopback() { FRONTEND_NODE_ONLY } else { 0 }
}

pub(crate) fn socket(address: &Address, port: [u8; 2]) -> SocketAddr {
    SocketAddr::new(address.to_ip(), u16::from_be_bytes(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_targets_share_an_identity() {
        let key = |namespace: &str, name: &str, port: &str, number, protocol, v4| TargetKey {
            service: ServiceKey::new(namespace, name),
            port: port.into(),
            number,
            protocol,
            v4,
        };
        let keys = [
            key("a", "bc", "", 80, Protocol::Tcp, true),
            key("ab", "c", "", 80, Protocol::Tcp, true),
            key("a", "b", "c", 80, Protocol::Tcp, true),
            key("a", "bc", "", 81, Protocol::Tcp, true),
            key("a", "bc", "", 80, Protocol::Udp, true),
            key("a", "bc", "", 80, Protocol::Tcp, false),
        ];
        let identities: std::collections::BTreeSet<_> = keys.iter().map(TargetKey::identity).collect();
        assert_eq!(identities.len(), keys.len());
    }
}
