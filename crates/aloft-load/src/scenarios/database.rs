//! Empty databases, and how large they have become.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio_postgres::NoTls;

use super::Setting;

/// A database of one scenario.
pub(super) struct Database {
    /// What a server is told to open.
    pub(super) url: String,
    /// The file, if it is SQLite.
    file: Option<PathBuf>,
}

impl Database {
    /// An empty one.
    pub(super) async fn fresh(setting: &Setting, name: &str) -> Result<Self> {
        if setting.is_postgres() {
            let client = connect(&setting.store).await?;
            client.batch_execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; CHECKPOINT").await?;
            return Ok(Self { url: setting.store.clone(), file: None });
        }
        let file = setting.home.join(format!("{name}.db"));
        Ok(Self { url: file.to_str().context("a path that is no text")?.to_owned(), file: Some(file) })
    }

    /// Runs statements beside the server.
    pub(super) async fn execute(&self, sql: &str) -> Result<()> {
        match &self.file {
            Some(file) => {
                let db = rusqlite::Connection::open(file)?;
                db.pragma_update(None, "synchronous", "OFF")?;
                db.pragma_update(None, "cache_size", "-262144")?;
                db.pragma_update(None, "busy_timeout", "60000")?;
                Ok(db.execute_batch(sql)?)
            }
            None => Ok(connect(&self.url).await?.batch_execute(sql).await?),
        }
    }

    /// One number.
    pub(super) async fn number(&self, sql: &str) -> Result<f64> {
        match &self.file {
            Some(file) => Ok(rusqlite::Connection::open(file)?.query_row(sql, [], |row| row.get::<_, i64>(0))? as f64),
            None => Ok(connect(&self.url).await?.query_one(sql, &[]).await?.get::<_, i64>(0) as f64),
        }
    }

    /// How often a batch was committed: all events of one have the same time in SQLite, and one place in Postgres.
    pub(super) async fn commits(&self) -> Result<f64> {
        match self.file {
            Some(_) => self.number("SELECT count(DISTINCT at) FROM events").await,
            None => self.number("SELECT pos FROM feed").await,
        }
    }

    /// Bytes of each table with its indexes, once what was rewritten has been cleaned up as the engine does it by itself.
    pub(super) async fn bytes(&self) -> Result<Vec<(String, f64)>> {
        match &self.file {
            Some(file) => {
                let db = rusqlite::Connection::open(file)?;
                db.pragma_update(None, "wal_checkpoint", "TRUNCATE")?;
                let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
                let size: i64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
                Ok(vec![("all".to_owned(), (pages * size) as f64)])
            }
            None => {
                let client = connect(&self.url).await?;
                client.batch_execute("VACUUM ANALYZE").await?;
                let sql = "SELECT relname::text, pg_total_relation_size(oid) FROM pg_class
                           WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
                let rows = client.query(sql, &[]).await?;
                Ok(rows.iter().map(|row| (row.get(0), row.get::<_, i64>(1) as f64)).collect())
            }
        }
    }
}

async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
