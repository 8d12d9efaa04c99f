//! Generates Rust from the descriptor set in `idl/`. Reads one file and nothing else; needs no protoc.

use std::{env, path::PathBuf};

/// Packages whose messages only annotate descriptors: nothing at run time reads them.
const OPTION_ONLY: &[&str] = &["google.api", "buf.validate", "google.protobuf"];

fn main() {
    // Asked for when it runs: a build directory that several clones share keeps this program from one of them.
    let home = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let fds = home.join("../../idl/flyteidl2.fds");
    println!("cargo:rerun-if-changed={}", fds.display());
    let names = file_names(&std::fs::read(&fds).expect("idl/flyteidl2.fds is part of the repository"));
    let mut config = buffa_build::Config::new()
        .descriptor_set(&fds)
        .files(&names)
        .generate_views(false)
        .generate_json(true)
        .generate_text(false)
        .generate_with_setters(false)
        .file_per_package(true)
        .use_bytes_type()
        // Ordered, so that the same message always encodes to the same bytes and has the same digest.
        .map_type(buffa_build::MapRepr::BTreeMap)
        .include_file("_idl.rs");
    for package in OPTION_ONLY {
        config = config.exclude_package(*package);
    }
    config.compile().expect("generate Rust from idl/flyteidl2.fds");
}

/// The names of the files in a serialized `FileDescriptorSet`, without what only annotates descriptors.
fn file_names(fds: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = fds;
    while let Some((file, tail)) = length_delimited(rest) {
        if let Some((name, _)) = length_delimited(file) {
            names.push(String::from_utf8_lossy(name).into_owned());
        }
        rest = tail;
    }
    names.retain(|n| n.starts_with("flyteidl2/") || n.starts_with("google/rpc/"));
    names
}

/// The first field of `bytes`, which must be field 1 of wire type 2, and what follows it.
fn length_delimited(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&0x0a, mut rest) = bytes.split_first()? else { return None };
    let (mut len, mut shift) = (0usize, 0);
    loop {
        let (&byte, tail) = rest.split_first()?;
        rest = tail;
        len |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (len <= rest.len()).then(|| rest.split_at(len))
}
