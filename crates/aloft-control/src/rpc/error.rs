//! The one place where refusals and failures become codes of the wire.

use aloft_core::{BadName, Refusal};
use aloft_plane::PlaneError;
use aloft_store::{StoreError, SubmitError};
use connectrpc::{ConnectError, ErrorCode};

use crate::queues::QueueRefusal;

/// What every handler returns.
pub(super) type Answer<T> = Result<T, ConnectError>;

/// An error of an RPC before it is one of the wire. A newtype because neither side is ours.
pub(super) struct Failure(ConnectError);

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

/// Turns any error of ours into the wire's.
pub(super) fn wire<E: Into<Failure>>(error: E) -> ConnectError {
    error.into().0
}

/// A text of the client's to repeat to it: not longer than helps.
pub(super) fn shortened(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(200) {
        None => text.into(),
        Some((end, _)) => format!("{}…", &text[..end]).into(),
    }
}

/// Refuses a text of more than `max` bytes: what is not a user's value stays small (design rule 7).
pub(super) fn bounded(field: &str, text: &str, max: usize) -> Answer<()> {
    if text.len() > max {
        return Err(invalid(format!("{field}: has {} bytes, more than the {max} allowed", text.len())));
    }
    Ok(())
}

/// A field is wrong.
pub(super) fn invalid(message: impl Into<String>) -> ConnectError {
    ConnectError::new(ErrorCode::InvalidArgument, message)
}

/// The object does not exist.
pub(super) fn not_found(message: impl Into<String>) -> ConnectError {
    ConnectError::new(ErrorCode::NotFound, message)
}

/// A part of the contract that is not built yet.
pub(super) fn unimplemented(message: impl Into<String>) -> ConnectError {
    ConnectError::new(ErrorCode::Unimplemented, message)
}

/// The server is stopping. UNAVAILABLE and not CANCELED, which would end the SDK's informer for good.
pub(super) fn stopping() -> ConnectError {
    ConnectError::new(ErrorCode::Unavailable, "the server is stopping; connect again")
}

impl From<BadName> for Failure {
    fn from(error: BadName) -> Self {
        Self(invalid(error.to_string()))
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::NoSuchRun
            | Refusal::NoSuchAction(_)
            | Refusal::NoSuchParent(_)
            | Refusal::NotIntroduced(_)
            | Refusal::NoSuchQueue(_) => ErrorCode::NotFound,
            Refusal::Outdated => ErrorCode::Unavailable,
            // The SDK's controller slows down and tries again for as long as it takes.
            Refusal::Full { .. } => ErrorCode::ResourceExhausted,
            // Final for the action, where the SDK would try FAILED_PRECONDITION a hundred times.
            Refusal::QueueClosed { .. } | Refusal::WrongSignal { .. } | Refusal::NotACondition(_) => {
                ErrorCode::InvalidArgument
            }
            Refusal::DifferentWork { .. } => ErrorCode::AlreadyExists,
            // The SDK's controller stops its task on ABORTED, and retries FAILED_PRECONDITION a hundred times.
            Refusal::AncestorEnded { .. } => ErrorCode::Aborted,
            Refusal::Tracked
            | Refusal::NotTracked
            | Refusal::Unheard { .. }
            | Refusal::Ended { .. }
            | Refusal::Fenced { .. }
            | Refusal::NotReady(_)
            | Refusal::SignalledAlready(_) => ErrorCode::FailedPrecondition,
            Refusal::TraceNotEnded(_) | Refusal::TooDeep(_) => ErrorCode::InvalidArgument,
        };
        Self(ConnectError::new(code, refusal.to_string()))
    }
}

impl From<QueueRefusal> for Failure {
    fn from(refusal: QueueRefusal) -> Self {
        let code = match refusal {
            QueueRefusal::Missing(_) => ErrorCode::NotFound,
            QueueRefusal::Exists { .. } => ErrorCode::AlreadyExists,
            QueueRefusal::Deleted(_) | QueueRefusal::Default(_) | QueueRefusal::HasWork { .. } => {
                ErrorCode::FailedPrecondition
            }
            QueueRefusal::Changed { .. } | QueueRefusal::Busy(_) => ErrorCode::Aborted,
            QueueRefusal::TooMany => ErrorCode::ResourceExhausted,
        };
        Self(ConnectError::new(code, refusal.to_string()))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Unavailable(_) | StoreError::TurnOver => ErrorCode::Unavailable,
            // Not UNAVAILABLE: clients would retry blindly and fill the log.
            StoreError::Full(_) => ErrorCode::ResourceExhausted,
            StoreError::Corrupt(_) | StoreError::Newer { .. } => ErrorCode::DataLoss,
            StoreError::BadToken | StoreError::Expired | StoreError::TooManyRows => ErrorCode::InvalidArgument,
        };
        if matches!(code, ErrorCode::DataLoss) {
            tracing::error!(%error, "the store is damaged");
        }
        Self(ConnectError::new(code, error.to_string()))
    }
}

impl From<SubmitError> for Failure {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Refused(refusal) => refusal.into(),
            SubmitError::Store(error) => error.into(),
        }
    }
}

impl From<PlaneError> for Failure {
    fn from(error: PlaneError) -> Self {
        let code = match error {
            PlaneError::NotFound(_) => ErrorCode::NotFound,
            PlaneError::Invalid { .. } => ErrorCode::InvalidArgument,
            PlaneError::Exists(_) => ErrorCode::AlreadyExists,
            PlaneError::Denied(_) => ErrorCode::PermissionDenied,
            PlaneError::Exhausted(_) => ErrorCode::ResourceExhausted,
            PlaneError::Unsupported(_) => ErrorCode::Unimplemented,
            PlaneError::Unavailable(_) => ErrorCode::Unavailable,
        };
        Self(ConnectError::new(code, error.to_string()))
    }
}
