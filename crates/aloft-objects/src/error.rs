//! What can go wrong with objects, in words for the person who reads them.

use std::{error::Error as StdError, io};

use crate::uri::{InvalidUri, Uri, UriProblem};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{uri} does not exist")]
    NotFound { uri: Uri },
    #[error("{uri} already exists, and was to be written only if it did not")]
    AlreadyExists { uri: Uri },
    #[error(
        "{uri} cannot be written: on a local disk a name is either an object or a directory, and {other} already \
         exists; delete it or choose another name"
    )]
    Occupied {
        uri: Uri,
        /// What stands in the way.
        other: String,
    },
    #[error("{uri} has {size} bytes, more than the {max} allowed here")]
    TooLarge { uri: Uri, size: u64, max: u64 },
    #[error("{uri} has {size} bytes; the requested range lies outside of it")]
    BadRange { uri: Uri, size: u64 },
    #[error("{uri} is in another bucket; this store serves s3://{bucket}")]
    OtherBucket { uri: Uri, bucket: String },
    #[error(transparent)]
    InvalidUri(#[from] InvalidUri),
    #[error("{subject} may not {verb} {what}; its credentials allow {verb} under {allowed}")]
    Denied {
        /// Whose credentials they are, as in [`Claims::subject`](crate::Claims::subject).
        subject: String,
        verb: &'static str,
        what: String,
        allowed: String,
    },
    #[error("claims of {bytes} bytes do not fit into credentials (at most {max}); grant fewer or shorter prefixes")]
    ClaimsTooLarge { bytes: usize, max: usize },
    #[error("the content of {uri} was refused: {rejection}")]
    Rejected { uri: Uri, rejection: Rejection },
    #[error("there is no upload {upload} of {uri}: it was completed, aborted or has expired; start it again")]
    NoSuchUpload { uri: Uri, upload: String },
    #[error("part {part} of the upload of {uri} is missing or not the one that was sent; send it again")]
    InvalidPart { uri: Uri, part: u32 },
    #[error("the parts of the upload of {uri} are not in ascending order")]
    InvalidPartOrder { uri: Uri },
    #[error("{value:?} is not a usable endpoint: {reason}")]
    InvalidEndpoint { value: String, reason: &'static str },
    #[error("{name:?} cannot be sent as a header; use printable ASCII")]
    InvalidMetadata { name: String },
    #[error("a presigned URL may be valid for 1 second to 7 days, not {seconds} seconds")]
    InvalidExpiry { seconds: u64 },
    #[error("no space left to write {uri}; free some space on the object store's disk (or raise its quota) and retry")]
    Full { uri: Uri, source: io::Error },
    #[error("the object store failed on {uri}; check that its directory exists, is writable and its disk healthy")]
    Unavailable {
        uri: Uri,
        #[source]
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// Why the bytes that a client sent were not stored.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    #[error("its MD5 is not the one announced in Content-MD5")]
    Md5,
    #[error("its SHA-256 is not the one announced in x-amz-content-sha256")]
    Sha256,
    #[error("the signature of one of its chunks is wrong")]
    Signature,
    #[error("its checksum is not the one announced in {0}")]
    Checksum(&'static str),
    #[error("{received} bytes arrived of the {announced} announced")]
    Length { received: u64, announced: u64 },
    #[error("the connection failed while it was being sent")]
    Broken(#[source] Box<dyn StdError + Send + Sync>),
}

/// Judges a failure of the backend on `uri` by the operating system's error at the root of it, because the backend's
/// own error type has one variant for all of them.
pub(crate) fn from_backend(uri: &Uri, error: object_store::Error) -> Error {
    match &error {
        object_store::Error::NotFound { .. } => return Error::NotFound { uri: uri.clone() },
        object_store::Error::AlreadyExists { .. } => return Error::AlreadyExists { uri: uri.clone() },
        _ => {}
    }
    match io_kind(&error) {
        Some(kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)) => {
            Error::Full { uri: uri.clone(), source: kind.into() }
        }
        Some(io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists) => {
            Error::Occupied { uri: uri.clone(), other: "an object at one of its parent names".to_owned() }
        }
        Some(io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty) => {
            Error::Occupied { uri: uri.clone(), other: format!("an object below {uri}/") }
        }
        Some(io::ErrorKind::InvalidFilename) => InvalidUri::new(&uri.to_string(), UriProblem::SegmentTooLong).into(),
        _ => Error::Unavailable { uri: uri.clone(), source: Box::new(error) },
    }
}

/// The same for reads and deletes, where a name below an object (or a name that is a directory) is just absent.
pub(crate) fn from_backend_absent(uri: &Uri, error: object_store::Error) -> Error {
    match from_backend(uri, error) {
        Error::Occupied { uri, .. } => Error::NotFound { uri },
        other => other,
    }
}

fn io_kind(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}
