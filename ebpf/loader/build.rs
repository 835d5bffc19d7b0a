//! Builds `ebpf/programs` for the BPF target and leaves the object in OUT_DIR, where `src/object.rs` embeds it.
//!
//! The programs need `core` built for a target that no toolchain ships it for, so the standard library's source must be
//! there: either Debian's rustc with its rust-src package, or a rustup nightly with that component.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What to do where neither toolchain is found.
const INSTALL: &str = "\
the eBPF programs can't be built: no Rust toolchain with the standard library's source, or no bpf-linker. Install with one of
(bpf-linker's feature names the LLVM that `rustc -vV` says, whose development package must be there)
  apt-get install -y rustc-web rust-web-src cargo-web llvm-22-dev libpolly-22-dev zlib1g-dev libzstd-dev cmake && LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22
  rustup toolchain install nightly --component rust-src && cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let ebpf = PathBuf::from(var("CARGO_MANIFEST_DIR")?).join("..");
    println!("cargo::rerun-if-changed=build.rs");
    for (name, files) in [
        ("programs", ["Cargo.toml", "Cargo.lock", "src"].as_slice()),
        ("datapath", &["Cargo.toml", "src"]),
        ("abi", &["Cargo.toml", "src"]),
    ] {
        for file in files {
            println!("cargo::rerun-if-changed={}", ebpf.join(name).join(file).display());
        }
    }
    let (Some(toolchain), Some(linker)) = (Toolchain::find(), bpf_linker()) else {
        return Err(INSTALL.to_owned());
    };
    let out = PathBuf::from(var("OUT_DIR")?);
    let target = if var("CARGO_CFG_TARGET_ENDIAN")? == "big" { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let target_dir = target_dir(&out);
    let mut cargo = Command::new(toolchain.bin().join("cargo"));
    inherit(&mut cargo, &linker);
    cargo
        .env("RUSTC", toolchain.bin().join("rustc"))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&var("CARGO_CFG_TARGET_ARCH")?))
        .current_dir(ebpf.join("programs"))
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", target, "--target-dir"])
        .arg(&target_dir);
    let status = cargo.status().map_err(|error| format!("{}: {error}", cargo.get_program().display()))?;
    if !status.success() {
        return Err(format!("building ebpf/programs failed ({status}) with {toolchain:?}; its errors are above"));
    }
    let object = target_dir.join(target).join("release/sheave");
    fs::copy(&object, out.join("programs.o")).map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}

fn var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}

/// Debug info and the linker's flag make BTF, which the maps' definitions are in; the bindings want to know the machine.
fn rustflags(arch: &str) -> String {
    ["-Cdebuginfo=2", "-Clink-arg=--btf", &format!("--cfg=bpf_target_arch=\"{arch}\"")].join("\x1f")
}

/// `target/bpf`, so that builds of every profile share it; OUT_DIR where that can't be found. Cargo marks its target folder.
fn target_dir(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    target.map_or_else(|| out.join("bpf"), |target| target.join("bpf"))
}

/// Leaves the outer cargo's settings out: they are about another toolchain and target, and RUSTFLAGS or a wrapper for clippy
/// would spoil the build. Where cargo keeps its downloads and how it reaches the network stays.
fn inherit(cargo: &mut Command, linker: &Path) {
    let keep = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_HOME"];
    let outer = ["CARGO", "RUST", "CLIPPY_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let is = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        let of_build = ["OUT_DIR", "TARGET", "HOST", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS", "MAKEFLAGS"];
        if (is(&outer) && !is(&keep)) || of_build.contains(&text.as_ref()) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTC_BOOTSTRAP", "1");
    let mut path = OsString::from(linker);
    if let Some(old) = env::var_os("PATH") {
        path.push(":");
        path.push(old);
    }
    cargo.env("PATH", path);
}

/// A cargo and rustc that have the standard library's source.
#[derive(Debug)]
enum Toolchain {
    /// The distribution's.
    System,
    /// A rustup toolchain, by its folder.
    Rustup(PathBuf),
}

impl Toolchain {
    fn find() -> Option<Self> {
        let system = Path::new("/usr/bin/cargo").exists() && has_source(Path::new("/usr/bin/rustc"));
        if system { Some(Self::System) } else { Self::nightlies().into_iter().next_back().map(Self::Rustup) }
    }

    /// The nightly toolchains of rustup that have the source, oldest name first. Looked up by folder, since asking rustup for
    /// one that isn't there would install it.
    fn nightlies() -> Vec<PathBuf> {
        let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".rustup")));
        let Some(folder) = home.and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else { return Vec::new() };
        let paths = folder.flatten().map(|entry| entry.path());
        let nightly =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly"));
        let mut found: Vec<_> = paths.filter(nightly).filter(|path| has_source(&path.join("bin/rustc"))).collect();
        found.sort();
        found
    }

    fn bin(&self) -> PathBuf {
        match self {
            Self::System => PathBuf::from("/usr/bin"),
            Self::Rustup(folder) => folder.join("bin"),
        }
    }
}

/// Whether a compiler runs and its standard library's source is installed.
fn has_source(rustc: &Path) -> bool {
    // The outer rustup's choice must not reach a rustc that happens to be a rustup proxy.
    let output = Command::new(rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN").output();
    let Ok(output) = output else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// The folder that bpf-linker is in: on the PATH, or where `cargo install` puts it.
fn bpf_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home()?.join(".cargo")));
    let folders = env::split_paths(&path).chain(cargo.map(|home| home.join("bin")));
    folders.into_iter().find(|folder| folder.join("bpf-linker").is_file())
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}
