//! SQLite's errors as the store's.

use aloft_store::StoreError;
use rusqlite::{Error, ErrorCode};

/// The store error that tells a person what to do about `error`.
pub(crate) fn from_sqlite(error: Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(error.to_string()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt(error.to_string()),
        // A full disk shows as an I/O error when SQLite extends its log by mapping or truncating.
        Some(ErrorCode::SystemIoFailure) if error.to_string().contains("full") => StoreError::Full(error.to_string()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// A row that cannot be what we wrote.
pub(crate) fn corrupt(what: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {error}"))
}
