//! Cached results and reservations. Whoever decides about a key, or changes what lies there, holds its lock to the end of the
//! transaction.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use aloft_core::{CacheEntry, CachePlan, CacheScope, Reservation, Scope, Time};
use aloft_store::StoreError;
use tokio_postgres::Error;

use crate::{
    Tx,
    error::from_postgres,
    rows::{clean, decode, encode},
};

/// What a reservation is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) org: String,
    pub(crate) project: String,
    /// Empty for work that any domain of the project shares.
    pub(crate) domain: String,
    pub(crate) key: String,
}

impl Place {
    /// What work of `scope` with this plan reserves.
    pub(crate) fn of(scope: &Scope, plan: &CachePlan) -> Self {
        let domain = match plan.scope {
            CacheScope::Global => String::new(),
            CacheScope::ProjectDomain => scope.domain.clone(),
        };
        Self { org: scope.org.clone(), project: scope.project.clone(), domain, key: clean(&plan.key) }
    }

    /// The place of `key` for work of one domain.
    pub(crate) fn in_domain(scope: &Scope, key: &str) -> Self {
        let (org, project, domain) = (scope.org.clone(), scope.project.clone(), scope.domain.clone());
        Self { org, project, domain, key: clean(key) }
    }

    /// The number of its lock: one for all domains, because work of any may use the entries of all.
    fn lock(&self) -> i64 {
        let mut hasher = DefaultHasher::new();
        (&self.org, &self.project, &self.key).hash(&mut hasher);
        hasher.finish().cast_signed()
    }
}

/// Locks keys in one order.
pub(crate) async fn lock(tx: &Tx, places: impl IntoIterator<Item = &Place>) -> Result<(), Error> {
    let numbers: BTreeSet<i64> = places.into_iter().map(Place::lock).collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let sql = tx.prepare_cached("SELECT pg_advisory_xact_lock(k) FROM unnest($1::bigint[]) k").await?;
    tx.execute(&sql, &[&numbers]).await.map(drop)
}

/// What is cached under the key of a place, by domain.
pub(crate) async fn entries(tx: &Tx, place: &Place) -> Result<BTreeMap<String, CacheEntry>, StoreError> {
    let sql = "SELECT domain, body FROM cache_entries WHERE org = $1 AND project = $2 AND key = $3
               AND ($4 = '' OR domain = $4)";
    let sql = tx.prepare_cached(sql).await.map_err(from_postgres)?;
    let rows = tx.query(&sql, &[&place.org, &place.project, &place.key, &place.domain]).await.map_err(from_postgres)?;
    rows.iter().map(|row| Ok((row.get(0), decode(row, 1, "a cache entry")?))).collect()
}

/// What work of `domain` may use of these entries: its own first, then the newest.
pub(crate) fn usable(entries: &BTreeMap<String, CacheEntry>, domain: &str, scope: CacheScope) -> Vec<CacheEntry> {
    let mut others: Vec<_> = entries.iter().filter(|(d, _)| *d != domain && scope == CacheScope::Global).collect();
    others.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.updated_at));
    entries.get(domain).into_iter().chain(others.into_iter().map(|(_, entry)| entry)).cloned().collect()
}

/// Who holds the reservation.
pub(crate) async fn holder(tx: &Tx, place: &Place) -> Result<Option<Reservation>, StoreError> {
    let sql = "SELECT body FROM cache_reservations WHERE org = $1 AND project = $2 AND domain = $3 AND key = $4";
    let sql = tx.prepare_cached(sql).await.map_err(from_postgres)?;
    let row =
        tx.query_opt(&sql, &[&place.org, &place.project, &place.domain, &place.key]).await.map_err(from_postgres)?;
    row.map(|row| decode(&row, 0, "a reservation")).transpose()
}

/// Caches a result for `domain`; `false` if there is one already and `overwrite` does not hold.
pub(crate) async fn put(
    tx: &Tx,
    place: &Place,
    domain: &str,
    entry: &CacheEntry,
    overwrite: bool,
) -> Result<bool, StoreError> {
    let conflict = if overwrite {
        "UPDATE SET updated_at = excluded.updated_at, output_uri = excluded.output_uri, body = excluded.body"
    } else {
        "NOTHING"
    };
    let sql = format!(
        "INSERT INTO cache_entries (org, project, domain, key, updated_at, output_uri, body)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org, project, key, domain) DO {conflict}"
    );
    let sql = tx.prepare_cached(&sql).await.map_err(from_postgres)?;
    let (at, uri, body) = (entry.updated_at.as_micros(), clean(&entry.outputs.output_uri), encode(entry)?);
    let row: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
        [&place.org, &place.project, &domain, &place.key, &at, &uri, &body];
    Ok(tx.execute(&sql, &row).await.map_err(from_postgres)? > 0)
}

/// Forgets the entry of the place's domain.
pub(crate) async fn forget(tx: &Tx, place: &Place, output_uri: &str) -> Result<bool, Error> {
    let sql = "DELETE FROM cache_entries WHERE org = $1 AND project = $2 AND domain = $3 AND key = $4
               AND ($5 = '' OR output_uri = $5)";
    let sql = tx.prepare_cached(sql).await?;
    let uri = clean(output_uri);
    Ok(tx.execute(&sql, &[&place.org, &place.project, &place.domain, &place.key, &uri]).await? > 0)
}

/// Gives the reservation to somebody, whoever had it.
pub(crate) async fn hold(tx: &Tx, place: &Place, reservation: &Reservation) -> Result<(), StoreError> {
    let sql = "INSERT INTO cache_reservations (org, project, domain, key, owner, body) VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (org, project, key, domain) DO UPDATE SET owner = excluded.owner, body = excluded.body";
    let sql = tx.prepare_cached(sql).await.map_err(from_postgres)?;
    let (owner, body) = (clean(&reservation.owner), encode(reservation)?);
    tx.execute(&sql, &[&place.org, &place.project, &place.domain, &place.key, &owner, &body])
        .await
        .map(drop)
        .map_err(from_postgres)
}

/// Takes the reservation from `owner`; `false` if it was not theirs.
pub(crate) async fn give_back(tx: &Tx, place: &Place, owner: &str) -> Result<bool, Error> {
    let sql = "DELETE FROM cache_reservations
               WHERE org = $1 AND project = $2 AND domain = $3 AND key = $4 AND owner = $5";
    let sql = tx.prepare_cached(sql).await?;
    let owner = clean(owner);
    Ok(tx.execute(&sql, &[&place.org, &place.project, &place.domain, &place.key, &owner]).await? > 0)
}

/// Locks rows that wait for a key, those of `own` too, in the order of their numbers, and lets those under `keys` look again.
/// Those of other projects look once in vain.
pub(crate) async fn wake(tx: &Tx, own: &[i64], keys: &[String], now: Time) -> Result<(), StoreError> {
    let sql = "SELECT id FROM live WHERE id = ANY($1) OR cache_key = ANY($2) ORDER BY id FOR UPDATE";
    let sql = tx.prepare_cached(sql).await.map_err(from_postgres)?;
    tx.execute(&sql, &[&own, &keys]).await.map_err(from_postgres)?;
    if keys.is_empty() {
        return Ok(());
    }
    let sql = tx.prepare_cached("UPDATE live SET lookup_at = $2 WHERE cache_key = ANY($1)").await;
    let sql = sql.map_err(from_postgres)?;
    tx.execute(&sql, &[&keys, &now.as_micros()]).await.map(drop).map_err(from_postgres)
}
