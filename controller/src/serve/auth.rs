//! Who is at the other end. On TLS a proxy is the node that its certificate or its token names, and nobody else; on the unix
//! socket the file's mode has decided already.

use std::sync::Arc;

use tonic::Status;
use tonic::codegen::http::Extensions;
use tonic::metadata::MetadataMap;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo, UdsConnectInfo};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::init::{NODE_SUFFIX, OPERATOR_NAME};
use crate::trust::{Refused, Reviewer};

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// A process that may open our unix socket.
    Local,
    /// The holder of a certificate with these names.
    Certified {
        /// Its common names.
        common_names: Vec<String>,
        /// Its DNS names.
        dns_names: Vec<String>,
    },
    /// The holder of a token that the API server says is of a pod on this node.
    Reviewed(Arc<str>),
}

impl Peer {
    /// Reads it from what the transport has left with a request.
    pub(crate) fn of(extensions: &Extensions) -> Result<Self, Status> {
        if extensions.get::<UdsConnectInfo>().is_some() {
            return Ok(Self::Local);
        }
        let unknown = || Status::unauthenticated("no client certificate was given");
        let tls = extensions.get::<TlsConnectInfo<TcpConnectInfo>>().ok_or_else(unknown)?;
        let chain = tls.peer_certs().ok_or_else(unknown)?;
        Self::from_der(chain.first().ok_or_else(unknown)?)
    }

    /// Asks the API server about the token that came with a request.
    pub(crate) async fn by_token(
        reviewer: &Reviewer,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Self, Status> {
        if extensions.get::<UdsConnectInfo>().is_some() {
            return Ok(Self::Local);
        }
        reviewer.review(&token(metadata, "give the proxy --token-file")?).await.map(Self::Reviewed).map_err(|refused| {
            match refused {
                Refused::Token(why) => Status::unauthenticated(why),
                Refused::Unknown(_) => Status::unavailable(refused.to_string()),
            }
        })
    }

    fn from_der(der: &[u8]) -> Result<Self, Status> {
        let unreadable =
            |error: String| Status::unauthenticated(format!("the client certificate can't be read: {error}"));
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        let common_names = certificate.subject().iter_common_name();
        let common_names = common_names.filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
        let alternative = certificate.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
        let names = alternative.iter().flat_map(|extension| &extension.value.general_names);
        let dns = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        Ok(Self::Certified { common_names, dns_names: dns.collect() })
    }

    /// Whether it may ask about all nodes: a process of this machine, or the holder of the operator's certificate.
    pub(super) fn may_operate(&self) -> Result<(), Status> {
        match self {
            Self::Local => Ok(()),
            Self::Certified { dns_names, .. } if dns_names.iter().any(|name| name == OPERATOR_NAME) => Ok(()),
            Self::Certified { .. } | Self::Reviewed(_) => Err(Status::permission_denied(
                "a node's certificate speaks for its node only; use the operator's, which `sheave-controller init` makes",
            )),
        }
    }

    /// Whether it may speak for a node: by the DNS names where there are any, else by the common name.
    pub(crate) fn may_be(&self, node: &str) -> Result<(), Status> {
        let (common_names, dns_names) = match self {
            Self::Local => return Ok(()),
            Self::Reviewed(own) if **own == *node => return Ok(()),
            Self::Reviewed(own) => {
                let why =
                    format!("the token is of a pod on node {own:?}, and Hello says node {node:?}; mend --node-name");
                return Err(Status::permission_denied(why));
            }
            Self::Certified { common_names, dns_names } => (common_names, dns_names),
        };
        let matches = if dns_names.is_empty() {
            common_names.iter().any(|name| name == node)
        } else {
            dns_names.iter().any(|name| name.strip_suffix(NODE_SUFFIX) == Some(node))
        };
        if matches {
            return Ok(());
        }
        let names = dns_names.iter().chain(common_names).map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(Status::permission_denied(format!("node {node:?} isn't among the certificate's names: {names}")))
    }
}

/// The token that came with a request; `remedy` says what to do where there is none.
pub(super) fn token(metadata: &MetadataMap, remedy: &str) -> Result<String, Status> {
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim).unwrap_or_default();
    if token.is_empty() {
        return Err(Status::unauthenticated(format!("no token was sent; {remedy}")));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};
    use tonic::Code;

    use super::*;

    fn peer(common_name: &str, names: &[&str]) -> Peer {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        Peer::from_der(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der()).unwrap()
    }

    #[test]
    fn a_certificate_speaks_for_its_own_node_only() {
        let a = peer("a", &["a.nodes.sheave"]);
        assert!(a.may_be("a").is_ok());
        for other in ["b", "", "a.nodes.sheave", "nodes.sheave"] {
            assert_eq!(a.may_be(other).unwrap_err().code(), Code::PermissionDenied, "{other}");
        }
    }

    #[test]
    fn only_the_operators_certificate_asks_about_all_nodes() {
        assert!(Peer::Local.may_operate().is_ok());
        assert!(peer("operator", &[OPERATOR_NAME]).may_operate().is_ok());
        for (name, names) in [("a", &["a.nodes.sheave"][..]), (OPERATOR_NAME, &[])] {
            assert_eq!(peer(name, names).may_operate().unwrap_err().code(), Code::PermissionDenied, "{name}");
        }
        assert!(peer("operator", &[OPERATOR_NAME]).may_be("operator").is_err());
    }

    #[test]
    fn dns_names_go_before_the_common_name() {
        assert!(peer("a", &["b.nodes.sheave"]).may_be("a").is_err());
        assert!(peer("a", &[]).may_be("a").is_ok());
        assert!(peer("controller", &["controller.sheave"]).may_be("controller").is_err());
    }

    #[test]
    fn a_token_speaks_for_the_node_that_its_review_names() {
        let a = Peer::Reviewed("a".into());
        assert!(a.may_be("a").is_ok());
        let status = a.may_be("b").unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("\"a\"") && status.message().contains("\"b\""), "{status}");
    }

    #[test]
    fn a_connection_without_identity_is_refused() {
        assert_eq!(Peer::of(&Extensions::new()).unwrap_err().code(), Code::Unauthenticated);
        assert_eq!(Peer::from_der(b"no certificate").unwrap_err().code(), Code::Unauthenticated);
    }
}
