//! What a batch decided, as rows. Many rows to a statement: the cost is statements, not rows.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aloft_core::{ActionName, ActionState, RunKey, Scope, Seed, Time};
use aloft_store::{StoreError, day, shared_blob};
use tokio_postgres::types::ToSql;

use super::{
    Trouble,
    decide::{CacheChange, Changed, Decided},
    load::Known,
};
use crate::{
    Tx, cache,
    rows::{amount, clean, encode, encode_packed},
};

/// Numbers of actions within a run: more than any run can have.
pub(crate) const PLACES: i64 = 1 << 24;

/// What the end of the batch still has to know.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The row numbers of the runs.
    pub(super) runs: HashMap<RunKey, i64>,
    /// What the batch adds to what queues hold.
    pub(super) loads: BTreeMap<(Scope, String), Load>,
}

/// What actions of one place and queue contribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) waiting: i64,
    pub(super) held: i64,
    pub(super) counted: i64,
    pub(super) memory: i64,
    pub(super) cpu: i64,
    pub(super) gpu: i64,
    pub(super) runs: i64,
}

impl Load {
    /// What an action contributes to its queue.
    fn of(state: &ActionState, open_children: i64, started: bool) -> Self {
        if state.phase.is_terminal() {
            return Self::default();
        }
        let held = state.live_lease().is_some();
        let counted = state.counts(open_children.max(0).unsigned_abs());
        let asks = state.task().filter(|_| counted).map(|t| t.asks).unwrap_or_default();
        Self {
            waiting: i64::from(!held),
            held: i64::from(held),
            counted: i64::from(counted),
            memory: amount(asks.memory),
            cpu: amount(asks.cpu),
            gpu: amount(asks.gpu),
            runs: i64::from(state.name.is_root() && started),
        }
    }

    fn add(&mut self, other: Self, sign: i64) {
        self.waiting += sign * other.waiting;
        self.held += sign * other.held;
        self.counted += sign * other.counted;
        self.memory += sign * other.memory;
        self.cpu += sign * other.cpu;
        self.gpu += sign * other.gpu;
        self.runs += sign * other.runs;
    }
}

/// An action to write, with its row number and its run.
struct Row<'r> {
    id: i64,
    run_id: i64,
    key: &'r RunKey,
    changed: &'r Changed,
}

/// Writes everything but the place of the commit.
pub(super) async fn all(tx: &Tx, known: &Known, decided: &Decided) -> Result<Written, Trouble> {
    let mut written = Written { runs: insert_runs(tx, known, decided).await?, ..Written::default() };
    write_blobs(tx, known, decided, &written).await?;
    let mut rows = Vec::new();
    for (key, actions) in &decided.actions {
        let Some(run_id) = written.runs.get(key).copied().or_else(|| known.runs.get(key).map(|r| r.id)) else {
            continue;
        };
        for (name, changed) in actions {
            let stored = known.actions.get(key).and_then(|a| a.get(name));
            let Some(id) = changed.new.map(|n| run_id * PLACES + n).or_else(|| stored.map(|s| s.id)) else { continue };
            rows.push(Row { id, run_id, key, changed });
        }
    }
    rows.sort_by_key(|row| row.id);
    cache_changes(tx, known, decided, &rows).await?;
    let touched = rows.iter().filter(|row| row.changed.at.is_some());
    let (new, old): (Vec<&Row<'_>>, Vec<&Row<'_>>) = touched.partition(|row| row.changed.new.is_some());
    // Polled together, so that each goes out while those before it are carried out. They do not depend on each other.
    tokio::try_join!(
        write_actions(tx, &new, true, known.packs),
        write_actions(tx, &old, false, known.packs),
        write_live(tx, &rows),
        write_events(tx, known, decided, &written),
        write_runs(tx, known, decided, &rows),
        write_roots(tx, known, decided, &rows),
    )?;
    for row in &rows {
        count(known, decided, row, &mut written.loads);
    }
    written.runs.extend(decided.runs.keys().filter_map(|key| Some((key.clone(), known.runs.get(key)?.id))));
    Ok(written)
}

/// Stores the blobs that are new, and notes which ones that runs share are used by runs of which day. The use is written
/// before the blob is looked for (`prune.rs` says why).
async fn write_blobs(tx: &Tx, known: &Known, decided: &Decided, written: &Written) -> Result<(), Trouble> {
    let mut uses: BTreeSet<(&Scope, i64, &str)> = BTreeSet::new();
    for (key, actions) in &decided.actions {
        let mut created_at = known.runs.get(key).map(|run| run.created_at);
        if created_at.is_none() {
            created_at = actions.get(&ActionName::root()).map(|root| root.state.created_at);
        }
        let Some(created_at) = created_at else { continue };
        for changed in actions.values().filter(|c| c.new.is_some()) {
            uses.extend(shared_blob(&changed.state).map(|digest| (&key.scope, day(created_at), digest)));
        }
    }
    if uses.is_empty() && decided.blobs.is_empty() {
        return Ok(());
    }
    let text = |f: fn(&Scope) -> &String| uses.iter().map(|(scope, ..)| f(scope).clone()).collect::<Vec<_>>();
    let days: Vec<i64> = uses.iter().map(|(_, day, _)| *day).collect();
    let used: Vec<&str> = uses.iter().map(|(.., digest)| *digest).collect();
    let (digests, blobs): (Vec<&str>, Vec<_>) =
        decided.blobs.iter().map(|(digest, blob)| (digest.as_str(), blob)).unzip();
    let bytes: Vec<&[u8]> = blobs.iter().map(|(_, blob)| blob.bytes.as_ref()).collect();
    let owners: Vec<Option<i64>> =
        blobs.iter().map(|(run, blob)| blob.own.then(|| run_id(known, written, run))).collect();
    let sql = "WITH u AS (
                   INSERT INTO blob_uses (org, project, domain, day, digest)
                   SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
                   ON CONFLICT DO NOTHING)
               INSERT INTO blobs (digest, bytes, run_id) SELECT * FROM unnest($6::text[], $7::bytea[], $8::bigint[])
               ON CONFLICT DO NOTHING";
    let params: [&(dyn ToSql + Sync); 8] =
        [&text(|s| &s.org), &text(|s| &s.project), &text(|s| &s.domain), &days, &used, &digests, &bytes, &owners];
    execute(tx, sql, &params).await.map(drop)
}

async fn execute(tx: &Tx, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, Trouble> {
    let statement = tx.prepare_cached(sql).await?;
    Ok(tx.execute(&statement, params).await?)
}

/// Inserts the runs that are new, in the order of their names, so that two batches never wait for each other.
async fn insert_runs(tx: &Tx, known: &Known, decided: &Decided) -> Result<HashMap<RunKey, i64>, Trouble> {
    let new: Vec<_> = decided
        .runs
        .iter()
        .filter(|(key, _)| !known.runs.contains_key(key))
        .filter_map(|(key, run)| Some((key, run, run.info.as_ref()?)))
        .collect();
    if new.is_empty() {
        return Ok(HashMap::new());
    }
    let root = aloft_core::ActionName::root();
    let text = |f: &dyn Fn(&RunKey) -> String| new.iter().map(|(key, ..)| f(key)).collect::<Vec<_>>();
    let (orgs, projects) = (text(&|k| k.scope.org.clone()), text(&|k| k.scope.project.clone()));
    let (domains, names) = (text(&|k| k.scope.domain.clone()), text(&|k| k.name.clone()));
    let created: Vec<i64> = new
        .iter()
        .map(|(key, run, _)| decided.actions.get(key).and_then(|a| a.get(&root)).map_or(run.at, |c| c.state.created_at))
        .map(Time::as_micros)
        .collect();
    let created_by: Vec<String> = new.iter().map(|(.., info)| clean(&info.created_by.id)).collect();
    let sources: Vec<i64> = new.iter().map(|(.., info)| i64::from(info.source)).collect();
    let queues: Vec<String> = new
        .iter()
        .map(|(key, ..)| {
            let root = decided.actions.get(*key).and_then(|a| a.get(&root));
            match root.map(|c| &c.state.seed) {
                Some(Seed::Task(task)) => task.queue.clone(),
                _ => aloft_core::DEFAULT_QUEUE.to_owned(),
            }
        })
        .collect();
    let most: Vec<Option<i64>> = new.iter().map(|(.., info)| info.max_action_concurrency.map(i64::from)).collect();
    let related: Vec<Option<&str>> =
        new.iter().map(|(.., info)| info.relation.as_ref().map(|r| r.to.name.as_str())).collect();
    let infos = new.iter().map(|(.., info)| encode(info)).collect::<Result<Vec<_>, _>>()?;
    let sql = tx
        .prepare_cached(
            "INSERT INTO runs (org, project, domain, name, seq, made, at, created_at, created_by, source, queue,
                               max_actions, in_flight, started, ended, related_to, info)
             SELECT k.org, k.project, k.domain, k.name, 0, 0, 0, k.created_at, k.created_by, k.source, k.queue,
                    k.max_actions, 0, false, false, k.related_to, k.info
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[],
                         $8::text[], $9::bigint[], $10::text[], $11::bytea[]) WITH ORDINALITY
                  k (org, project, domain, name, created_at, created_by, source, queue, max_actions, related_to, info, n)
             ORDER BY k.n
             ON CONFLICT DO NOTHING RETURNING org, project, domain, name, id",
        )
        .await?;
    let params: [&(dyn ToSql + Sync); 11] =
        [&orgs, &projects, &domains, &names, &created, &created_by, &sources, &queues, &most, &related, &infos];
    let found = tx.query(&sql, &params).await?;
    if found.len() < new.len() {
        // Another control plane made one of them a moment ago: decide again on what is there now.
        return Err(Trouble::Again(StoreError::Unavailable("a run was created twice at once; try again".to_owned())));
    }
    write_labels(tx, &found.iter().map(|r| (crate::rows::run_key(r, 0), r.get(4))).collect(), decided).await
}

async fn write_labels(tx: &Tx, ids: &HashMap<RunKey, i64>, decided: &Decided) -> Result<HashMap<RunKey, i64>, Trouble> {
    let (mut runs, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for (key, id) in ids {
        let Some(info) = decided.runs.get(key).and_then(|r| r.info.as_ref()) else { continue };
        for (label, value) in &info.labels {
            runs.push(*id);
            keys.push(clean(label));
            values.push(clean(value));
        }
    }
    if !runs.is_empty() {
        let sql = "INSERT INTO run_labels (run_id, key, value)
                   SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING";
        execute(tx, sql, &[&runs, &keys, &values]).await?;
    }
    Ok(ids.clone())
}

/// The error and cache words as they are stored in columns.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Columns of actions, one array each.
#[derive(Default)]
struct Columns {
    ids: Vec<i64>,
    run_ids: Vec<i64>,
    names: Vec<String>,
    parents: Vec<Option<String>>,
    groups: Vec<String>,
    kinds: Vec<i64>,
    phases: Vec<i64>,
    created: Vec<i64>,
    updated: Vec<i64>,
    started: Vec<Option<i64>>,
    ended: Vec<Option<i64>>,
    durations: Vec<Option<i64>>,
    above: Vec<bool>,
    attempts: Vec<i64>,
    cache: Vec<String>,
    task_projects: Vec<Option<String>>,
    task_domains: Vec<Option<String>>,
    task_names: Vec<String>,
    task_versions: Vec<String>,
    short_names: Vec<String>,
    environments: Vec<String>,
    states: Vec<Vec<u8>>,
}

/// How long an action took, once it has ended.
fn duration(state: &ActionState) -> Option<i64> {
    state.ended_at.map(|end| i64::try_from(end.since(state.created_at).as_millis()).unwrap_or(i64::MAX))
}

impl Columns {
    fn of(rows: &[&Row<'_>], packs: bool) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for Row { id, run_id, changed, .. } in rows {
            let state = &changed.state;
            let task = state.task().map(|t| &t.task);
            columns.ids.push(*id);
            columns.run_ids.push(*run_id);
            columns.names.push(state.name.as_str().to_owned());
            columns.parents.push(state.parent().map(|p| p.as_str().to_owned()));
            columns.groups.push(clean(&state.group));
            columns.kinds.push(i64::from(state.kind().number()));
            columns.phases.push(i64::from(state.phase.number()));
            columns.created.push(state.created_at.as_micros());
            columns.updated.push(changed.at.unwrap_or(state.created_at).as_micros());
            columns.started.push(state.started_at.map(Time::as_micros));
            columns.ended.push(state.ended_at.map(Time::as_micros));
            columns.durations.push(duration(state));
            columns.above.push(state.aborted.as_ref().is_some_and(|by| by.above.is_some()));
            columns.attempts.push(amount(state.attempts.len() as u64));
            columns.cache.push(word(&state.cache.status));
            columns.task_projects.push(task.map(|t| clean(&t.project)));
            columns.task_domains.push(task.map(|t| clean(&t.domain)));
            columns.task_names.push(clean(state.title()));
            columns.task_versions.push(clean(task.map_or("", |t| &t.version)));
            columns.short_names.push(clean(task.map_or("", |t| &t.short_name)));
            columns.environments.push(clean(task.map_or("", |t| &t.environment)));
            columns.states.push(encode_packed(state, packs)?);
        }
        Ok(columns)
    }
}

async fn write_actions(tx: &Tx, rows: &[&Row<'_>], new: bool, packs: bool) -> Result<(), Trouble> {
    if rows.is_empty() {
        return Ok(());
    }
    let c = Columns::of(rows, packs)?;
    if new {
        let sql = "INSERT INTO actions (id, run_id, name, parent, grp, kind, phase, created_at, updated_at, started_at,
                                        ended_at, duration_ms, ended_above, attempts, cache_status, task_project,
                                        task_domain, task_name, task_version, short_name, environment, state)
                   SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                       $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bool[],
                       $14::bigint[], $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $20::text[],
                       $21::text[], $22::bytea[])";
        let params: [&(dyn ToSql + Sync); 22] = [
            &c.ids,
            &c.run_ids,
            &c.names,
            &c.parents,
            &c.groups,
            &c.kinds,
            &c.phases,
            &c.created,
            &c.updated,
            &c.started,
            &c.ended,
            &c.durations,
            &c.above,
            &c.attempts,
            &c.cache,
            &c.task_projects,
            &c.task_domains,
            &c.task_names,
            &c.task_versions,
            &c.short_names,
            &c.environments,
            &c.states,
        ];
        execute(tx, sql, &params).await?;
        return task_runs(tx, rows).await;
    }
    let sql = "UPDATE actions a SET phase = k.phase, updated_at = k.updated_at, started_at = k.started_at,
                      ended_at = k.ended_at, duration_ms = k.duration_ms, ended_above = k.ended_above,
                      attempts = k.attempts, cache_status = k.cache_status, state = k.state
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bool[],
                           $8::bigint[], $9::text[], $10::bytea[])
                    k (id, phase, updated_at, started_at, ended_at, duration_ms, ended_above, attempts, cache_status, state)
               WHERE a.id = k.id";
    let params: [&(dyn ToSql + Sync); 10] =
        [&c.ids, &c.phases, &c.updated, &c.started, &c.ended, &c.durations, &c.above, &c.attempts, &c.cache, &c.states];
    execute(tx, sql, &params).await.map(drop)
}

/// Remembers the run that each task was last part of, each task once and in one order.
async fn task_runs(tx: &Tx, rows: &[&Row<'_>]) -> Result<(), Trouble> {
    let mut newest: BTreeMap<[String; 5], i64> = BTreeMap::new();
    for row in rows {
        let Some(task) = row.changed.state.task().map(|t| &t.task) else { continue };
        for version in ["", task.version.as_str()] {
            let key = [&row.key.scope.org, &task.project, &task.domain, &task.name].map(|t| clean(t));
            let [org, project, domain, name] = key;
            let run = newest.entry([org, project, domain, name, clean(version)]).or_insert(row.run_id);
            *run = row.run_id.max(*run);
        }
    }
    let column = |i: usize| newest.keys().map(|k| k[i].clone()).collect::<Vec<_>>();
    let runs: Vec<i64> = newest.values().copied().collect();
    // Most of the time the newest run is the one that is recorded already.
    let sql = "INSERT INTO task_runs (org, project, domain, name, version, run_id)
               SELECT k.* FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
                    k (org, project, domain, name, version, run_id)
               LEFT JOIN task_runs t ON t.org = k.org AND t.project = k.project AND t.domain = k.domain
                                    AND t.name = k.name AND t.version = k.version
               WHERE t.run_id IS NULL OR t.run_id < k.run_id
               ORDER BY k.org, k.project, k.domain, k.name, k.version
               ON CONFLICT (org, project, domain, name, version) DO UPDATE SET run_id = excluded.run_id
               WHERE task_runs.run_id < excluded.run_id";
    let params: [&(dyn ToSql + Sync); 6] = [&column(0), &column(1), &column(2), &column(3), &column(4), &runs];
    execute(tx, sql, &params).await.map(drop)
}

/// Whether an action has still to be looked after.
fn is_live(changed: &Changed) -> bool {
    !changed.state.phase.is_terminal() || changed.open_children > 0
}

async fn write_live(tx: &Tx, rows: &[Row<'_>]) -> Result<(), Trouble> {
    let gone: Vec<i64> = rows.iter().filter(|r| !is_live(r.changed) && r.changed.new.is_none()).map(|r| r.id).collect();
    if !gone.is_empty() {
        execute(tx, "DELETE FROM live WHERE id = ANY($1)", &[&gone]).await?;
    }
    let rows: Vec<_> = rows.iter().filter(|r| is_live(r.changed)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let states = || rows.iter().map(|r| &r.changed.state);
    let (ids, run_ids): (Vec<i64>, Vec<i64>) = rows.iter().map(|r| (r.id, r.run_id)).unzip();
    let names: Vec<&str> = states().map(|s| s.name.as_str()).collect();
    let parents: Vec<Option<&str>> = states().map(|s| s.parent().map(|p| p.as_str())).collect();
    let above: Vec<String> = states()
        .map(|s| s.ancestors.iter().map(aloft_core::ActionName::as_str).collect::<Vec<_>>().join("\n"))
        .collect();
    let depths: Vec<i64> = states().map(|s| amount(s.ancestors.len() as u64)).collect();
    let phases: Vec<i64> = states().map(|s| i64::from(s.phase.number())).collect();
    let ended: Vec<bool> = states().map(|s| s.phase.is_terminal()).collect();
    let tasks: Vec<bool> = states().map(|s| s.task().is_some()).collect();
    let queues: Vec<Option<&str>> = states().map(ActionState::queue).collect();
    let ready: Vec<Option<i64>> = states().map(|s| s.ready_at().map(Time::as_micros)).collect();
    let due: Vec<Option<i64>> = states().map(|s| s.due_at().map(Time::as_micros)).collect();
    let workers: Vec<Option<&str>> = states().map(|s| s.live_lease().map(|l| l.worker.0.as_str())).collect();
    let sets: Vec<bool> = rows.iter().map(|r| r.changed.lookup_at.is_some()).collect();
    let lookups: Vec<Option<i64>> = rows.iter().map(|r| r.changed.lookup_at.flatten().map(Time::as_micros)).collect();
    let keys: Vec<Option<String>> = states().map(|s| s.pending_lookup().map(|p| clean(&p.key))).collect();
    let calls: Vec<Option<i64>> = states().map(|s| s.webhook_is_due().then(|| s.created_at.as_micros())).collect();
    let open: Vec<i64> = rows.iter().map(|r| r.changed.open_children).collect();
    let asks: Vec<_> = states().map(|s| s.task().map(|t| t.asks).unwrap_or_default()).collect();
    let memory: Vec<i64> = asks.iter().map(|a| amount(a.memory)).collect();
    let cpu: Vec<i64> = asks.iter().map(|a| amount(a.cpu)).collect();
    let gpu: Vec<i64> = asks.iter().map(|a| amount(a.gpu)).collect();
    let sql = "INSERT INTO live (id, run_id, name, parent, ancestors, depth, phase, ended, task, queue, ready_at, due_at,
                                 worker, lookup_at, cache_key, call_at, open_children, asks_memory, asks_cpu, asks_gpu)
               SELECT k.id, k.run_id, k.name, k.parent, string_to_array(k.above, E'\\n'), k.depth, k.phase, k.ended, k.task,
                      k.queue, k.ready_at, k.due_at, k.worker, CASE WHEN k.sets THEN k.lookup_at ELSE l.lookup_at END,
                      k.cache_key, k.call_at, k.open_children, k.memory, k.cpu, k.gpu
               FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                           $8::bool[], $9::bool[], $10::text[], $11::bigint[], $12::bigint[], $13::text[], $14::bool[],
                           $15::bigint[], $16::text[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[],
                           $21::bigint[])
                    k (id, run_id, name, parent, above, depth, phase, ended, task, queue, ready_at, due_at, worker, sets,
                       lookup_at, cache_key, call_at, open_children, memory, cpu, gpu)
               LEFT JOIN live l ON l.id = k.id
               ON CONFLICT (id) DO UPDATE SET phase = excluded.phase, ended = excluded.ended, ready_at = excluded.ready_at,
                      due_at = excluded.due_at, worker = excluded.worker, lookup_at = excluded.lookup_at,
                      cache_key = excluded.cache_key, call_at = excluded.call_at, open_children = excluded.open_children";
    let params: [&(dyn ToSql + Sync); 21] = [
        &ids, &run_ids, &names, &parents, &above, &depths, &phases, &ended, &tasks, &queues, &ready, &due, &workers,
        &sets, &lookups, &keys, &calls, &open, &memory, &cpu, &gpu,
    ];
    execute(tx, sql, &params).await.map(drop)
}

fn run_id(known: &Known, written: &Written, key: &RunKey) -> i64 {
    written.runs.get(key).copied().or_else(|| known.runs.get(key).map(|r| r.id)).unwrap_or_default()
}

async fn write_events(tx: &Tx, known: &Known, decided: &Decided, written: &Written) -> Result<(), Trouble> {
    if decided.events.is_empty() {
        return Ok(());
    }
    let runs: Vec<i64> = decided.events.iter().map(|e| run_id(known, written, &e.run)).collect();
    let seqs: Vec<i64> = decided.events.iter().map(|e| amount(e.seq)).collect();
    let times: Vec<i64> = decided.events.iter().map(|e| e.at.as_micros()).collect();
    let bodies = decided.events.iter().map(|e| encode_packed(&e.event, known.packs)).collect::<Result<Vec<_>, _>>()?;
    let sql = "INSERT INTO events (run_id, seq, at, body)
               SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bytea[])";
    execute(tx, sql, &[&runs, &seqs, &times, &bodies]).await.map(drop)
}

/// Adds what an action contributes to its queue now, and takes away what it did before.
fn count(known: &Known, decided: &Decided, row: &Row<'_>, loads: &mut BTreeMap<(Scope, String), Load>) {
    let state = &row.changed.state;
    let Some(queue) = state.queue() else { return };
    let started = decided.runs.get(row.key).is_some_and(|r| r.started);
    let load = loads.entry((row.key.scope.clone(), queue.to_owned())).or_default();
    load.add(Load::of(state, row.changed.open_children, started), 1);
    if let Some(stored) = known.actions.get(row.key).and_then(|a| a.get(&state.name)) {
        let was_started = known.runs.get(row.key).is_some_and(|r| r.started);
        load.add(Load::of(&stored.state, stored.open_children, was_started), -1);
    }
}

async fn write_runs(tx: &Tx, known: &Known, decided: &Decided, rows: &[Row<'_>]) -> Result<(), Trouble> {
    let mut flights: HashMap<i64, i64> = HashMap::new();
    let mut ended: HashMap<i64, bool> = HashMap::new();
    let mut ids: HashMap<&RunKey, i64> = HashMap::new();
    for row in rows {
        ids.insert(row.key, row.run_id);
        let counts =
            |s: &ActionState, open: i64| i64::from(s.queue().is_some() && s.counts(open.max(0).unsigned_abs()));
        let stored = known.actions.get(row.key).and_then(|a| a.get(&row.changed.state.name));
        let was = stored.map_or(0, |s| counts(&s.state, s.open_children));
        *flights.entry(row.run_id).or_default() += counts(&row.changed.state, row.changed.open_children) - was;
        if row.changed.state.name.is_root() {
            ended.insert(row.run_id, row.changed.state.phase.is_terminal());
        }
    }
    let runs: Vec<_> = decided.runs.iter().filter_map(|(key, run)| Some((*ids.get(key)?, run))).collect();
    if runs.is_empty() {
        return Ok(());
    }
    let numbers: Vec<i64> = runs.iter().map(|(id, _)| *id).collect();
    let seqs: Vec<i64> = runs.iter().map(|(_, run)| amount(run.seq)).collect();
    let made: Vec<i64> = runs.iter().map(|(_, run)| run.made).collect();
    let times: Vec<i64> = runs.iter().map(|(_, run)| run.at.as_micros()).collect();
    let started: Vec<bool> = runs.iter().map(|(_, run)| run.started).collect();
    let flown: Vec<i64> = numbers.iter().map(|id| flights.get(id).copied().unwrap_or(0)).collect();
    let over: Vec<Option<bool>> = numbers.iter().map(|id| ended.get(id).copied()).collect();
    let sql = "UPDATE runs r SET seq = k.seq, made = k.made, at = k.at, started = k.started,
                      in_flight = r.in_flight + k.flown, ended = coalesce(k.over, r.ended)
               FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bool[], $6::bigint[], $7::bool[])
                    k (id, seq, made, at, started, flown, over)
               WHERE r.id = k.id";
    execute(tx, sql, &[&numbers, &seqs, &made, &times, &started, &flown, &over]).await.map(drop)
}

/// Keeps the narrow rows of the runs whose root has changed.
async fn write_roots(tx: &Tx, known: &Known, decided: &Decided, rows: &[Row<'_>]) -> Result<(), Trouble> {
    let roots = rows.iter().filter(|r| r.changed.state.name.is_root() && r.changed.at.is_some());
    let (new, old): (Vec<&Row<'_>>, Vec<&Row<'_>>) = roots.partition(|r| !known.runs.contains_key(r.key));
    let errors = |rows: &[&Row<'_>]| -> Vec<Option<String>> {
        rows.iter().map(|r| r.changed.state.error.as_ref().map(|e| word(&e.kind))).collect()
    };
    if !new.is_empty() {
        let c = Columns::of(&new, known.packs)?;
        let text = |f: fn(&RunKey) -> &String| new.iter().map(|r| f(r.key).clone()).collect::<Vec<_>>();
        let infos: Vec<_> = new.iter().map(|r| decided.runs.get(r.key).and_then(|run| run.info.as_ref())).collect();
        let by: Vec<String> = infos.iter().map(|i| i.map(|i| clean(&i.created_by.id)).unwrap_or_default()).collect();
        let sources: Vec<i64> = infos.iter().map(|i| i.map_or(0, |i| i64::from(i.source))).collect();
        let sql = "INSERT INTO run_index (id, org, project, domain, name, created_at, created_by, source, phase,
                           updated_at, started_at, ended_at, duration_ms, attempts, error_kind, cache_status, kind,
                           task_project, task_domain, task_name, task_version, short_name, environment)
                   SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
                       $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[],
                       $14::bigint[], $15::text[], $16::text[], $17::bigint[], $18::text[], $19::text[], $20::text[],
                       $21::text[], $22::text[], $23::text[])";
        let params: [&(dyn ToSql + Sync); 23] = [
            &c.run_ids,
            &text(|k| &k.scope.org),
            &text(|k| &k.scope.project),
            &text(|k| &k.scope.domain),
            &text(|k| &k.name),
            &c.created,
            &by,
            &sources,
            &c.phases,
            &c.updated,
            &c.started,
            &c.ended,
            &c.durations,
            &c.attempts,
            &errors(&new),
            &c.cache,
            &c.kinds,
            &c.task_projects,
            &c.task_domains,
            &c.task_names,
            &c.task_versions,
            &c.short_names,
            &c.environments,
        ];
        execute(tx, sql, &params).await?;
    }
    if !old.is_empty() {
        let c = Columns::of(&old, known.packs)?;
        let sql = "UPDATE run_index r SET phase = k.phase, updated_at = k.updated_at, started_at = k.started_at,
                          ended_at = k.ended_at, duration_ms = k.duration_ms, attempts = k.attempts,
                          error_kind = k.error_kind, cache_status = k.cache_status
                   FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                               $7::bigint[], $8::text[], $9::text[])
                        k (id, phase, updated_at, started_at, ended_at, duration_ms, attempts, error_kind, cache_status)
                   WHERE r.id = k.id";
        let params: [&(dyn ToSql + Sync); 9] = [
            &c.run_ids,
            &c.phases,
            &c.updated,
            &c.started,
            &c.ended,
            &c.durations,
            &c.attempts,
            &errors(&old),
            &c.cache,
        ];
        execute(tx, sql, &params).await?;
    }
    Ok(())
}

/// Carries out what the batch changes in the cache. Rows that wait for a key are locked in one order first.
async fn cache_changes(tx: &Tx, known: &Known, decided: &Decided, rows: &[Row<'_>]) -> Result<(), Trouble> {
    let unlocked = decided.cache.iter().map(|(place, ..)| place).filter(|place| !known.cached.contains_key(place));
    let unlocked: std::collections::BTreeSet<_> = unlocked.collect();
    cache::lock(tx, unlocked).await?;
    let mut freed: Vec<String> = Vec::new();
    for (place, scope, change) in &decided.cache {
        match change {
            CacheChange::Put(entry) => {
                cache::put(tx, place, &scope.domain, entry, true).await?;
                freed.push(clean(&place.key));
            }
            CacheChange::Hold(reservation) => cache::hold(tx, place, reservation).await?,
            CacheChange::Release(owner) => {
                if cache::give_back(tx, place, owner).await? {
                    freed.push(clean(&place.key));
                }
            }
        }
    }
    let own: Vec<i64> = rows
        .iter()
        .filter(|r| {
            let stored = known.actions.get(r.key).and_then(|a| a.get(&r.changed.state.name));
            stored.is_some_and(|s| s.state.pending_lookup().is_some())
        })
        .map(|r| r.id)
        .collect();
    let at = rows.iter().filter_map(|r| r.changed.at).max();
    match at {
        Some(at) if !own.is_empty() || !freed.is_empty() => Ok(cache::wake(tx, &own, &freed, at).await?),
        _ => Ok(()),
    }
}
