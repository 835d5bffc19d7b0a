//! Where replicas of the controller are and which CAs sign for them, as one source tells it: a mounted ConfigMap, a stream, or
//! the file in which the last stream's word is kept.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use serde::{Deserialize, Serialize};
use sheave_api::{content_hash, proto};

/// The most replicas that are tried, of one source.
pub(crate) const MAX_CONTROLLERS: usize = 64;
/// The longest file that is read: 64 addresses, and certificates of about 1 kB.
const MAX_BYTES: u64 = 256 << 10;

/// What one source tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Directory {
    pub(super) controllers: Vec<SocketAddr>,
    /// In PEM.
    pub(super) ca: String,
}

impl Directory {
    /// As a stream brings it, with the hash by which it is acknowledged.
    ///
    /// # Errors
    /// Where it names no replica or no CA that can be used.
    pub(super) fn from_proto(message: proto::Directory) -> Result<(Self, sheave_model::ContentHash), String> {
        let hash = content_hash(message.ca.as_bytes());
        let (controllers, bad) = addresses(message.controllers.iter().map(String::as_str));
        if controllers.is_empty() {
            return Err(format!("it names no replica{bad}"));
        }
        if anchors(&message.ca).0.is_empty() {
            return Err("it has no CA certificate that can be used".to_owned());
        }
        Ok((Self { controllers, ca: message.ca }, hash))
    }

    /// From a folder with `controllers` (IP:PORT, one to a line) and `ca.crt`, as a ConfigMap is mounted. Either may be
    /// missing: it comes later. Returns what was wrong as well.
    pub(super) fn mounted(folder: &Path) -> (Self, Vec<String>) {
        let mut wrong = Vec::new();
        let mut read = |name: &str| {
            let path = folder.join(name);
            read(&path).unwrap_or_else(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    wrong.push(format!("{}: {error}", path.display()));
                }
                String::new()
            })
        };
        let (lines, ca) = (read("controllers"), read("ca.crt"));
        let (controllers, bad) = addresses(lines.lines());
        if !bad.is_empty() {
            wrong.push(format!("{}{bad}", folder.join("controllers").display()));
        }
        let (good, broken) = anchors(&ca);
        if broken > 0 || (good.is_empty() && !ca.trim().is_empty()) {
            wrong.push(format!("{}: a certificate in it can't be read", folder.join("ca.crt").display()));
        }
        (Self { controllers, ca }, wrong)
    }
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The addresses among lines, and what is wrong with the others.
fn addresses<'a>(lines: impl Iterator<Item = &'a str>) -> (Vec<SocketAddr>, String) {
    let (mut good, mut bad) = (Vec::new(), String::new());
    for line in lines.map(str::trim).filter(|line| !line.is_empty()).take(MAX_CONTROLLERS) {
        match line.parse() {
            Ok(address) => good.push(address),
            Err(_) => bad = format!(": {line:?} is no IP:PORT"),
        }
    }
    (good, bad)
}

/// The certificates of a bundle as what a TLS client trusts, and how many of them can't be read.
pub(super) fn anchors(pem: &str) -> (Vec<TrustAnchor<'static>>, usize) {
    let mut store = RootCertStore::empty();
    let mut broken = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let added = certificate.is_ok_and(|certificate| store.add(certificate).is_ok());
        broken += usize::from(!added);
    }
    (store.roots, broken)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A CA's certificate in PEM.
    pub(crate) fn ca() -> String {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn what_is_good_in_a_mounted_folder_is_taken_and_the_rest_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Directory::mounted(folder.path()), (Directory::default(), Vec::new()), "it comes later");
        std::fs::write(folder.path().join("controllers"), "10.0.0.1:15010\n\nnonsense\n[fd00::1]:15010\n").unwrap();
        let both = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{}", ca(), ca());
        std::fs::write(folder.path().join("ca.crt"), &both).unwrap();
        let (directory, wrong) = Directory::mounted(folder.path());
        assert_eq!(directory.controllers.len(), 2);
        assert_eq!(anchors(&directory.ca).0.len(), 2);
        assert!(wrong.len() == 2 && wrong[0].contains("nonsense") && wrong[1].contains("ca.crt"), "{wrong:?}");
    }

    #[test]
    fn a_stream_must_name_replicas_and_cas() {
        let message = |controllers: &[&str], ca: &str| {
            let controllers = controllers.iter().map(|&address| address.to_owned()).collect();
            Directory::from_proto(proto::Directory { controllers, ca: ca.to_owned() })
        };
        assert!(message(&["10.0.0.1:1", "x"], &ca()).is_ok_and(|(directory, _)| directory.controllers.len() == 1));
        assert!(message(&["x"], &ca()).is_err_and(|why| why.contains("\"x\"")));
        assert!(message(&["10.0.0.1:1"], "x").is_err());
    }
}
