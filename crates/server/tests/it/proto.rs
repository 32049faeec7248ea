//! The code generated from `proto/` is that of the files there. `UPDATE=1` writes it anew.

#![allow(
    clippy::disallowed_methods,
    reason = "the test reads and writes generated code"
)]

use std::fs;
use std::path::{Path, PathBuf};

fn generate(into: &Path) {
    let proto = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto"));
    let files = ["firn/v1/kv.proto", "firn/v1/admin.proto"];
    let descriptors = protox::compile(files, [&proto]).unwrap();
    let descriptor_file = into.join("firn.v1.bin");
    // Without comments and positions, which reflection does not need.
    let mut bare = descriptors.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(descriptor_file, prost::Message::encode_to_vec(&bare)).unwrap();
    prost_build::Config::new()
        .out_dir(into)
        .bytes(["."])
        .btree_map(["."])
        .compile_fds(descriptors)
        .unwrap();
}

#[test]
fn the_generated_code_is_fresh() {
    let home = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/grpc/generated"));
    let fresh = tempfile::tempdir().unwrap();
    generate(fresh.path());
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    if std::env::var_os("UPDATE").is_some() {
        for name in names(fresh.path()) {
            fs::copy(fresh.path().join(&name), home.join(&name)).unwrap();
        }
    }
    assert_eq!(names(&home), names(fresh.path()));
    for name in names(&home) {
        assert!(
            fs::read(home.join(&name)).unwrap() == fs::read(fresh.path().join(&name)).unwrap(),
            "{} is stale: cargo xtask proto writes it anew",
            name.display()
        );
    }
}
