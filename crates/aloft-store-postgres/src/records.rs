//! Records that are not run state: projects, domains, settings, deployed tasks, queues, limits.

use aloft_core::{Scope, Time};
use aloft_store::{
    Blob, DeployedTask, Domain, DomainUse, MAX_DELETED_QUEUES, Project, ProjectLimits, Queue, SettingsKey,
    SettingsVersion, Site,
};
use bytes::Bytes;
use tokio_postgres::{Row, types::ToSql};

use crate::{
    Tx,
    error::from_postgres,
    read::{self, Reader, Result},
    rows::{amount, clean, decode, encode, number, time},
};

pub(crate) type Params<'p> = &'p [&'p (dyn ToSql + Sync)];

/// Carries a statement out; `true` if it changed a row.
pub(crate) async fn write(tx: &Tx, sql: &str, params: Params<'_>) -> Result<bool> {
    let statement = tx.prepare_cached(sql).await.map_err(from_postgres)?;
    Ok(tx.execute(&statement, params).await.map_err(from_postgres)? > 0)
}

// === Tasks ===

pub(crate) async fn put_task(tx: &Tx, task: &DeployedTask, blob: &Blob) -> Result<bool> {
    let Scope { org, project, domain } = &task.id.scope;
    let (name, version) = (clean(&task.id.name), clean(&task.id.version));
    let (short, environment, by) = (clean(&task.short_name), clean(&task.environment), clean(&task.deployed_by.id));
    let at = task.deployed_at.as_micros();
    // The name follows to its newest version in the same statement; one of the same time is newer if it came later.
    let sql = "WITH t AS (
                   INSERT INTO tasks (org, project, domain, name, version, digest, short_name, environment, entrypoint,
                                      deployed_at, deployed_by, deployer)
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING RETURNING id),
               n AS (
                   INSERT INTO task_names AS n (org, project, domain, name, newest)
                   SELECT $1, $2, $3, $4, id FROM t
                   ON CONFLICT (org, project, domain, name) DO UPDATE SET newest = excluded.newest
                   WHERE (SELECT o.deployed_at <= $10 FROM tasks o WHERE o.id = n.newest))
               SELECT id FROM t";
    let statement = tx.prepare_cached(sql).await.map_err(from_postgres)?;
    let deployer = encode(&task.deployed_by)?;
    let params: [&(dyn ToSql + Sync); 12] = [
        org,
        project,
        domain,
        &name,
        &version,
        &task.digest,
        &short,
        &environment,
        &i64::from(task.entrypoint),
        &at,
        &by,
        &deployer,
    ];
    let new = tx.query_opt(&statement, &params).await.map_err(from_postgres)?.is_some();
    if new {
        // After the task: whoever removes blobs that nothing uses must have seen it (`prune.rs`).
        let sql = "INSERT INTO blobs (digest, bytes) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        write(tx, sql, &[&blob.digest, &blob.bytes.as_ref()]).await?;
    }
    Ok(new)
}

// === Projects and domains ===

/// Whether a project is one of the platform's own, whose tasks come back by themselves: states 2 and 3.
fn is_own(project: &Project) -> bool {
    matches!(project.state, 2 | 3)
}

pub(crate) async fn create_project(tx: &Tx, project: &Project) -> Result<bool> {
    let sql = "INSERT INTO projects (org, id, own, body) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    write(tx, sql, &[&project.org, &clean(&project.id), &is_own(project), &encode(project)?]).await
}

pub(crate) async fn update_project(tx: &Tx, project: &Project) -> Result<bool> {
    let sql = "UPDATE projects SET own = $3, body = $4 WHERE org = $1 AND id = $2";
    write(tx, sql, &[&project.org, &clean(&project.id), &is_own(project), &encode(project)?]).await
}

async fn insert_domain(tx: &Tx, domain: &Domain) -> Result<bool> {
    let sql = "INSERT INTO domains (org, id, name, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
    write(tx, sql, &[&domain.org, &clean(&domain.id), &clean(&domain.name), &domain.created_at.as_micros()]).await
}

/// One at a time changes which domains there are.
async fn lock_domains(tx: &Tx) -> Result<()> {
    tx.batch_execute("LOCK TABLE domains IN SHARE ROW EXCLUSIVE MODE").await.map_err(from_postgres)
}

pub(crate) async fn seed_domains(tx: &Tx, org: &str, domains: &[Domain]) -> Result<bool> {
    lock_domains(tx).await?;
    let sql = "SELECT EXISTS (SELECT 1 FROM domains WHERE org = $1)";
    if tx.query_one(sql, &[&org]).await.map_err(from_postgres)?.get(0) {
        return Ok(false);
    }
    for domain in domains.iter().filter(|d| d.org == org) {
        insert_domain(tx, domain).await?;
    }
    Ok(true)
}

pub(crate) async fn create_domain(tx: &Tx, domain: &Domain) -> Result<bool> {
    lock_domains(tx).await?;
    insert_domain(tx, domain).await
}

pub(crate) async fn rename_domain(tx: &Tx, org: &str, id: &str, name: &str) -> Result<bool> {
    let sql = "UPDATE domains SET name = $3 WHERE org = $1 AND id = $2";
    write(tx, sql, &[&org, &clean(id), &clean(name)]).await
}

/// Runs and deployed tasks of domain $2 of organisation $1, looked up project by project, as their indexes begin.
const RUNS: &str =
    "FROM projects p JOIN run_index r ON r.org = p.org AND r.project = p.id AND r.domain = $2 WHERE p.org = $1";
const TASKS: &str = "FROM projects p JOIN tasks t ON t.org = p.org AND t.project = p.id AND t.domain = $2
                     WHERE p.org = $1 AND NOT p.own";

pub(crate) async fn delete_domain(tx: &Tx, org: &str, id: &str) -> Result<bool> {
    lock_domains(tx).await?;
    let sql = format!(
        "DELETE FROM domains WHERE org = $1 AND id = $2 AND NOT EXISTS (SELECT 1 {RUNS}) AND NOT EXISTS (SELECT 1 {TASKS})
                               AND (SELECT count(*) FROM domains WHERE org = $1) > 1"
    );
    write(tx, &sql, &[&org, &clean(id)]).await
}

pub(crate) async fn domain_use(db: &Reader, org: &str, id: &str) -> Result<DomainUse> {
    let sql = format!("SELECT (SELECT count(*) {RUNS}), (SELECT count(*) {TASKS})");
    let id = clean(id);
    let found =
        db.rows(&sql, &[&org, &id], |row| Ok(DomainUse { runs: number(row, 0), tasks: number(row, 1) })).await?;
    Ok(found.into_iter().next().unwrap_or_default())
}

fn domain_row(row: &Row) -> Result<Domain> {
    Ok(Domain { org: row.get(0), id: row.get(1), name: row.get(2), created_at: time(row, 3) })
}

pub(crate) async fn domain(db: &Reader, org: &str, id: &str) -> Result<Option<Domain>> {
    let sql = "SELECT org, id, name, created_at FROM domains WHERE org = $1 AND id = $2";
    Ok(db.rows(sql, &[&org, &clean(id)], domain_row).await?.pop())
}

pub(crate) async fn domains(db: &Reader, org: &str) -> Result<Vec<Domain>> {
    db.rows("SELECT org, id, name, created_at FROM domains WHERE org = $1 ORDER BY pos", &[&org], domain_row).await
}

// === Settings ===

pub(crate) async fn put_settings(tx: &Tx, version: &SettingsVersion) -> Result<bool> {
    let key = &version.key;
    // Two editors at once: the later one finds the number taken.
    let sql = "INSERT INTO settings (org, domain, project, version, body, edited_at, edited_by, request)
               SELECT $1, $2, $3, $4, $5, $6, $7, $8
               WHERE $4 = 1 + (SELECT coalesce(max(version), 0) FROM settings
                               WHERE org = $1 AND domain = $2 AND project = $3)
               ON CONFLICT DO NOTHING";
    let params: Params<'_> = &[
        &key.org,
        &key.domain,
        &key.project,
        &amount(version.version),
        &version.body.as_ref(),
        &version.edited_at.as_micros(),
        &encode(&version.edited_by)?,
        &clean(&version.request),
    ];
    write(tx, sql, params).await
}

const COLUMNS: &str = "s.org, s.domain, s.project, s.version, s.body, s.edited_at, s.edited_by, s.request";

fn version_row(row: &Row) -> Result<SettingsVersion> {
    Ok(SettingsVersion {
        key: SettingsKey { org: row.get(0), domain: row.get(1), project: row.get(2) },
        version: number(row, 3),
        body: Bytes::from(row.get::<_, Vec<u8>>(4)),
        edited_at: time(row, 5),
        edited_by: decode(row, 6, "who edited a version of the settings")?,
        request: row.get(7),
    })
}

pub(crate) async fn settings_at(db: &Reader, key: &SettingsKey) -> Result<Vec<SettingsVersion>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM settings s WHERE s.org = $1 AND s.domain = $2 AND s.project = $3
         ORDER BY s.version DESC LIMIT 1"
    );
    let (db, sql) = (&db, &sql);
    // All at once; what is found stays in the order of the levels.
    let levels = key
        .levels()
        .into_iter()
        .map(|level| async move { db.rows(sql, &[&level.org, &level.domain, &level.project], version_row).await });
    Ok(futures::future::try_join_all(levels).await?.into_iter().flatten().collect())
}

/// All in one round trip, and of one moment.
pub(crate) async fn site(db: &Reader, scope: &Scope) -> Result<Site> {
    let key = SettingsKey { org: scope.org.clone(), domain: scope.domain.clone(), project: scope.project.clone() };
    let revision = db.rows("SELECT revision FROM site_revision", &[], |row| Ok(number(row, 0)));
    let project = read::project(db, &scope.org, &scope.project);
    let (domains, settings) = (domains(db, &scope.org), settings_at(db, &key));
    let (revision, project, domains, settings) = tokio::try_join!(biased; revision, project, domains, settings)?;
    let revision = revision.first().copied().unwrap_or_default();
    Ok(Site { revision, project, domains, settings })
}

pub(crate) async fn settings_history(
    db: &Reader,
    key: &SettingsKey,
    after: u64,
    limit: usize,
) -> Result<Vec<SettingsVersion>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM settings s
         WHERE s.org = $1 AND s.domain = $2 AND s.project = $3 AND s.version > $4 ORDER BY s.version LIMIT $5"
    );
    db.rows(&sql, &[&key.org, &key.domain, &key.project, &amount(after), &amount(limit as u64)], version_row).await
}

// === Queues and limits ===

pub(crate) async fn create_queue(tx: &Tx, queue: &Queue) -> Result<bool> {
    // Those deleted longest ago go; what is brought back in the meantime is not deleted any more.
    let sql = "DELETE FROM queues WHERE org = $1 AND name IN (
                   SELECT name FROM queues WHERE org = $1 AND deleted_at IS NOT NULL
                   ORDER BY deleted_at DESC, name OFFSET $2)";
    write(tx, sql, &[&queue.org, &amount(MAX_DELETED_QUEUES as u64)]).await?;
    let sql = "INSERT INTO queues (org, name, generation, deleted_at, body) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT DO NOTHING";
    let deleted = queue.deleted_at.map(Time::as_micros);
    write(tx, sql, &[&queue.org, &queue.name, &generation(queue.generation), &deleted, &encode(queue)?]).await
}

/// A generation as a column. One that is too large for it is none that was ever stored.
fn generation(generation: u64) -> i64 {
    i64::try_from(generation).unwrap_or(-1)
}

pub(crate) async fn replace_queue(tx: &Tx, queue: &Queue, found: u64) -> Result<bool> {
    let sql = "UPDATE queues SET generation = $3, deleted_at = $4, body = $5
               WHERE org = $1 AND name = $2 AND generation = $6";
    let (deleted, next) = (queue.deleted_at.map(Time::as_micros), generation(queue.generation));
    write(tx, sql, &[&queue.org, &queue.name, &next, &deleted, &encode(queue)?, &generation(found)]).await
}

pub(crate) async fn queue(db: &Reader, org: &str, name: &str) -> Result<Option<Queue>> {
    let sql = "SELECT body FROM queues WHERE org = $1 AND name = $2";
    Ok(db.rows(sql, &[&org, &clean(name)], |row| decode(row, 0, "a queue")).await?.pop())
}

pub(crate) async fn queues(db: &Reader, org: &str) -> Result<Vec<Queue>> {
    db.rows("SELECT body FROM queues WHERE org = $1 ORDER BY name", &[&org], |row| decode(row, 0, "a queue")).await
}

pub(crate) async fn replace_limits(tx: &Tx, limits: &ProjectLimits, found: u64) -> Result<bool> {
    let (next, body) = (generation(limits.generation), encode(limits)?);
    if found == 0 {
        let sql = "INSERT INTO project_limits (org, project, domain, generation, body) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT DO NOTHING";
        return write(tx, sql, &[&limits.org, &limits.project, &limits.domain, &next, &body]).await;
    }
    let sql = "UPDATE project_limits SET generation = $4, body = $5
               WHERE org = $1 AND project = $2 AND domain = $3 AND generation = $6";
    write(tx, sql, &[&limits.org, &limits.project, &limits.domain, &next, &body, &generation(found)]).await
}

pub(crate) async fn limits(db: &Reader, org: &str) -> Result<Vec<ProjectLimits>> {
    let sql = "SELECT body FROM project_limits WHERE org = $1 ORDER BY project, domain";
    db.rows(sql, &[&org], |row| decode(row, 0, "the limits of a project")).await
}
