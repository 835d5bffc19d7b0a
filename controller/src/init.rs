//! `sheave-controller init`: a CA and certificates, for where nodes can't prove themselves by tokens.
//!
//! A second run keeps the CA and whatever it signed, and adds the nodes that are new.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::args::InitArgs;
use crate::config::ConfigError;

/// The name that proxies expect in the controller's certificate, at whatever address they reach it.
pub(crate) const SERVER_NAME: &str = "controller.sheave";

/// Follows a node's name in its certificate's DNS name.
pub(crate) const NODE_SUFFIX: &str = ".nodes.sheave";

/// Certificates hold this long. There is no renewal here; a real cluster uses tokens.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A node's clock may be behind by this much.
const SKEW: Duration = Duration::from_secs(3600);

/// Makes what is missing.
pub(crate) fn init(args: &InitArgs) -> anyhow::Result<()> {
    for name in &args.node {
        check_name(name)?;
    }
    fs::create_dir_all(&args.dir).with_context(|| format!("{} can't be made", args.dir.display()))?;
    let ca = Ca::open_or_make(&args.dir)?;
    let controller = args.dir.join("controller.crt");
    if !args.address.is_empty() || !controller.exists() {
        let names = args.address.iter().cloned().chain([SERVER_NAME.to_owned()]).collect();
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        ca.issue("sheave-controller", names, usage, &controller, &args.dir.join("controller.key"))?;
    }
    for name in &args.node {
        let dir = args.dir.join("nodes").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
        write(&dir.join("ca.crt"), &ca.pem, 0o644)?;
        let certificate = dir.join("tls.crt");
        if !certificate.exists() {
            let usage = ExtendedKeyUsagePurpose::ClientAuth;
            ca.issue(name, vec![format!("{name}{NODE_SUFFIX}")], usage, &certificate, &dir.join("tls.key"))?;
        }
    }
    Ok(())
}

/// A node's name becomes a folder and a DNS name, so it must be what Kubernetes allows (RFC 1123).
fn check_name(name: &str) -> Result<(), ConfigError> {
    let label = |label: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(label.chars().next())
            && edge(label.chars().last())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    if name.len() <= 63 && name.split('.').all(label) {
        return Ok(());
    }
    Err(ConfigError(format!(
        "--node {name:?} is no node name; use lower-case letters, digits, '-' and '.', at most 63"
    )))
}

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn open_or_make(dir: &Path) -> anyhow::Result<Self> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => {
                let pem = read(&certificate)?;
                let key_pair =
                    KeyPair::from_pem(&read(&key)?).with_context(|| format!("{} is no key", key.display()))?;
                let issuer = Issuer::from_ca_cert_pem(&pem, key_pair);
                let issuer = issuer.with_context(|| format!("{} is no certificate", certificate.display()))?;
                Ok(Self { pem, issuer })
            }
            (false, false) => {
                let key_pair = KeyPair::generate().context("no key can be made")?;
                let mut params = params("Sheave discovery CA", Vec::new())?;
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                let pem = params.self_signed(&key_pair).context("the CA can't be signed")?.pem();
                write(&key, &key_pair.serialize_pem(), 0o600)?;
                write(&certificate, &pem, 0o644)?;
                Ok(Self { pem, issuer: Issuer::new(params, key_pair) })
            }
            (true, false) => {
                bail!("{} is there without its key; put ca.key beside it or remove it", certificate.display())
            }
            (false, true) => {
                bail!("{} is there without its certificate; put ca.crt beside it or remove it", key.display())
            }
        }
    }

    fn issue(
        &self,
        common_name: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        certificate: &Path,
        key: &Path,
    ) -> anyhow::Result<()> {
        let key_pair = KeyPair::generate().context("no key can be made")?;
        let mut params = params(common_name, names)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key_pair, &self.issuer).context("the certificate can't be signed")?;
        write(key, &key_pair.serialize_pem(), 0o600)?;
        write(certificate, &signed.pem(), 0o644)
    }
}

fn params(common_name: &str, names: Vec<String>) -> anyhow::Result<CertificateParams> {
    let shown = names.join(", ");
    let mut params =
        CertificateParams::new(names).map_err(|error| ConfigError(format!("--address {shown}: {error}")))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + VALIDITY;
    Ok(params)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))
}

/// Writes beside the target and renames, so that a reader sees the old file or the new one.
fn write(path: &Path, content: &str, mode: u32) -> anyhow::Result<()> {
    let failed = || format!("{} can't be written", path.display());
    let beside = path.with_extension("new");
    // A file left by a killed run may have another mode.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(failed),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).with_context(failed)?;
    file.write_all(content.as_bytes()).with_context(failed)?;
    fs::rename(&beside, path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn args(dir: &Path, nodes: &[&str], addresses: &[&str]) -> InitArgs {
        let owned = |all: &[&str]| all.iter().map(|&s| s.to_owned()).collect();
        InitArgs { dir: dir.to_owned(), node: owned(nodes), address: owned(addresses) }
    }

    #[test]
    fn a_second_run_keeps_the_ca_and_adds_nodes() {
        let dir = tempfile::tempdir().unwrap();
        init(&args(dir.path(), &["a"], &["10.0.0.1"])).unwrap();
        let at = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        let (ca, controller, first) = (at("ca.crt"), at("controller.crt"), at("nodes/a/tls.crt"));
        init(&args(dir.path(), &["a", "b"], &[])).unwrap();
        assert_eq!((at("ca.crt"), at("controller.crt"), at("nodes/a/tls.crt")), (ca.clone(), controller, first));
        assert_eq!(at("nodes/b/ca.crt"), ca);
        for key in ["ca.key", "controller.key", "nodes/a/tls.key", "nodes/b/tls.key"] {
            let mode = fs::metadata(dir.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["..", "a/b", "", "Upper", "-a", "a..b"] {
            let error = init(&args(dir.path(), &[name], &[])).unwrap_err();
            assert!(error.is::<ConfigError>(), "{name}: {error}");
        }
    }

    #[test]
    fn a_ca_without_its_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        init(&args(dir.path(), &["a"], &[])).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(init(&args(dir.path(), &["b"], &[])).unwrap_err().to_string().contains("ca.key"));
    }
}
