//! The API server's certificate, the authority that signed it, and the key of service accounts.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Writes `ca.crt`, `server.crt`, `server.key`, `accounts.key` and `accounts.pub`; returns the authority's certificate as DER.
pub(super) fn write(folder: &Path, address: IpAddr) -> Result<Vec<u8>> {
    let authority_key = KeyPair::generate().context("key")?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "test world");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority_certificate = authority.self_signed(&authority_key).context("authority")?;
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate().context("key")?;
    let names = vec![address.to_string(), "127.0.0.1".into(), "10.96.0.1".into(), "kubernetes.default.svc".into()];
    let server = CertificateParams::new(names).context("names")?.signed_by(&key, &issuer).context("server")?;

    fs::write(folder.join("ca.crt"), authority_certificate.pem())?;
    fs::write(folder.join("server.crt"), server.pem())?;
    fs::write(folder.join("server.key"), key.serialize_pem())?;
    let accounts = KeyPair::generate().context("key")?;
    fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
    Ok(authority_certificate.der().to_vec())
}

/// A certificate for one DNS name that signs itself, and its key: both PEM.
///
/// # Errors
/// Where the name is none.
pub fn self_signed(name: &str) -> Result<(String, String)> {
    let key = KeyPair::generate().context("key")?;
    let certificate =
        CertificateParams::new(vec![name.to_owned()]).context("name")?.self_signed(&key).context(name.to_owned())?;
    Ok((certificate.pem(), key.serialize_pem()))
}
