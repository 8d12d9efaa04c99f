//! The schema and its migrations. Append-only: a migration that has shipped is never edited.

use aloft_store::StoreError;
use rusqlite::Connection;

use crate::error;

/// Every migration in order; `user_version` counts those applied.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_runs.sql")];

/// Marks the file as ours (`PRAGMA application_id`): "ALFT".
const APPLICATION_ID: i64 = 0x414c_4654;

fn pragma(db: &Connection, name: &str) -> Result<i64, StoreError> {
    db.pragma_query_value(None, name, |row| row.get(0)).map_err(error::from_sqlite)
}

/// Refuses what is damaged, of another program, or newer. Only reads.
pub(crate) fn check(db: &Connection) -> Result<(), StoreError> {
    let tables: i64 =
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(error::from_sqlite)?;
    if tables > 0 && pragma(db, "application_id")? != APPLICATION_ID {
        return Err(StoreError::Corrupt("the file is a database of another program".to_owned()));
    }
    let (found, known) = (pragma(db, "user_version")?, MIGRATIONS.len() as i64);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    Ok(())
}

/// Applies the migrations that are missing, all or none.
pub(crate) fn migrate(db: &mut Connection) -> Result<(), StoreError> {
    let found = usize::try_from(pragma(db, "user_version")?).unwrap_or(0);
    if found == MIGRATIONS.len() {
        return Ok(());
    }
    let tx = db.transaction().map_err(error::from_sqlite)?;
    for sql in MIGRATIONS.iter().skip(found) {
        tx.execute_batch(sql).map_err(error::from_sqlite)?;
    }
    tx.pragma_update(None, "application_id", APPLICATION_ID).map_err(error::from_sqlite)?;
    tx.pragma_update(None, "user_version", MIGRATIONS.len() as i64).map_err(error::from_sqlite)?;
    tx.commit().map_err(error::from_sqlite)
}
