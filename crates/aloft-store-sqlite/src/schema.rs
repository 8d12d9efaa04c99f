//! The schema and its migrations. Append-only: a migration that has shipped is never edited.

use aloft_store::StoreError;
use rusqlite::Connection;

use crate::error;

/// Every migration in order; `user_version` counts those applied.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_runs.sql")];

/// Marks the file as ours (`PRAGMA application_id`): "ALFT".
const APPLICATION_ID: i64 = 0x414c_4654;

/// Prepares `db`: refuses what is not ours, damaged or newer, and applies what is missing.
pub(crate) fn migrate(db: &mut Connection) -> Result<(), StoreError> {
    let get = |db: &Connection, pragma: &str| -> Result<i64, StoreError> {
        db.pragma_query_value(None, pragma, |row| row.get(0)).map_err(error::from_sqlite)
    };
    let id = get(db, "application_id")?;
    let found = get(db, "user_version")?;
    let known = MIGRATIONS.len() as i64;
    if id != APPLICATION_ID {
        let tables: i64 = db
            .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
            .map_err(error::from_sqlite)?;
        if tables > 0 {
            return Err(StoreError::Corrupt("the file is a database of another program".to_owned()));
        }
    }
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    let tx = db.transaction().map_err(error::from_sqlite)?;
    for sql in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(sql).map_err(error::from_sqlite)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(error::from_sqlite)?;
    tx.pragma_update(None, "user_version", known).map_err(error::from_sqlite)?;
    tx.commit().map_err(error::from_sqlite)
}
