//! Commands as people type them: in the project's folder, anywhere in the cluster, by themselves or from a page.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sheave_harness::kubelets::fixture::Fixture;
use sheave_harness::pages;

use crate::context::Context;

/// The project's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs lines in the project's folder, in the world's namespaces or a node's, as an administrator; what they print.
pub(crate) fn run(fixture: &Fixture, place: &str, lines: &str) -> Result<String> {
    let config = fixture.state.join("admin.kubeconfig");
    let script = format!("set -euo pipefail; export KUBECONFIG={}; {lines}", config.display());
    let output = Command::new(root().join("tests/cluster/in"))
        .args([place, "bash", "-c", &script])
        .current_dir(root())
        .output()
        .context("tests/cluster/in")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{lines}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// [`run`], for a case.
pub(crate) fn shell(it: &Context<'_>, place: &str, lines: &str) -> Result<String> {
    run(it.fixture, place, lines)
}

/// Runs a block of a page.
pub(crate) fn typed(it: &Context<'_>, page: &str, name: &str) -> Result<String> {
    shell(it, "world", &pages::commands(page, name)?).with_context(|| format!("{page}: {name}"))
}

/// Waits, as the page says, until all of the product is ready.
pub(crate) fn ready(it: &Context<'_>) -> Result<()> {
    typed(it, "docs/install.md", "wait").map(drop)
}

/// Stops, starts or restarts a program of the cluster, as tests/cluster/README.md lists them.
pub(crate) fn service(it: &Context<'_>, action: &str, place: &str, name: &str) -> Result<()> {
    shell(it, "world", &format!("tests/cluster/service {action} {place} {name}")).map(drop)
}
