//! The certificate that this replica shows: in memory only, signed anew when the CA changes and long before it ends.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::pki::{Authority, PkiError, SERVER_NAME};

/// A certificate holds for 90 days and is used for 30.
const VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
const USED: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// The CA's certificate, in PEM.
    signer: String,
    since: Instant,
}

/// The certificate shown to proxies; none before there is a CA, and a handshake then fails.
#[derive(Debug, Default)]
pub(crate) struct Serving(RwLock<Option<Shown>>);

impl Serving {
    /// Makes sure that `authority` has signed what is shown. Returns whether that is a new certificate.
    pub(crate) fn sign(&self, authority: &Authority, now: Instant) -> Result<bool, PkiError> {
        let good = |shown: &Shown| {
            shown.signer == authority.certificate() && now.saturating_duration_since(shown.since) < USED
        };
        if self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(good) {
            return Ok(false);
        }
        let names = vec![SERVER_NAME.to_owned()];
        let signed = authority.issue("sheave-controller", names, ExtendedKeyUsagePurpose::ServerAuth, VALIDITY)?;
        let key = Arc::new(signed.certified()?);
        let shown = Shown { key, signer: authority.certificate().to_owned(), since: now };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(true)
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|shown| shown.key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_signed_anew_for_another_ca_and_after_a_month() {
        let (one, other) = (Authority::make().unwrap(), Authority::make().unwrap());
        let (serving, start) = (Serving::default(), Instant::now());
        assert!(serving.sign(&one, start).unwrap());
        assert!(!serving.sign(&one, start + USED / 2).unwrap());
        assert!(serving.sign(&one, start + USED).unwrap());
        assert!(serving.sign(&other, start + USED).unwrap());
        assert!(!serving.sign(&other, start + USED).unwrap());
    }
}
