//! The schema and its migrations. Append-only: a migration that has shipped is never edited, and the version before can
//! work with its result, so that control planes of both run beside each other during an upgrade.

use aloft_store::StoreError;
use tokio_postgres::Client;

use crate::error::from_postgres;

/// A step of the schema.
struct Migration {
    sql: &'static str,
    /// The oldest version of the schema whose programs can work with its result.
    oldest: i64,
}

const fn since(oldest: i64, sql: &'static str) -> Migration {
    Migration { sql, oldest }
}

/// Every migration in order; `schema_version` counts those applied.
const MIGRATIONS: &[Migration] = &[
    since(1, include_str!("../migrations/0001_engine.sql")),
    since(1, include_str!("../migrations/0002_parents.sql")),
    since(2, include_str!("../migrations/0003_workers.sql")),
    since(2, include_str!("../migrations/0004_retention.sql")),
    since(2, include_str!("../migrations/0005_children.sql")),
    since(2, include_str!("../migrations/0006_cheaper.sql")),
    since(2, include_str!("../migrations/0007_sites.sql")),
    since(6, include_str!("../migrations/0008_guard.sql")),
    since(6, include_str!("../migrations/0009_turns.sql")),
];

/// Held while migrating, so that control planes that start together migrate once. "ALFT", and 1.
const LOCK: i64 = 0x414c_4654_0000_0001;

/// Applies the migrations that are missing, all or none.
pub(crate) async fn migrate(client: &mut Client) -> Result<(), StoreError> {
    let known = known();
    if version(client).await? == Some(known) {
        return Ok(());
    }
    let tx = client.transaction().await.map_err(from_postgres)?;
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(from_postgres)?;
    tx.batch_execute("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        .await
        .map_err(from_postgres)?;
    let row = tx.query_opt("SELECT version FROM schema_version", &[]).await.map_err(from_postgres)?;
    let found = row.map_or(0, |r| r.get::<_, i64>(0));
    if found > known {
        // A newer program has migrated it, and has said with which it can be shared.
        let row = tx.query_one("SELECT oldest FROM schema_version", &[]).await.map_err(from_postgres)?;
        if row.get::<_, i64>(0) > known {
            return Err(StoreError::Newer { found, known });
        }
    } else if found < known {
        let missing = MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0));
        let oldest = missing.clone().map(|m| m.oldest).max().unwrap_or(0);
        for migration in missing {
            tx.batch_execute(migration.sql).await.map_err(from_postgres)?;
        }
        let sql = if found == 0 {
            "INSERT INTO schema_version (version, oldest) VALUES ($1, $2)"
        } else {
            "UPDATE schema_version SET version = $1, oldest = greatest(oldest, $2)"
        };
        tx.execute(sql, &[&known, &oldest]).await.map_err(from_postgres)?;
    }
    tx.commit().await.map_err(from_postgres)
}

/// The version that this program has.
pub(crate) fn known() -> i64 {
    MIGRATIONS.len() as i64
}

/// The version found; `None` if there is no schema yet.
pub(crate) async fn version(client: &Client) -> Result<Option<i64>, StoreError> {
    let exists = client
        .query_one("SELECT to_regclass('schema_version') IS NOT NULL", &[])
        .await
        .map_err(from_postgres)?
        .get::<_, bool>(0);
    if !exists {
        return Ok(None);
    }
    let row = client.query_opt("SELECT version FROM schema_version", &[]).await.map_err(from_postgres)?;
    Ok(row.map(|r| r.get(0)))
}
