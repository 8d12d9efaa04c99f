//! What is kept of places: domains, and the settings of organisations, domains and projects.

use aloft_core::{Scope, Time};
use aloft_store::{Domain, DomainUse, SettingsKey, SettingsVersion, Site};
use bytes::Bytes;
use rusqlite::{Connection, Row, params};

use crate::{
    error,
    read::{self, Result, get, rows},
};

/// What a write answers; its errors are turned into the store's by the writer.
type Written = std::result::Result<bool, rusqlite::Error>;

pub(crate) fn insert_domain(db: &Connection, domain: &Domain) -> Written {
    let sql = "INSERT OR IGNORE INTO domains (org, id, name, created_at) VALUES (?1, ?2, ?3, ?4)";
    let values = params![domain.org, domain.id, domain.name, domain.created_at.as_micros()];
    Ok(db.prepare_cached(sql)?.execute(values)? > 0)
}

pub(crate) fn seed_domains(db: &Connection, org: &str, domains: &[Domain]) -> Written {
    let sql = "SELECT EXISTS (SELECT 1 FROM domains WHERE org = ?1)";
    if db.prepare_cached(sql)?.query_row([org], |row| row.get(0))? {
        return Ok(false);
    }
    for domain in domains.iter().filter(|d| d.org == org) {
        insert_domain(db, domain)?;
    }
    Ok(true)
}

pub(crate) fn rename_domain(db: &Connection, org: &str, id: &str, name: &str) -> Written {
    let sql = "UPDATE domains SET name = ?3 WHERE org = ?1 AND id = ?2";
    Ok(db.prepare_cached(sql)?.execute([org, id, name])? > 0)
}

/// Runs and deployed tasks of domain ?2 of organisation ?1. Both are looked up project by project, as their indexes begin;
/// states 2 and 3 are those of the platform's own projects.
const RUNS: &str =
    "FROM projects p JOIN runs r ON r.org = p.org AND r.project = p.id AND r.domain = ?2 WHERE p.org = ?1";
const TASKS: &str = "FROM projects p JOIN tasks t ON t.org = p.org AND t.project = p.id AND t.domain = ?2
                     WHERE p.org = ?1 AND json_extract(CAST(p.body AS TEXT), '$.state') NOT IN (2, 3)";

pub(crate) fn delete_domain(db: &Connection, org: &str, id: &str) -> Written {
    let sql = format!(
        "DELETE FROM domains WHERE org = ?1 AND id = ?2 AND NOT EXISTS (SELECT 1 {RUNS}) AND NOT EXISTS (SELECT 1 {TASKS})
                               AND (SELECT count(*) FROM domains WHERE org = ?1) > 1"
    );
    Ok(db.prepare_cached(&sql)?.execute([org, id])? > 0)
}

pub(crate) fn domain_use(db: &Connection, org: &str, id: &str) -> Result<DomainUse> {
    let sql = format!("SELECT (SELECT count(*) {RUNS}), (SELECT count(*) {TASKS})");
    let found = rows(db, &sql, &[&org, &id], |row| {
        let count = |column| Ok(get::<i64>(row, column)?.unsigned_abs());
        Ok(DomainUse { runs: count(0)?, tasks: count(1)? })
    })?;
    Ok(found.into_iter().next().unwrap_or_default())
}

fn domain_row(row: &Row<'_>) -> Result<Domain> {
    let created_at = Time::from_micros(get(row, 3)?);
    Ok(Domain { org: get(row, 0)?, id: get(row, 1)?, name: get(row, 2)?, created_at })
}

pub(crate) fn domain(db: &Connection, org: &str, id: &str) -> Result<Option<Domain>> {
    let sql = "SELECT org, id, name, created_at FROM domains WHERE org = ?1 AND id = ?2";
    Ok(rows(db, sql, &[&org, &id], domain_row)?.into_iter().next())
}

pub(crate) fn domains(db: &Connection, org: &str) -> Result<Vec<Domain>> {
    rows(db, "SELECT org, id, name, created_at FROM domains WHERE org = ?1 ORDER BY pos", &[&org], domain_row)
}

pub(crate) fn put_settings(db: &Connection, version: &SettingsVersion) -> Written {
    let editor =
        serde_json::to_vec(&version.edited_by).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    let key = &version.key;
    let sql = "INSERT INTO settings (org, domain, project, version, body, edited_at, edited_by, request)
               SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8
               WHERE ?4 = 1 + (SELECT coalesce(max(version), 0) FROM settings
                               WHERE org = ?1 AND domain = ?2 AND project = ?3)";
    let changed = db.prepare_cached(sql)?.execute(params![
        key.org,
        key.domain,
        key.project,
        i64::try_from(version.version).unwrap_or(i64::MAX),
        version.body.as_ref(),
        version.edited_at.as_micros(),
        editor,
        version.request
    ])?;
    Ok(changed > 0)
}

const COLUMNS: &str = "s.org, s.domain, s.project, s.version, s.body, s.edited_at, s.edited_by, s.request";

fn version_row(row: &Row<'_>) -> Result<SettingsVersion> {
    let edited_by = serde_json::from_slice(&get::<Vec<u8>>(row, 6)?)
        .map_err(|e| error::corrupt("who edited a version of the settings", e))?;
    Ok(SettingsVersion {
        key: SettingsKey { org: get(row, 0)?, domain: get(row, 1)?, project: get(row, 2)? },
        version: get::<i64>(row, 3)?.unsigned_abs(),
        body: Bytes::from(get::<Vec<u8>>(row, 4)?),
        edited_at: Time::from_micros(get(row, 5)?),
        edited_by,
        request: get(row, 7)?,
    })
}

pub(crate) fn settings_at(db: &Connection, key: &SettingsKey) -> Result<Vec<SettingsVersion>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM settings s WHERE s.org = ?1 AND s.domain = ?2 AND s.project = ?3
         ORDER BY s.version DESC LIMIT 1"
    );
    let mut found = Vec::new();
    for level in key.levels() {
        found.extend(rows(db, &sql, &[&level.org, &level.domain, &level.project], version_row)?);
    }
    Ok(found)
}

/// The revision of what runs are created by.
pub(crate) fn revision(db: &Connection) -> std::result::Result<u64, rusqlite::Error> {
    let found: i64 = db.prepare_cached("SELECT revision FROM site_revision")?.query_row([], |row| row.get(0))?;
    Ok(found.unsigned_abs())
}

/// What is changed while this reads is newer than the revision, which is read first.
pub(crate) fn site(db: &Connection, scope: &Scope) -> Result<Site> {
    let Scope { org, domain, project } = scope.clone();
    let key = SettingsKey { org, domain, project };
    Ok(Site {
        revision: revision(db).map_err(error::from_sqlite)?,
        project: read::project(db, &key.org, &key.project)?,
        domains: domains(db, &key.org)?,
        settings: settings_at(db, &key)?,
    })
}

pub(crate) fn settings_history(
    db: &Connection,
    key: &SettingsKey,
    after: u64,
    limit: usize,
) -> Result<Vec<SettingsVersion>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM settings s
         WHERE s.org = ?1 AND s.domain = ?2 AND s.project = ?3 AND s.version > ?4 ORDER BY s.version LIMIT ?5"
    );
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    rows(db, &sql, &[&key.org, &key.domain, &key.project, &after, &limit], version_row)
}
