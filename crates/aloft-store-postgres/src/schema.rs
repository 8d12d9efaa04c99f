//! The schema and its migrations. Append-only: a migration that has shipped is never edited, and the version before can
//! work with its result, so that control planes of both run beside each other during an upgrade.

use aloft_store::StoreError;
use tokio_postgres::Client;

use crate::error::from_postgres;

/// Every migration in order; `schema_version` counts those applied.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_engine.sql"),
    include_str!("../migrations/0002_parents.sql"),
    include_str!("../migrations/0003_workers.sql"),
    include_str!("../migrations/0004_retention.sql"),
    include_str!("../migrations/0005_children.sql"),
];

/// Held while migrating, so that control planes that start together migrate once. "ALFT", and 1.
const LOCK: i64 = 0x414c_4654_0000_0001;

/// How many migrations later an older program still works with the schema: the one before.
const COMPATIBLE: i64 = 1;

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
    if found > known + COMPATIBLE {
        return Err(StoreError::Newer { found, known });
    }
    if found < known {
        for sql in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
            tx.batch_execute(sql).await.map_err(from_postgres)?;
        }
        let sql = if found == 0 {
            "INSERT INTO schema_version VALUES ($1)"
        } else {
            "UPDATE schema_version SET version = $1"
        };
        tx.execute(sql, &[&known]).await.map_err(from_postgres)?;
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
