//! What an installation is made of, looked at without a cluster: manifests, image, alerts and dashboard, and the pages that
//! say how to use them. What needs an API server is in `server.rs`, what needs nodes in the cluster's own suite.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is how a test fails")]

mod image;
mod manifests;
mod monitoring;
mod pages;
mod rendered;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Runs a program in the project's folder; what it says belongs to the caller's judgement.
fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).current_dir(root()).output();
    output.unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a program that has to succeed; its standard output.
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A folder for one test, empty.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder); // from an earlier run, or not there
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
