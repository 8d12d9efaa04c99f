//! The `aloft.v1` wire interface: messages and enums generated at build time from `proto/`, and their descriptor set for
//! gRPC reflection. What Flyte 2 does not define is here.

#[allow(clippy::all, missing_docs, unused, rustdoc::all, non_camel_case_types, unreachable_pub)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/_proto.rs"));
}

pub use generated::aloft::v1;

/// The serialized `google.protobuf.FileDescriptorSet` of these types and of what they import.
pub static FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/aloft.fds"));
