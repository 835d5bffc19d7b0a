//! What a proxy needs in order to find and to trust a replica: addresses and CA certificates, as ConfigMap and as message.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use sheave_api::{content_hash, proto};
use sheave_model::ContentHash;

/// Addresses of replicas, and the CAs that sign for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    controllers: Vec<SocketAddr>,
    ca: String,
}

impl Directory {
    /// Of these replicas, whose certificates are signed by a CA of `ca`, in PEM.
    pub(crate) fn new(mut controllers: Vec<SocketAddr>, ca: String) -> Self {
        controllers.sort_unstable();
        controllers.dedup();
        Self { controllers, ca }
    }

    /// Whether it says anything yet.
    pub(crate) fn is_complete(&self) -> bool {
        !self.controllers.is_empty() && !self.ca.is_empty()
    }

    /// What a proxy says once it trusts these CAs.
    pub(crate) fn ca_hash(&self) -> ContentHash {
        content_hash(self.ca.as_bytes())
    }

    /// As it goes to a proxy.
    pub(crate) fn to_proto(&self) -> proto::Directory {
        proto::Directory {
            controllers: self.controllers.iter().map(SocketAddr::to_string).collect(),
            ca: self.ca.clone(),
        }
    }

    /// As the data of a ConfigMap.
    pub(crate) fn to_data(&self) -> BTreeMap<String, String> {
        let controllers = self.controllers.iter().map(|address| format!("{address}\n")).collect();
        [("controllers".to_owned(), controllers), ("ca.crt".to_owned(), self.ca.clone())].into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_one_to_a_line_and_in_order() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let all = vec![
            address("10.0.0.2:15010"),
            address("[fd00::1]:15010"),
            address("10.0.0.1:15010"),
            address("10.0.0.2:15010"),
        ];
        let directory = Directory::new(all, "pem".to_owned());
        assert_eq!(directory.to_data()["controllers"], "10.0.0.1:15010\n10.0.0.2:15010\n[fd00::1]:15010\n");
        assert_eq!(directory.to_proto().controllers.len(), 3);
        assert!(directory.is_complete() && !Directory::default().is_complete());
    }
}
