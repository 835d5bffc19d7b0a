//! The image as `.ci/image` writes it, with small programs in place of ours: valid, the same each time, and nothing in it
//! that isn't meant to be. A release build of the real ones takes minutes; `make image` looks at them in the same way.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{output, root, scratch, succeed, text};

/// Programs of the names that go into an image, static or not.
fn programs(folder: &Path, how: &[&str]) -> PathBuf {
    let folder = folder.join("programs");
    fs::create_dir_all(&folder).unwrap();
    let first = folder.join("sheave");
    let mut compiler = Command::new("gcc");
    compiler.args(how).args(["-x", "c", "-", "-o"]).arg(&first).stdin(Stdio::piped());
    let mut compiler = compiler.spawn().unwrap();
    compiler.stdin.take().unwrap().write_all(b"int main(void) { return 0; }").unwrap();
    assert!(compiler.wait().unwrap().success());
    for name in ["sheave-controller", "sheave-proxy"] {
        fs::copy(&first, folder.join(name)).unwrap();
    }
    folder
}

fn image(programs: &Path, out: &Path) -> std::process::Output {
    output(".ci/image", &["--programs", programs.to_str().unwrap(), "--out", out.to_str().unwrap()])
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The file that a descriptor means, whose digest and size have to be true.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(digest);
    assert_eq!(descriptor["size"], fs::metadata(&path).unwrap().len());
    assert!(succeed("sha256sum", &[path.to_str().unwrap()]).starts_with(digest), "{descriptor}");
    path
}

fn unpack(archive: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    succeed("tar", &["-C", folder.to_str().unwrap(), "-xf", archive.to_str().unwrap()]);
}

#[test]
fn an_image_is_a_valid_layout_with_the_programs_and_certificates_and_the_same_each_time() {
    let folder = scratch("image");
    let programs = programs(&folder, &["-static"]);
    let outs = ["one", "two"].map(|name| folder.join(name));
    for out in &outs {
        let made = image(&programs, out);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let said = String::from_utf8(made.stdout).unwrap();
        assert!(said.contains("MiB compressed (limit 40)") && said.contains("sha256:"), "{said}");
    }
    let archives = outs.each_ref().map(|out| fs::read(out.join("sheave.tar")).unwrap());
    assert!(archives[0] == archives[1], "the same input gave two different archives");

    let layout = folder.join("layout");
    unpack(&outs[0].join("sheave.tar"), &layout);
    assert_eq!(json(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = json(&layout.join("index.json"));
    let entry = &index["manifests"][0];
    assert_eq!(entry["annotations"]["io.containerd.image.name"], "localhost/sheave:dev");
    let manifest = json(&blob(&layout, entry));
    let config = json(&blob(&layout, &manifest["config"]));
    assert_eq!(
        (&config["os"], &config["architecture"]),
        (&entry["platform"]["os"], &entry["platform"]["architecture"])
    );
    assert_eq!(config["config"]["User"], "65532:65532");
    let labels = &config["config"]["Labels"];
    assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
    assert!(text("Cargo.toml").contains(&format!("version = {}", labels["org.opencontainers.image.version"])));

    let layer = blob(&layout, &manifest["layers"][0]);
    let plain = folder.join("layer.tar");
    fs::write(&plain, output("gzip", &["-dc", layer.to_str().unwrap()]).stdout).unwrap();
    let sum = succeed("sha256sum", &[plain.to_str().unwrap()]);
    assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", &sum[..64]));
    let listed = succeed("tar", &["-tf", plain.to_str().unwrap()]);
    let files: BTreeSet<_> = listed.lines().filter(|name| !name.ends_with('/')).collect();
    let mut expected = BTreeSet::from([
        "etc/ssl/certs/ca-certificates.crt",
        "usr/bin/sheave-controller",
        "usr/bin/sheave-proxy",
        "usr/share/sheave/sbom.spdx.json",
    ]);
    if root().join("controller/cli/Cargo.toml").exists() {
        expected.insert("usr/bin/sheave");
    }
    assert_eq!(files, expected);
    materials(&json(&outs[0].join("sheave.spdx.json")));
}

/// Every crate that a program is linked with is in the bill of materials, as the lock file has it.
fn materials(bill: &Value) {
    assert_eq!(bill["spdxVersion"], "SPDX-2.3");
    let packages = bill["packages"].as_array().unwrap();
    let ids: BTreeSet<_> = packages.iter().map(|package| package["SPDXID"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), packages.len(), "ids are unique");
    let relations = bill["relationships"].as_array().unwrap();
    assert!(relations.iter().all(|relation| ids.contains(relation["relatedSpdxElement"].as_str().unwrap())));
    assert_eq!(relations.len(), packages.len());
    let find = |name: &str| packages.iter().find(|package| package["name"] == name);
    for name in ["sheave-proxy", "sheave-controller", "tokio", "rustls", "kube-client", "aya-ebpf", "libc6-dev"] {
        let package = find(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_ne!(package["licenseDeclared"], "NOASSERTION", "{name}");
    }
    assert!(
        find("proptest").is_none() && find("syn").is_none(),
        "what only tests and macros use isn't in the programs"
    );
    let tokio = find("tokio").unwrap();
    let sum = tokio["checksums"][0]["checksumValue"].as_str().unwrap();
    assert!(text("Cargo.lock").contains(sum));
}

#[test]
fn a_program_that_needs_libraries_is_refused() {
    let folder = scratch("image-dynamic");
    let made = image(&programs(&folder, &[]), &folder);
    assert!(!made.status.success());
    assert!(String::from_utf8_lossy(&made.stderr).contains("no static program"));
    assert!(!folder.join("sheave.tar").exists());
}

#[test]
fn an_image_beyond_the_limit_is_refused() {
    let folder = scratch("image-large");
    let programs = programs(&folder, &["-static"]);
    // What can't be compressed, after the end of a program.
    let mut random = fs::File::open("/dev/urandom").map(|file| std::io::Read::take(file, 41 << 20)).unwrap();
    let mut program = fs::OpenOptions::new().append(true).open(programs.join("sheave-proxy")).unwrap();
    std::io::copy(&mut random, &mut program).unwrap();
    let made = image(&programs, &folder);
    assert!(!made.status.success());
    assert!(String::from_utf8_lossy(&made.stderr).contains("more than the limit"));
    assert!(!folder.join("sheave.tar").exists());
}
