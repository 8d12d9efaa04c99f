//! The `flyteidl2` wire interface: messages and enums generated at build time from `idl/flyteidl2.fds`, and that
//! descriptor set itself for gRPC reflection and for the list of services and methods.
//!
//! Quarantined in a crate of its own because it is by far the largest unit of the build: nothing here is written by hand
//! and it is rebuilt only when the descriptor set changes (`make refresh-idl`).

#[allow(clippy::all, missing_docs, unused, rustdoc::all, non_camel_case_types, unreachable_pub)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/_idl.rs"));
}

pub use generated::*;

/// The serialized `google.protobuf.FileDescriptorSet` these types were generated from.
pub static FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("../../../idl/flyteidl2.fds");
