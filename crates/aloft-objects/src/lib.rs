//! Aloft's object store: where every input, output, code bundle and report lives.
//!
//! - [`Uri`] names an object (`s3://bucket/key`), and is how the rest of the platform refers to data.
//! - [`Keys`] turns one master secret into credentials that carry their own [`Claims`]: any server that holds the
//!   secret can verify them, so there is nothing to store, replicate or revoke one by one (they expire).
//! - [`Objects`] reads, writes, lists and presigns. It sits on the `object_store` crate; what is written is on disk
//!   when the call returns.
//! - [`s3::endpoint`] serves the same objects over the S3 protocol, so that the SDK's own S3 client and presigned URLs
//!   are the real thing on a laptop too.
//!
//! Invariant: object keys reach the file system only through `layout`, which cannot produce a path outside the store.
//!
//! Invariant: the S3 endpoint reaches objects only through `s3::caller`, which hands out a [`Uri`] once the request's
//! claims allow it.

mod error;
mod keys;
mod layout;
mod listing;
mod presign;
pub mod s3;
mod scope;
mod store;
mod upload;
mod uri;

pub use crate::{
    error::{Error, Rejection, Result},
    keys::{Claims, Credentials, Keys, Refused},
    presign::{PresignPut, Presigned},
    scope::{Prefix, Scope},
    store::{Entry, Listing, Meta, Objects, Written},
    upload::Swept,
    uri::{InvalidUri, Uri, UriProblem},
};
