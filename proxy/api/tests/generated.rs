//! The committed code is what `proto/` gives. After a change of the protocol,
//! `SHEAVE_WRITE_GENERATED=1 cargo test -p sheave-api --test generated` writes it anew.

use std::path::Path;

const FILE: &str = "sheave.discovery.v1.rs";

#[test]
fn the_committed_code_is_what_the_protocol_gives() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = generate(root);
    let committed = root.join("src/gen").join(FILE);
    if std::env::var_os("SHEAVE_WRITE_GENERATED").is_some() {
        std::fs::write(&committed, &fresh).expect("the committed file is writable");
    }
    let old = std::fs::read_to_string(&committed).expect("the committed file is there");
    assert!(
        old == fresh,
        "proxy/api/src/gen/{FILE} is not what proto/ gives; write it anew with \
         SHEAVE_WRITE_GENERATED=1 cargo test -p sheave-api --test generated"
    );
}

fn generate(root: &Path) -> String {
    let out = tempfile::tempdir().expect("a temporary folder");
    let files =
        protox::compile(["discovery.proto", "operations.proto"], [root.join("proto")]).expect("the protocol compiles");
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(files)
        .expect("code is generated");
    std::fs::read_to_string(out.path().join(FILE)).expect("the file is named after the package")
}
