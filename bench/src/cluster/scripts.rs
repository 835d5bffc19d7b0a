//! The cluster's own scripts (`tests/cluster`): up, a command inside, down. What is brought up here is taken down here, also where
//! something fails; what a killed run has left, the next `up` ends.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::Part;
use super::found::{Arm, Found};

/// The nodes of every cluster here.
const NODES: &str = "2";

/// The scripts' folder.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster")
}

/// Runs one of them to its end.
pub(super) fn script(name: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(folder().join(name)).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("tests/cluster/{name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tests/cluster/{name} {}: {}", arguments.join(" "), said.trim());
    Ok(())
}

/// Brings clusters up and down.
pub(super) struct Scripts {
    /// This program.
    program: PathBuf,
}

/// A cluster that is up; dropped, it is down.
struct Cluster;

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = script("down", &["--quiet"]) {
            crate::say(&format!("{error:#}"));
        }
    }
}

impl Scripts {
    /// With the programs beside this one.
    ///
    /// # Errors
    /// Where the product's image is missing, before minutes have gone by without it.
    pub(super) fn new() -> Result<Self> {
        let image = folder().join("../../target/image/sheave.tar");
        ensure!(image.exists(), "target/image/sheave.tar is missing; run: make image");
        // Of whatever build it was: it is made of the programs beside this one when a cluster comes up.
        let _ = std::fs::remove_file(folder().join("../../target/images/testpod.tar"));
        Ok(Self { program: std::env::current_exe()? })
    }

    fn binaries(&self) -> Result<&Path> {
        self.program.parent().context("this program's folder")
    }

    /// One cluster from nothing, these parts measured in it, and down.
    pub(super) fn round(&self, arm: Arm, parts: &[Part]) -> Result<Found> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let up = Command::new(folder().join("up"))
            .env("NODES", NODES)
            .env("PROXY", arm.name())
            .env("SHEAVE_BIN_DIR", self.binaries()?)
            .stdin(Stdio::null())
            .status()
            .context("tests/cluster/up")?;
        ensure!(up.success(), "tests/cluster/up: {up}; its last lines say why");
        let _cluster = Cluster;
        let parts: Vec<_> = parts.iter().map(|part| part.name()).collect();
        let output = Command::new(folder().join("in"))
            .arg("world")
            .arg(&self.program)
            .args(["cluster-round", "--arm", arm.name(), "--started", &started.to_string()])
            .args(["--parts", &parts.join(",")])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("tests/cluster/in world")?;
        let found = serde_json::from_slice(&output.stdout);
        if !output.status.success() || found.is_err() {
            let _ = script("collect", &[]); // the logs have the reason; what is collected is more of it
        }
        ensure!(output.status.success(), "the round ended with {}", output.status);
        found.context("what the round said")
    }
}
