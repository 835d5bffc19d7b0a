//! A certificate authority of one level: makes itself, signs servers and nodes. Knows no files and no API server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name that proxies expect in the controller's certificate, at whatever address they reach it.
pub(crate) const SERVER_NAME: &str = "controller.sheave";

/// A CA holds this long, ten years.
pub(crate) const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A node's clock may be behind by this much.
const SKEW: Duration = Duration::from_secs(3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    /// Keys or signatures can't be made, or a name is no DNS name and no address.
    #[error("{0}")]
    Signing(#[from] rcgen::Error),
    /// Text that is no certificate or no key.
    #[error("{0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// A key that doesn't belong to its certificate.
    #[error("certificate and key don't belong together: {0}")]
    Mismatch(#[from] rustls::Error),
    /// A certificate that can't be read.
    #[error("the certificate can't be read: {0}")]
    Unreadable(String),
}

/// A CA's certificate and key.
pub(crate) struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    /// Seconds since 1970.
    not_after: i64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A certificate with its key, in PEM.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    /// A new one.
    pub(crate) fn make() -> Result<Self, PkiError> {
        let key_pair = KeyPair::generate()?;
        let mut params = params("Sheave discovery CA", Vec::new(), CA_VALIDITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key_pair)?.pem();
        Self::from_pem(&certificate, &key_pair.serialize_pem())
    }

    /// One that was made before.
    pub(crate) fn from_pem(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())?;
        // Says so where the two don't belong together.
        let _ = certified(vec![der.clone()], key)?;
        let not_after = not_after(&der)?;
        let issuer = Issuer::from_ca_cert_der(&der, KeyPair::from_pem(key)?)?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), issuer, not_after })
    }

    /// Its certificate, in PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key, in PEM.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// When it ends, in seconds since 1970.
    pub(crate) fn not_after(&self) -> i64 {
        self.not_after
    }

    /// Signs a new key for `names`, which holds for `validity` from now.
    pub(crate) fn issue(
        &self,
        common_name: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        validity: Duration,
    ) -> Result<Signed, PkiError> {
        let key_pair = KeyPair::generate()?;
        let mut params = params(common_name, names, validity)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key_pair, &self.issuer)?.pem();
        Ok(Signed { certificate, key: key_pair.serialize_pem() })
    }
}

impl Signed {
    /// As a TLS server takes it.
    pub(crate) fn certified(&self) -> Result<CertifiedKey, PkiError> {
        certified(vec![CertificateDer::from_pem_slice(self.certificate.as_bytes())?], &self.key)
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &str) -> Result<CertifiedKey, PkiError> {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
    Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
}

fn not_after(der: &CertificateDer<'_>) -> Result<i64, PkiError> {
    let parsed = X509Certificate::from_der(der);
    let (_, certificate) = parsed.map_err(|error| PkiError::Unreadable(error.to_string()))?;
    Ok(certificate.validity().not_after.timestamp())
}

fn params(common_name: &str, names: Vec<String>, validity: Duration) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + validity;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_is_read_back_and_signs() {
        let made = Authority::make().unwrap();
        let read = Authority::from_pem(made.certificate(), made.key()).unwrap();
        assert_eq!(read.not_after(), made.not_after());
        let names = vec![SERVER_NAME.to_owned()];
        let signed = read.issue("x", names, ExtendedKeyUsagePurpose::ServerAuth, Duration::from_secs(60)).unwrap();
        signed.certified().unwrap();
    }

    #[test]
    fn a_key_of_another_ca_is_no_key_of_this_one() {
        let (one, other) = (Authority::make().unwrap(), Authority::make().unwrap());
        let error = Authority::from_pem(one.certificate(), other.key()).unwrap_err();
        assert!(matches!(error, PkiError::Mismatch(_)), "{error}");
        assert!(matches!(Authority::from_pem("nothing", one.key()), Err(PkiError::Pem(_))));
    }
}
