//! Cached results and reservations.

use aloft_core::{CacheEntry, CachePlan, CacheScope, Effect, Reservation, Scope, Time};
use aloft_store::StoreError;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::error::{self, from_sqlite};

/// What a reservation is of.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) scope: Scope,
    /// Empty for work that any domain of the project shares.
    pub(crate) domain: String,
    pub(crate) key: String,
}

/// What work of `scope` with this plan reserves.
pub(crate) fn place(scope: &Scope, plan: &CachePlan) -> Place {
    let domain = match plan.scope {
        CacheScope::Global => String::new(),
        CacheScope::ProjectDomain => scope.domain.clone(),
    };
    Place { scope: scope.clone(), domain, key: plan.key.clone() }
}

type Written<T> = Result<T, rusqlite::Error>;

fn written(json: serde_json::Result<Vec<u8>>) -> Written<Vec<u8>> {
    json.map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

pub(crate) fn entries(db: &Connection, scope: &Scope, plan: &CachePlan) -> Result<Vec<CacheEntry>, StoreError> {
    let sql = "SELECT body FROM cache_entries WHERE org = ?1 AND project = ?2 AND key = ?3 AND (domain = ?4 OR ?5)
               ORDER BY domain = ?4 DESC, updated_at DESC";
    let any = plan.scope == CacheScope::Global;
    let bodies: Vec<Vec<u8>> = db
        .prepare_cached(sql)
        .and_then(|mut s| {
            let key = params![scope.org, scope.project, plan.key, scope.domain, any];
            s.query_map(key, |row| row.get(0))?.collect()
        })
        .map_err(from_sqlite)?;
    bodies.iter().map(|b| serde_json::from_slice(b).map_err(|e| error::corrupt("a cache entry", e))).collect()
}

pub(crate) fn holder(db: &Connection, place: &Place) -> Result<Option<Reservation>, StoreError> {
    let sql = "SELECT body FROM cache_reservations WHERE org = ?1 AND project = ?2 AND domain = ?3 AND key = ?4";
    let body: Option<Vec<u8>> = db
        .prepare_cached(sql)
        .and_then(|mut s| {
            let key = params![place.scope.org, place.scope.project, place.domain, place.key];
            s.query_row(key, |row| row.get(0)).optional()
        })
        .map_err(from_sqlite)?;
    body.map(|b| serde_json::from_slice(&b).map_err(|e| error::corrupt("a reservation", e))).transpose()
}

pub(crate) fn put(
    tx: &Transaction<'_>,
    scope: &Scope,
    key: &str,
    entry: &CacheEntry,
    overwrite: bool,
    now: Time,
) -> Written<bool> {
    let verb = if overwrite { "INSERT OR REPLACE" } else { "INSERT OR IGNORE" };
    let sql = format!(
        "{verb} INTO cache_entries (org, project, domain, key, updated_at, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"
    );
    let body = written(serde_json::to_vec(entry))?;
    let row = params![scope.org, scope.project, scope.domain, key, entry.updated_at.as_micros(), body];
    let written = tx.prepare_cached(&sql)?.execute(row)? > 0;
    if written {
        wake(tx, key, now)?;
    }
    Ok(written)
}

pub(crate) fn forget(tx: &Transaction<'_>, scope: &Scope, key: &str, output_uri: &str) -> Written<bool> {
    let sql = "DELETE FROM cache_entries WHERE org = ?1 AND project = ?2 AND domain = ?3 AND key = ?4
               AND (?5 = '' OR json_extract(body, '$.outputs.output_uri') = ?5)";
    let key = params![scope.org, scope.project, scope.domain, key, output_uri];
    Ok(tx.prepare_cached(sql)?.execute(key)? > 0)
}

fn hold(tx: &Transaction<'_>, place: &Place, reservation: &Reservation) -> Written<()> {
    let sql = "INSERT OR REPLACE INTO cache_reservations (org, project, domain, key, body) VALUES (?1, ?2, ?3, ?4, ?5)";
    let body = written(serde_json::to_vec(reservation))?;
    let row = params![place.scope.org, place.scope.project, place.domain, place.key, body];
    tx.prepare_cached(sql)?.execute(row).map(drop)
}

/// Takes or extends the reservation; `false` if another holds it.
pub(crate) fn reserve(tx: &Transaction<'_>, place: &Place, wanted: &Reservation, now: Time) -> Written<bool> {
    let found = holder(tx, place).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    if found.is_some_and(|h| h.owner != wanted.owner && h.holds(now)) {
        return Ok(false);
    }
    hold(tx, place, wanted).map(|()| true)
}

/// Gives the reservation back, if `owner` holds it, and lets those who wait for it look again.
pub(crate) fn release(tx: &Transaction<'_>, place: &Place, owner: &str, now: Time) -> Written<bool> {
    let sql = "DELETE FROM cache_reservations WHERE org = ?1 AND project = ?2 AND domain = ?3 AND key = ?4
               AND json_extract(body, '$.owner') = ?5";
    let key = params![place.scope.org, place.scope.project, place.domain, place.key, owner];
    let released = tx.prepare_cached(sql)?.execute(key)? > 0;
    if released {
        wake(tx, &place.key, now)?;
    }
    Ok(released)
}

/// Lets the actions that wait under `key` look again. Those of other projects look once in vain.
fn wake(tx: &Transaction<'_>, key: &str, now: Time) -> Written<()> {
    tx.prepare_cached("UPDATE actions SET lookup_at = ?2 WHERE cache_key = ?1")?
        .execute(params![key, now.as_micros()])
        .map(drop)
}

pub(crate) fn carry_out(tx: &Transaction<'_>, scope: &Scope, effect: &Effect<'_>, now: Time) -> Result<(), StoreError> {
    match effect {
        Effect::Cache { plan, entry } => put(tx, scope, &plan.key, entry, true, now).map(drop),
        Effect::Reserve { plan, reservation } => hold(tx, &place(scope, plan), reservation),
        Effect::Release { plan, owner } => release(tx, &place(scope, plan), owner, now).map(drop),
    }
    .map_err(from_sqlite)
}
