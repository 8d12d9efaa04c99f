//! Postgres' errors as the store's.

use aloft_store::StoreError;
use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// The store error that tells a person what to do about `error`.
pub(crate) fn from_postgres(error: tokio_postgres::Error) -> StoreError {
    let Some(db) = error.as_db_error() else {
        // No row of ours, a lost connection, a server that went away.
        return StoreError::Unavailable(describe(&error));
    };
    let code = db.code();
    if *code == SqlState::DISK_FULL {
        return StoreError::Full(db.message().to_owned());
    }
    if [SqlState::DATA_CORRUPTED, SqlState::INDEX_CORRUPTED].contains(code) {
        return StoreError::Corrupt(db.message().to_owned());
    }
    StoreError::Unavailable(format!("{} ({})", db.message(), code.code()))
}

/// As [`from_postgres`], for getting a connection.
pub(crate) fn from_pool(error: PoolError) -> StoreError {
    match error {
        PoolError::Backend(error) => from_postgres(error),
        PoolError::Timeout(_) => StoreError::Unavailable(
            "every connection to Postgres is in use or cannot be opened; raise the pool's size, or look at the server"
                .to_owned(),
        ),
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// Whether a transaction that failed with `error` may succeed when it is simply done again.
pub(crate) fn is_transient(error: &tokio_postgres::Error) -> bool {
    let retried = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE, SqlState::LOCK_NOT_AVAILABLE];
    // Another control plane made the same run a moment ago: it is there when this looks again.
    let made = error.as_db_error().is_some_and(|db| db.constraint() == Some("runs_by_name"));
    made || error.code().is_some_and(|code| retried.contains(code))
}

/// A row that cannot be what we wrote.
pub(crate) fn corrupt(what: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {error}"))
}

/// The error with its causes: the outermost of a lost connection only says that there was one.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
