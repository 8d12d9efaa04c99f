//! Compiles `proto/` and generates Rust from it. Reads nothing else; needs no protoc.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    // Asked for when it runs: a build directory that several clones share keeps this program from one of them.
    let home = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = home.join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let names = proto_files(&root);
    let mut compiler = protox::Compiler::new([&root]).expect("proto/ is part of the repository");
    // With what they import: the descriptor set is served by reflection.
    compiler.include_imports(true);
    if let Err(error) = compiler.open_files(&names) {
        panic!("{error:?}");
    }
    let fds = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("aloft.fds");
    fs::write(&fds, compiler.encode_file_descriptor_set()).expect("write the descriptor set");
    buffa_build::Config::new()
        .descriptor_set(&fds)
        .files(&names)
        // The client of `connectrpc` reads answers as views.
        .generate_views(true)
        .generate_json(true)
        .generate_text(false)
        .generate_with_setters(false)
        .file_per_package(true)
        .exclude_package("google.protobuf")
        .include_file("_proto.rs")
        .compile()
        .expect("generate Rust from proto/");
}

/// Every `.proto` file, as its name in imports, in a stable order.
fn proto_files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("read proto/") {
            let path = entry.expect("read proto/").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "proto") {
                let name = path.strip_prefix(root).expect("below proto/");
                found.push(name.to_str().expect("a name in UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}
