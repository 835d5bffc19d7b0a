//! What Secret `sheave-ca` holds: the CA, and while it replaces another one, that one too.
//!
//! A replacement has three steps, each written by the leader: introducing (both are trusted, the previous one still signs, so
//! that it needs its key), retiring (both are trusted, the new one signs), settled.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;

use crate::pki::{Authority, PkiError};

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";
const PREVIOUS_CERTIFICATE: &str = "previous.crt";
const PREVIOUS_KEY: &str = "previous.key";

/// Why the Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    /// A key of the Secret is missing or no text.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A certificate or a key in it can't be used.
    #[error("{0}: {1}")]
    Unusable(&'static str, PkiError),
}

/// The CA that is being replaced.
#[derive(Clone, Debug)]
pub(crate) enum Previous {
    /// It still signs.
    Signing(Arc<Authority>),
    /// It is only trusted: its certificate, in PEM.
    Trusted(String),
}

/// The CA, and the one it replaces.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) current: Arc<Authority>,
    pub(crate) previous: Option<Previous>,
}

impl Keys {
    /// One CA and no other.
    pub(crate) fn settled(current: Arc<Authority>) -> Self {
        Self { current, previous: None }
    }

    /// A CA that everybody has to learn of, while another one signs.
    pub(crate) fn introducing(current: Arc<Authority>, previous: Arc<Authority>) -> Self {
        Self { current, previous: Some(Previous::Signing(previous)) }
    }

    /// The same once everybody knows the new one.
    pub(crate) fn retiring(&self) -> Self {
        let certificate = self.signer().certificate().to_owned();
        Self { current: self.current.clone(), previous: Some(Previous::Trusted(certificate)) }
    }

    /// Who signs the certificates of replicas.
    pub(crate) fn signer(&self) -> &Arc<Authority> {
        match &self.previous {
            Some(Previous::Signing(previous)) => previous,
            Some(Previous::Trusted(_)) | None => &self.current,
        }
    }

    /// What proxies have to trust, in PEM.
    pub(crate) fn bundle(&self) -> String {
        let previous = match &self.previous {
            Some(Previous::Signing(authority)) => authority.certificate(),
            Some(Previous::Trusted(certificate)) => certificate,
            None => "",
        };
        let pems = [self.current.certificate(), previous].map(str::trim);
        pems.iter().filter(|pem| !pem.is_empty()).map(|pem| format!("{pem}\n")).collect()
    }

    /// From the data of a Secret.
    pub(crate) fn from_data(data: &BTreeMap<String, ByteString>) -> Result<Self, KeysError> {
        let text = |name: &'static str| data.get(name).and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
        let authority = |(certificate, certificate_name), key_name| {
            let key = text(key_name).ok_or(KeysError::Missing(key_name))?;
            let authority = Authority::from_pem(certificate, key);
            authority.map(Arc::new).map_err(|error| KeysError::Unusable(certificate_name, error))
        };
        let certificate = text(CERTIFICATE).ok_or(KeysError::Missing(CERTIFICATE))?;
        let current = authority((certificate, CERTIFICATE), KEY)?;
        let previous = match (text(PREVIOUS_CERTIFICATE), text(PREVIOUS_KEY)) {
            (Some(certificate), Some(_)) => {
                Some(Previous::Signing(authority((certificate, PREVIOUS_CERTIFICATE), PREVIOUS_KEY)?))
            }
            (Some(certificate), None) => Some(Previous::Trusted(certificate.to_owned())),
            (None, _) => None,
        };
        Ok(Self { current, previous })
    }

    /// As the data of a Secret.
    pub(crate) fn to_data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put = |name: &str, text: &str| data.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
        put(CERTIFICATE, self.current.certificate());
        put(KEY, self.current.key());
        match &self.previous {
            Some(Previous::Signing(authority)) => {
                put(PREVIOUS_CERTIFICATE, authority.certificate());
                put(PREVIOUS_KEY, authority.key());
            }
            Some(Previous::Trusted(certificate)) => drop(put(PREVIOUS_CERTIFICATE, certificate)),
            None => {}
        }
        data
    }

    /// Whether both say the same.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Self) -> bool {
        let signing = |keys: &Self| matches!(keys.previous, Some(Previous::Signing(_)));
        self.bundle() == other.bundle() && signing(self) == signing(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Arc<Authority> {
        Arc::new(Authority::make().unwrap())
    }

    #[test]
    fn every_step_of_a_replacement_comes_back_from_the_secret() {
        let (new, old) = (authority(), authority());
        let introducing = Keys::introducing(new.clone(), old.clone());
        let retiring = introducing.retiring();
        let settled = Keys::settled(new.clone());
        for (keys, signer, certificates) in [(&introducing, &old, 2), (&retiring, &new, 2), (&settled, &new, 1)] {
            let read = Keys::from_data(&keys.to_data()).unwrap();
            assert!(read.is(keys));
            assert_eq!(read.signer().certificate(), signer.certificate());
            assert_eq!(read.bundle().matches("BEGIN CERTIFICATE").count(), certificates);
        }
        assert!(!introducing.is(&retiring) && !retiring.is(&settled));
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_named() {
        let (one, other) = (authority(), authority());
        let mut data = Keys::settled(one).to_data();
        data.insert(KEY.to_owned(), ByteString(other.key().as_bytes().to_vec()));
        let error = Keys::from_data(&data).unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("don't belong together"), "{error}");
        data.remove(KEY);
        assert_eq!(Keys::from_data(&data).unwrap_err().to_string(), "ca.key is missing");
    }
}
