//! The schema and its migrations. Append-only: a migration that has shipped is never edited.

use aloft_store::StoreError;
use rusqlite::Connection;

use crate::error;

/// Every migration in order; `user_version` counts those applied.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_runs.sql"),
    include_str!("../migrations/0002_contract.sql"),
    include_str!("../migrations/0003_settings.sql"),
    include_str!("../migrations/0004_queues.sql"),
    include_str!("../migrations/0005_lists.sql"),
    include_str!("../migrations/0006_parents.sql"),
    include_str!("../migrations/0007_workers.sql"),
    include_str!("../migrations/0008_retention.sql"),
    include_str!("../migrations/0009_children.sql"),
    include_str!("../migrations/0010_sums.sql"),
    include_str!("../migrations/0011_sites.sql"),
];

/// Marks the file as ours (`PRAGMA application_id`): "ALFT".
const APPLICATION_ID: i64 = 0x414c_4654;

/// Largest database, in bytes, that is checked as a whole at every start: some 20 ms.
const CHECKED_WHOLE: i64 = 8 << 20;

fn pragma(db: &Connection, name: &str) -> Result<i64, StoreError> {
    db.pragma_query_value(None, name, |row| row.get(0)).map_err(error::from_sqlite)
}

/// Refuses what is damaged, of another program, or newer. Only reads.
pub(crate) fn check(db: &Connection) -> Result<(), StoreError> {
    versions(db).map(drop)
}

/// As [`check`]; the version that was found, and the newest known.
pub(crate) fn versions(db: &Connection) -> Result<(i64, i64), StoreError> {
    let tables: i64 =
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(error::from_sqlite)?;
    if tables > 0 && pragma(db, "application_id")? != APPLICATION_ID {
        return Err(StoreError::Corrupt("the file is a database of another program".to_owned()));
    }
    let (found, known) = (pragma(db, "user_version")?, MIGRATIONS.len() as i64);
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    check_pages(db)?;
    Ok((found, known))
}

/// Looks for damage before anything is written: a server that starts on a damaged database would fail later, in the
/// middle of somebody's run.
fn check_pages(db: &Connection) -> Result<(), StoreError> {
    if pragma(db, "page_count")?.saturating_mul(pragma(db, "page_size")?) <= CHECKED_WHOLE {
        let found: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(error::from_sqlite)?;
        // The first line only says which database.
        let problem = found.lines().last().unwrap_or_default();
        return if problem == "ok" { Ok(()) } else { Err(StoreError::Corrupt(problem.to_owned())) };
    }
    // The newest row of each table lies near the end of the file, so this finds at least one that was cut short.
    let mut tables = db
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND sql NOT LIKE '%WITHOUT ROWID%'")
        .map_err(error::from_sqlite)?;
    let names = tables.query_map([], |row| row.get::<_, String>(0)).map_err(error::from_sqlite)?;
    for name in names {
        let name = name.map_err(error::from_sqlite)?.replace('"', "\"\"");
        let newest = format!("SELECT * FROM \"{name}\" ORDER BY rowid DESC LIMIT 1");
        let mut row = db.prepare(&newest).map_err(error::from_sqlite)?;
        row.query([]).and_then(|mut rows| rows.next().map(drop)).map_err(error::from_sqlite)?;
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
