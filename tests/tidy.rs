//! House rules that a machine can check: arrows between crates, sizes of files, pages that name paths, metric names.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who may depend on whom, within the workspace. A crate that is not listed may depend on nothing of ours; the design draws
/// the same arrows (ARCHITECTURE.md).
const ARROWS: &[(&str, &[&str])] = &[
    ("sheave-datapath", &["sheave-abi"]),
    ("sheave-reconcile", &["sheave-abi", "sheave-model"]),
    ("sheave-programs", &["sheave-abi", "sheave-datapath"]),
    ("sheave-loader", &["sheave-abi", "sheave-model", "sheave-reconcile"]),
    ("sheave-api", &["sheave-model"]),
    ("sheave-index", &["sheave-model"]),
    ("sheave-controller", &["sheave-model", "sheave-index", "sheave-api"]),
    ("sheave-cli", &["sheave-model", "sheave-api"]),
    ("sheave-proxy", &["sheave-abi", "sheave-model", "sheave-api", "sheave-reconcile", "sheave-loader"]),
    ("sheave-harness", &["sheave-model", "sheave-api"]),
    ("sheave-bench", &["sheave-model", "sheave-api", "sheave-harness"]),
    (
        "sheave-tests",
        &[
            "sheave-abi",
            "sheave-datapath",
            "sheave-reconcile",
            "sheave-loader",
            "sheave-model",
            "sheave-api",
            "sheave-index",
            "sheave-harness",
        ],
    ),
];

/// Crates without I/O: time and randomness are arguments.
const PURE: &[&str] = &["sheave-abi", "sheave-datapath", "sheave-reconcile", "sheave-model", "sheave-index"];

/// What a pure crate must not know.
const IMPURE: &[&str] = &["tokio", "hyper", "kube", "aya", "prost", "tonic", "rand", "socket2", "libc", "tracing"];

/// Pages whose backquoted and linked paths must exist.
const PAGES: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];

/// No source file is longer. Generated code may be.
const LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn tracked() -> Vec<String> {
    let listed =
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()).output().unwrap();
    assert!(listed.status.success(), "git ls-files failed");
    let names = String::from_utf8(listed.stdout).unwrap();
    names.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Name of each package of the workspace, and of the kernel programs' own, with the names of what it depends on in ordinary
/// builds.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    ["Cargo.toml", "ebpf/programs/Cargo.toml"].into_iter().flat_map(dependencies_in).collect()
}

fn dependencies_in(manifest: &str) -> Vec<(String, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path", manifest])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let all = package["dependencies"].as_array().unwrap();
            let ordinary = all.iter().filter(|dependency| dependency["kind"] != "dev");
            (name(package), ordinary.map(name).collect())
        })
        .collect()
}

#[test]
fn no_crate_depends_on_one_that_its_arrows_do_not_reach() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (package, needs) in dependencies() {
        let allowed = arrows.get(package.as_str()).copied().unwrap_or_default();
        for need in needs.iter().filter(|need| need.starts_with("sheave-")) {
            if !allowed.contains(&need.as_str()) {
                wrong.push(format!("{package} -> {need}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not drawn: {wrong:?}");
}

#[test]
fn pure_crates_know_no_runtime_no_client_and_no_kernel() {
    let dependencies = dependencies();
    for package in PURE {
        let needs = dependencies.get(*package).unwrap_or_else(|| panic!("{package} is no package"));
        let impure: Vec<_> = IMPURE.iter().filter(|name| needs.contains(**name)).collect();
        assert!(impure.is_empty(), "{package} is pure, and depends on {impure:?}");
    }
}

#[test]
fn no_source_file_is_too_long_to_read() {
    let long: Vec<_> = tracked()
        .into_iter()
        .filter(|name| name.ends_with(".rs") && !name.contains("/gen/"))
        .map(|name| (text(&name).lines().count(), name))
        .filter(|(lines, _)| *lines > LINES)
        .collect();
    assert!(long.is_empty(), "longer than {LINES} lines: {long:?}");
}

#[test]
fn every_source_file_opens_with_its_role() {
    let silent: Vec<_> = tracked()
        .into_iter()
        .filter(|name| name.ends_with(".rs") && !name.contains("/gen/"))
        .filter(|name| !text(name).trim_start().starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "no //! line at the top: {silent:?}");
}

/// Things that look like a path in our tree: backquoted words and link targets with a slash or a known ending.
fn paths_named(page: &str) -> Vec<String> {
    let quoted = page.split('`').skip(1).step_by(2);
    let linked = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let ours = ["proxy/", "controller/", "ebpf/", "manifests/", "bench/", "tests/", "docs/", ".ci/"];
    let is_path = |word: &&str| {
        !word.contains([' ', '*', '{', '<', ':'])
            && (ours.iter().any(|dir| word.starts_with(dir)) || word.ends_with(".md"))
    };
    quoted.chain(linked).filter(is_path).map(str::to_owned).collect()
}

#[test]
fn every_path_that_a_page_names_exists() {
    let mut missing = Vec::new();
    let mut seen = 0;
    for page in PAGES {
        for path in paths_named(&text(page)) {
            seen += 1;
            if !root().join(&path).exists() {
                missing.push(format!("{page}: {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "no such path: {missing:?}");
    assert!(seen > 20, "the pages name only {seen} paths; is the reader of pages broken?");
}

#[test]
fn unsafe_stays_where_it_belongs() {
    let may = |name: &str| {
        name.starts_with("ebpf/programs/")
            || name.starts_with("ebpf/loader/")
            || name.ends_with("/sys.rs")
            || name.contains("/sys/")
    };
    let wrong: Vec<_> = tracked()
        .into_iter()
        .filter(|name| name.ends_with(".rs") && !may(name) && !name.ends_with("tidy.rs"))
        .filter(|name| text(name).lines().any(|line| line.contains("unsafe {") || line.contains("unsafe fn")))
        .collect();
    assert!(wrong.is_empty(), "unsafe outside a sys module: {wrong:?}");
}

#[test]
fn the_metrics_page_names_what_the_sources_name_and_nothing_else() {
    let is_name = |word: &&str| word.starts_with("sheave_") && word.len() > 10 && !word.ends_with('_');
    let words = |text: &str, quote: char| -> BTreeSet<String> {
        text.split(quote)
            .filter(is_name)
            .filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
            .map(str::to_owned)
            .collect()
    };
    let sources = tracked().into_iter().filter(|name| {
        name.ends_with(".rs") && (name.starts_with("proxy/src/") || name.starts_with("controller/src/"))
    });
    // A test module speaks of series (`.._bucket`), so what follows one (not indented) in a file doesn't count.
    let code: String =
        sources.map(|name| text(&name).split("\n#[cfg(test)]").next().unwrap_or_default().to_owned()).collect();
    let crates = [
        "sheave_proxy",
        "sheave_controller",
        "sheave_model",
        "sheave_api",
        "sheave_index",
        "sheave_loader",
        "sheave_reconcile",
    ];
    let in_code: BTreeSet<String> =
        words(&code, '"').into_iter().filter(|name| !crates.contains(&name.as_str())).collect();
    let on_page = words(&text("docs/metrics.md"), '`');
    assert!(!in_code.is_empty());
    let missing: Vec<_> = in_code.difference(&on_page).collect();
    let stale: Vec<_> = on_page.difference(&in_code).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "not in docs/metrics.md: {missing:?}; not in the sources: {stale:?}"
    );
}

#[test]
fn nothing_names_a_machine_or_a_registry() {
    let words = ["/wo\u{72}k/", "/tm\u{70}/bg", "index.crates\u{2e}io", "proxy.golang\u{2e}org", "deb.debian\u{2e}org"];
    let named: Vec<_> = tracked()
        .into_iter()
        .filter(|name| !name.ends_with("Cargo.lock"))
        .filter(|name| {
            std::fs::read_to_string(root().join(name)).is_ok_and(|text| words.iter().any(|word| text.contains(word)))
        })
        .collect();
    assert!(named.is_empty(), "these files name a machine's path or a registry's host: {named:?}");
}
