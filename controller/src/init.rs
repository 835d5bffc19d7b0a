//! `sheave-controller init`: a CA and certificates, for where nodes can't prove themselves by tokens.
//!
//! A second run keeps the CA and whatever it signed, and adds the nodes that are new. Certificates hold for ten years and are
//! not renewed here; a real cluster uses `--trust kube`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use rcgen::ExtendedKeyUsagePurpose;

use crate::args::InitArgs;
use crate::config::ConfigError;
use crate::pki::{Authority, CA_VALIDITY, SERVER_NAME};

/// Follows a node's name in its certificate's DNS name.
pub(crate) const NODE_SUFFIX: &str = ".nodes.sheave";

/// The DNS name in an operator's certificate. No node's ends like this.
pub(crate) const OPERATOR_NAME: &str = "operator.sheave";

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
        ca.client(&args.dir.join("nodes").join(name), name, format!("{name}{NODE_SUFFIX}"))?;
    }
    ca.client(&args.dir.join("operator"), "sheave-operator", OPERATOR_NAME.to_owned())
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

struct Ca(Authority);

impl Ca {
    fn open_or_make(dir: &Path) -> anyhow::Result<Self> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => {
                let authority = Authority::from_pem(&read(&certificate)?, &read(&key)?);
                let failed = || format!("{} and {} can't be used", certificate.display(), key.display());
                Ok(Self(authority.with_context(failed)?))
            }
            (false, false) => {
                let authority = Authority::make().context("no CA can be made")?;
                write(&key, authority.key(), 0o600)?;
                write(&certificate, authority.certificate(), 0o644)?;
                Ok(Self(authority))
            }
            (true, false) => {
                bail!("{} is there without its key; put ca.key beside it or remove it", certificate.display())
            }
            (false, true) => {
                bail!("{} is there without its certificate; put ca.crt beside it or remove it", key.display())
            }
        }
    }

    /// Fills a folder for somebody who proves to be `name`, unless that was done before.
    fn client(&self, dir: &Path, common_name: &str, name: String) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
        write(&dir.join("ca.crt"), self.0.certificate(), 0o644)?;
        let certificate = dir.join("tls.crt");
        if certificate.exists() {
            return Ok(());
        }
        self.issue(common_name, vec![name], ExtendedKeyUsagePurpose::ClientAuth, &certificate, &dir.join("tls.key"))
    }

    fn issue(
        &self,
        common_name: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        certificate: &Path,
        key: &Path,
    ) -> anyhow::Result<()> {
        let shown = names.join(", ");
        let signed = self.0.issue(common_name, names, usage, CA_VALIDITY);
        let signed =
            signed.map_err(|error| ConfigError(format!("a certificate for {shown} can't be made: {error}")))?;
        write(key, &signed.key, 0o600)?;
        write(certificate, &signed.certificate, 0o644)
    }
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
