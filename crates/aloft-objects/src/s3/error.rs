//! From [`Error`] to what S3 clients understand.

use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};

use crate::{
    error::{Error, Rejection},
    uri::UriProblem,
};

pub(super) fn s3_error_of(error: Error) -> S3Error {
    let message = error.to_string();
    let (code, status) = code_of(&error);
    // What the client did is the client's to report; what happened to the disk is ours.
    if let Error::Full { source, .. } = &error {
        tracing::error!(error = source as &dyn std::error::Error, "{message}");
    }
    if let Error::Unavailable { source, .. } = &error {
        let source: &(dyn std::error::Error + 'static) = source.as_ref();
        tracing::error!(error = source, "{message}");
    }
    let mut s3 = S3Error::with_message(code, message);
    if let Some(status) = status {
        s3.set_status_code(status);
    }
    s3
}

/// The code, and the status where the code does not imply it.
fn code_of(error: &Error) -> (S3ErrorCode, Option<StatusCode>) {
    let custom = |code: &'static str, status| (S3ErrorCode::Custom(code.into()), Some(status));
    let code = match error {
        Error::NotFound { .. } => S3ErrorCode::NoSuchKey,
        Error::AlreadyExists { .. } => S3ErrorCode::PreconditionFailed,
        Error::Occupied { .. } => return custom("ObjectNameConflict", StatusCode::CONFLICT),
        Error::TooLarge { .. } => S3ErrorCode::EntityTooLarge,
        Error::BadRange { .. } => S3ErrorCode::InvalidRange,
        Error::OtherBucket { .. } => S3ErrorCode::NoSuchBucket,
        Error::InvalidUri(invalid) => match invalid.problem {
            UriProblem::KeyTooLong | UriProblem::SegmentTooLong => S3ErrorCode::KeyTooLongError,
            _ => S3ErrorCode::InvalidArgument,
        },
        Error::Denied { .. } => S3ErrorCode::AccessDenied,
        Error::Rejected { rejection, .. } => match rejection {
            Rejection::Md5 | Rejection::Checksum(_) => S3ErrorCode::BadDigest,
            Rejection::Sha256 => return custom("XAmzContentSHA256Mismatch", StatusCode::BAD_REQUEST),
            Rejection::Signature => S3ErrorCode::SignatureDoesNotMatch,
            Rejection::Length { .. } | Rejection::Broken(_) => S3ErrorCode::IncompleteBody,
        },
        Error::NoSuchUpload { .. } => S3ErrorCode::NoSuchUpload,
        Error::InvalidPart { .. } => S3ErrorCode::InvalidPart,
        Error::InvalidPartOrder { .. } => S3ErrorCode::InvalidPartOrder,
        Error::ClaimsTooLarge { .. }
        | Error::InvalidEndpoint { .. }
        | Error::InvalidExpiry { .. }
        | Error::InvalidMetadata { .. } => S3ErrorCode::InvalidArgument,
        Error::Full { .. } => return custom("InsufficientStorage", StatusCode::INSUFFICIENT_STORAGE),
        Error::Unavailable { .. } => S3ErrorCode::InternalError,
    };
    (code, None)
}
