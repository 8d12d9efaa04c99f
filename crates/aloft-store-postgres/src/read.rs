//! Reads, each on one connection in one transaction, so that a snapshot and its number belong together.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Deref,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use aloft_core::{ActionName, ActionState, Event, RunInfo, RunKey, Time, WorkerId};
use aloft_store::{
    Cursor, DeployedTask, FeedItem, Logged, Project, RunRecord, Sift, Sifted, Snapshot, StoreError, TaskId, Which,
    sql::Sql, unpack,
};
use bytes::Bytes;
use tokio_postgres::{Row, types::ToSql};

use crate::{
    Tx,
    batch::{ACTIONS, PLACES},
    error::{self, from_postgres},
    rows::{action_name, amount, clean, decode, maybe_time, number, run_key, time},
};

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// A connection in a transaction that only reads, or for one statement without one.
pub(crate) struct Reader {
    tx: Option<Tx>,
    /// How its transaction begins, if it has one.
    begin: Option<&'static str>,
    begun: AtomicBool,
}

/// How a transaction begins in which rows are looked up by their keys.
const LOOKUP: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// How one begins whose statements have to be planned by their values and by statistics.
const LISTING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL plan_cache_mode = auto;
                       SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on";

impl Reader {
    /// Of one snapshot, which begins with the first statement.
    pub(crate) fn new(tx: Tx) -> Self {
        Self::beginning(tx, Some(LOOKUP))
    }

    fn beginning(tx: Tx, begin: Option<&'static str>) -> Self {
        Self { tx: Some(tx), begin, begun: AtomicBool::new(false) }
    }

    /// As [`Reader::new`], for lists with filters and orders.
    pub(crate) fn listing(tx: Tx) -> Self {
        Self::beginning(tx, Some(LISTING))
    }

    /// Within a transaction that somebody else begins and ends.
    pub(crate) fn within(tx: Tx) -> Self {
        Self::beginning(tx, None)
    }

    /// The connection, to go on with it.
    pub(crate) fn into_inner(mut self) -> Tx {
        self.tx.take().expect("taken only at the end")
    }

    /// For one statement, which is its own snapshot.
    pub(crate) fn single(tx: Tx) -> Self {
        Self::beginning(tx, None)
    }

    /// Ends, so that the connection can serve others. Nobody waits for it.
    pub(crate) fn end(mut self) {
        let Some(tx) = self.tx.take() else { return };
        if self.begun.load(Relaxed) {
            tokio::spawn(async move {
                if tx.batch_execute("COMMIT").await.is_err() {
                    drop(deadpool_postgres::Object::take(tx));
                }
            });
        }
    }

    /// Every row of a query, decoded.
    pub(crate) async fn rows<T>(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
        decode: impl Fn(&Row) -> Result<T>,
    ) -> Result<Vec<T>> {
        let query = async {
            let statement = self.prepare_cached(sql).await?;
            self.query(&statement, params).await
        };
        let rows = match self.begin.filter(|_| !self.begun.swap(true, Relaxed)) {
            // Polled together, so that both go out at once. The second cannot overtake the first.
            Some(begin) => {
                let (begun, found) = tokio::join!(self.batch_execute(begin), query);
                begun.and(found)
            }
            None => query.await,
        };
        rows.map_err(from_postgres)?.iter().map(decode).collect()
    }

    /// As [`Reader::rows`], of a list.
    pub(crate) async fn list<T>(&self, sql: &Sql, decode: impl Fn(&Row) -> Result<T>) -> Result<Vec<T>> {
        let (text, values) = sql.render(|n, value| match value {
            Cursor::Int(_) => format!("${n}::bigint"),
            Cursor::Text(_) | Cursor::Null => format!("${n}::text"),
        });
        let values: Vec<Value> = values.into_iter().map(Value::of).collect();
        let params: Vec<&(dyn ToSql + Sync)> = values.iter().map(Value::param).collect();
        self.rows(&text, &params, decode).await
    }
}

impl Deref for Reader {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        self.tx.as_ref().expect("taken only at the end")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Not ended: what was under way on it may not be over, so nobody else may go on with it.
        drop(self.tx.take().map(deadpool_postgres::Object::take));
    }
}

enum Value {
    Int(i64),
    Text(Option<String>),
}

impl Value {
    fn of(cursor: &Cursor) -> Self {
        match cursor {
            Cursor::Int(n) => Self::Int(*n),
            Cursor::Text(text) => Self::Text(Some(clean(text))),
            Cursor::Null => Self::Text(None),
        }
    }

    fn param(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Int(n) => n,
            Self::Text(text) => text,
        }
    }
}

pub(crate) async fn blob(db: &Reader, digest: &str) -> Result<Option<Bytes>> {
    let sql = "SELECT bytes FROM blobs WHERE digest = $1";
    Ok(db.rows(sql, &[&digest], |row| Ok(Bytes::from(row.get::<_, Vec<u8>>(0)))).await?.pop())
}

/// The run's row number, the number of its last event, and its record.
pub(crate) async fn find_run(db: &Reader, run: &RunKey) -> Result<Option<(i64, u64, RunRecord)>> {
    let sql =
        "SELECT id, seq, created_at, info FROM runs WHERE org = $1 AND project = $2 AND domain = $3 AND name = $4";
    let scope = &run.scope;
    let mut found = db
        .rows(sql, &[&clean(&scope.org), &clean(&scope.project), &clean(&scope.domain), &clean(&run.name)], |row| {
            let record = RunRecord { key: run.clone(), created_at: time(row, 2), info: run_info(row, 3)? };
            Ok((row.get(0), number(row, 1), record))
        })
        .await?;
    Ok(found.pop())
}

pub(crate) fn run_info(row: &Row, column: usize) -> Result<RunInfo> {
    decode(row, column, "a run")
}

pub(crate) fn state(row: &Row, column: usize) -> Result<ActionState> {
    decode(row, column, "the state of an action")
}

/// Shows live actions below an ended one as ended, whatever their own record says yet (design rule 5).
pub(crate) async fn as_shown(db: &Reader, run_id: i64, states: Vec<ActionState>) -> Result<Vec<ActionState>> {
    let live = states.iter().filter(|s| !s.phase.is_terminal());
    let names: BTreeSet<&str> = live.flat_map(|s| s.ancestors.iter().map(ActionName::as_str)).collect();
    if names.is_empty() {
        return Ok(states);
    }
    let names: Vec<&str> = names.into_iter().collect();
    let sql = "SELECT state FROM actions WHERE run_id = $1 AND name = ANY($2) AND ended_at IS NOT NULL";
    let ended = db.rows(sql, &[&run_id, &names], |row| state(row, 0)).await?;
    if ended.is_empty() {
        return Ok(states);
    }
    let ended: HashMap<ActionName, ActionState> = ended.into_iter().map(|s| (s.name.clone(), s)).collect();
    let shown = states.into_iter().map(|state| {
        let above = ActionState::that_ended_below(state.ancestors.iter().filter_map(|name| ended.get(name)));
        match above.filter(|_| !state.phase.is_terminal()) {
            Some(above) => state.shown_under(above),
            None => state,
        }
    });
    Ok(shown.collect())
}

/// The first and the last number that an action of a run can have.
pub(crate) fn places(run_id: i64) -> (i64, i64) {
    (run_id * ACTIONS, run_id * ACTIONS + (ACTIONS - 1))
}

pub(crate) async fn snapshot(db: &Reader, run: &RunKey, which: &Which) -> Result<Option<Snapshot>> {
    match which {
        Which::One(name) => one(db, run, name).await,
        Which::All => many(db, run, None).await,
        Which::ChildrenOf(parent) => many(db, run, Some(parent)).await,
    }
}

/// All actions of a run, or those below one.
async fn many(db: &Reader, run: &RunKey, parent: Option<&ActionName>) -> Result<Option<Snapshot>> {
    let Some((run_id, seq, _)) = find_run(db, run).await? else { return Ok(None) };
    let actions = match parent {
        None => {
            let sql = "SELECT state FROM actions WHERE id BETWEEN $1 AND $2 ORDER BY id";
            let (first, last) = places(run_id);
            db.rows(sql, &[&first, &last], |row| state(row, 0)).await?
        }
        Some(parent) => {
            let sql = "SELECT state FROM actions WHERE run_id + 0 = $1 AND parent = $2 ORDER BY id";
            db.rows(sql, &[&run_id, &parent.as_str()], |row| state(row, 0)).await?
        }
    };
    Ok(Some(Snapshot { seq, actions: as_shown(db, run_id, actions).await? }))
}

/// One action, in one statement if nothing is above it.
async fn one(db: &Reader, run: &RunKey, name: &ActionName) -> Result<Option<Snapshot>> {
    let sql = "SELECT r.id, r.seq, a.state FROM runs r LEFT JOIN actions a ON a.run_id = r.id AND a.name = $5
               WHERE r.org = $1 AND r.project = $2 AND r.domain = $3 AND r.name = $4";
    let scope = &run.scope;
    let params: [&(dyn ToSql + Sync); 5] =
        [&clean(&scope.org), &clean(&scope.project), &clean(&scope.domain), &clean(&run.name), &name.as_str()];
    let found = db.rows(sql, &params, |row| {
        let exists = row.get::<_, Option<&[u8]>>(2).is_some();
        Ok((row.get::<_, i64>(0), number(row, 1), exists.then(|| state(row, 2)).transpose()?))
    });
    let Some((run_id, seq, state)) = found.await?.pop() else { return Ok(None) };
    Ok(Some(Snapshot { seq, actions: as_shown(db, run_id, state.into_iter().collect()).await? }))
}

fn logged(row: &Row, first: usize) -> Result<Logged> {
    let event: Event = decode(row, first + 2, "an event")?;
    Ok(Logged { seq: number(row, first), at: time(row, first + 1), event })
}

pub(crate) async fn events_after(db: &Reader, run: &RunKey, seq: u64, limit: usize) -> Result<Vec<Logged>> {
    let sql = "SELECT e.seq, e.at, e.body FROM runs r JOIN events e ON e.run_id = r.id
               WHERE r.org = $1 AND r.project = $2 AND r.domain = $3 AND r.name = $4 AND e.seq > $5
               ORDER BY e.seq LIMIT $6";
    let scope = &run.scope;
    let params: [&(dyn ToSql + Sync); 6] =
        [&scope.org, &scope.project, &scope.domain, &run.name, &amount(seq), &amount(limit as u64)];
    db.rows(sql, &params, |row| logged(row, 0)).await
}

/// A place in the feed is the commit's number and the event's place in the commit.
pub(crate) async fn feed_after(db: &Reader, pos: u64, limit: usize) -> Result<Vec<FeedItem>> {
    let (mut commit, mut place) = (pos / PLACES, pos % PLACES);
    let sql = "SELECT * FROM (
                   SELECT c.pos, row_number() OVER (PARTITION BY c.pos ORDER BY k.n, e.seq) AS place,
                          r.org, r.project, r.domain, r.name, e.seq, e.at, e.body
                   FROM (SELECT * FROM commits WHERE pos >= $1 ORDER BY pos LIMIT $2) c
                   CROSS JOIN LATERAL unnest(c.runs, c.firsts, c.lasts) WITH ORDINALITY k (run_id, first, last, n)
                   JOIN events e ON e.run_id = k.run_id AND e.seq BETWEEN k.first AND k.last
                   JOIN runs r ON r.id = k.run_id) f
               WHERE (f.pos, f.place) > ($1, $3) ORDER BY f.pos, f.place LIMIT $2";
    let most = amount(limit as u64 + 1);
    loop {
        let mut items = db
            .rows(sql, &[&amount(commit), &most, &amount(place)], |row| {
                let pos = number(row, 0) * PLACES + number(row, 1);
                Ok(FeedItem { pos, run: run_key(row, 2), logged: logged(row, 6)? })
            })
            .await?;
        items.truncate(limit);
        if !items.is_empty() {
            return Ok(items);
        }
        // Commits of which no run is left hold nothing: what comes after as many of them as were looked at?
        let last = "SELECT max(pos), count(*) FROM (SELECT pos FROM commits WHERE pos >= $1 ORDER BY pos LIMIT $2) c";
        let looked = db.rows(last, &[&amount(commit), &most], |row| Ok((number(row, 0), number(row, 1)))).await?;
        match looked.first() {
            Some((last, count)) if *count > limit as u64 => (commit, place) = (*last + 1, 0),
            _ => return Ok(Vec::new()),
        }
    }
}

pub(crate) async fn sift_feed(db: &Reader, pos: u64, limit: usize, of: Sift) -> Result<Sifted> {
    let (commit, place) = (pos / PLACES, pos % PLACES);
    let sql = "SELECT * FROM (
                   SELECT c.pos, row_number() OVER (PARTITION BY c.pos ORDER BY k.n, e.seq) AS place,
                          k.run_id, e.seq, e.at, e.body
                   FROM (SELECT * FROM commits WHERE pos >= $1 ORDER BY pos LIMIT $3) c
                   CROSS JOIN LATERAL unnest(c.runs, c.firsts, c.lasts) WITH ORDINALITY k (run_id, first, last, n)
                   JOIN events e ON e.run_id = k.run_id AND e.seq BETWEEN k.first AND k.last) f
               WHERE (f.pos, f.place) > ($1, $2) ORDER BY f.pos, f.place LIMIT $3";
    let params: [&(dyn ToSql + Sync); 3] = [&amount(commit), &amount(place), &amount(limit as u64)];
    let found = db
        .rows(sql, &params, |row| {
            let pos = number(row, 0) * PLACES + number(row, 1);
            let json = unpack(row.get::<_, &[u8]>(5)).map_err(|e| error::corrupt("an event", e))?;
            let wanted = if of.takes(&json) { Some((row.get::<_, i64>(2), logged(row, 3)?)) } else { None };
            Ok((pos, wanted))
        })
        .await?;
    let (upto, more) = (found.last().map_or(pos, |(pos, _)| *pos), found.len() == limit);
    let wanted: Vec<_> = found.into_iter().filter_map(|(pos, wanted)| Some((pos, wanted?))).collect();
    let ids: Vec<i64> = wanted.iter().map(|(_, (run_id, _))| *run_id).collect();
    let mut runs: HashMap<i64, RunKey> = HashMap::new();
    if !ids.is_empty() {
        let sql = "SELECT org, project, domain, name, id FROM runs WHERE id = ANY($1)";
        runs.extend(db.rows(sql, &[&ids], |row| Ok((row.get::<_, i64>(4), run_key(row, 0)))).await?);
    }
    let items = wanted
        .into_iter()
        .filter_map(|(pos, (run_id, logged))| Some(FeedItem { pos, run: runs.get(&run_id)?.clone(), logged }));
    Ok(Sifted { items: items.collect(), upto, more })
}

/// An action with its run.
type Held = (RunKey, ActionState);

fn with_state(row: &Row) -> Result<Held> {
    Ok((run_key(row, 0), state(row, 4)?))
}

fn named(row: &Row) -> Result<(RunKey, ActionName)> {
    Ok((run_key(row, 0), action_name(row, 4)?))
}

/// When the next of `column` after `now` is.
async fn next(db: &Reader, column: &str, now: Time) -> Result<Option<Time>> {
    let sql = format!("SELECT min({column}) FROM live WHERE {column} > $1");
    Ok(db.rows(&sql, &[&now.as_micros()], |row| Ok(maybe_time(row, 0))).await?.pop().flatten())
}

pub(crate) async fn lookups(db: &Reader, now: Time, limit: usize) -> Result<(Vec<Held>, Option<Time>)> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state
               FROM (SELECT * FROM live WHERE lookup_at <= $1 ORDER BY lookup_at LIMIT $2) l
               JOIN actions a ON a.id = l.id JOIN runs r ON r.id = l.run_id ORDER BY l.lookup_at";
    let due = db.rows(sql, &[&now.as_micros(), &amount(limit as u64)], with_state).await?;
    Ok((due, next(db, "lookup_at", now).await?))
}

pub(crate) async fn calls_due(db: &Reader, limit: usize) -> Result<Vec<Held>> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state FROM live l JOIN actions a ON a.id = l.id
               JOIN runs r ON r.id = l.run_id WHERE l.call_at IS NOT NULL ORDER BY l.call_at LIMIT $1";
    db.rows(sql, &[&amount(limit as u64)], with_state).await
}

pub(crate) async fn due(db: &Reader, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionName)>, Option<Time>)> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, l.name FROM live l JOIN runs r ON r.id = l.run_id
               WHERE l.due_at <= $1 ORDER BY l.due_at LIMIT $2";
    let due = db.rows(sql, &[&now.as_micros(), &amount(limit as u64)], named).await?;
    Ok((due, next(db, "due_at", now).await?))
}

pub(crate) async fn held_by(db: &Reader, worker: &WorkerId) -> Result<Vec<Held>> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state FROM live l JOIN actions a ON a.id = l.id
               JOIN runs r ON r.id = l.run_id WHERE l.worker = $1 ORDER BY l.id";
    db.rows(sql, &[&worker.0], with_state).await
}

/// Up to `limit` actions that `worker` holds after row `after`, and the last row if there may be more.
pub(crate) async fn held_part(
    db: &Reader,
    worker: &WorkerId,
    after: Option<i64>,
    limit: usize,
) -> Result<(Vec<Held>, Option<i64>)> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state, l.id FROM live l JOIN actions a ON a.id = l.id
               JOIN runs r ON r.id = l.run_id WHERE l.worker = $1 AND l.id > $2 ORDER BY l.id LIMIT $3";
    let params: [&(dyn ToSql + Sync); 3] = [&worker.0, &after.unwrap_or(i64::MIN), &amount(limit as u64)];
    let found = db.rows(sql, &params, |row| Ok((with_state(row)?, row.get::<_, i64>(5)))).await?;
    let next = found.last().map(|(_, id)| *id).filter(|_| found.len() == limit);
    Ok((found.into_iter().map(|(held, _)| held).collect(), next))
}

pub(crate) async fn unsettled(db: &Reader, limit: usize) -> Result<Vec<(RunKey, ActionName)>> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, c.name FROM live p
               JOIN live c ON c.run_id = p.run_id AND c.parent = p.name AND NOT c.ended
               JOIN runs r ON r.id = p.run_id WHERE p.ended LIMIT $1";
    db.rows(sql, &[&amount(limit as u64)], named).await
}

pub(crate) const TASK_COLUMNS: &str = "t.org, t.project, t.domain, t.name, t.version, t.digest, t.short_name,
                                       t.environment, t.entrypoint, t.deployed_at, t.deployer";

pub(crate) fn deployed(row: &Row, first: usize) -> Result<DeployedTask> {
    let key = run_key(row, first);
    Ok(DeployedTask {
        id: TaskId { scope: key.scope, name: key.name, version: row.get(first + 4) },
        digest: row.get(first + 5),
        short_name: row.get(first + 6),
        environment: row.get(first + 7),
        entrypoint: row.get::<_, i64>(first + 8) != 0,
        deployed_at: time(row, first + 9),
        deployed_by: decode(row, first + 10, "the deployer of a task")?,
    })
}

pub(crate) async fn task(db: &Reader, id: &TaskId) -> Result<Option<DeployedTask>> {
    let sql = format!(
        "SELECT {TASK_COLUMNS} FROM tasks t
         WHERE t.org = $1 AND t.project = $2 AND t.domain = $3 AND t.name = $4 AND t.version = $5"
    );
    let params: [&(dyn ToSql + Sync); 5] =
        [&id.scope.org, &id.scope.project, &id.scope.domain, &clean(&id.name), &clean(&id.version)];
    Ok(db.rows(&sql, &params, |row| deployed(row, 0)).await?.pop())
}

pub(crate) async fn project(db: &Reader, org: &str, id: &str) -> Result<Option<Project>> {
    let sql = "SELECT body FROM projects WHERE org = $1 AND id = $2";
    Ok(db.rows(sql, &[&clean(org), &clean(id)], |row| decode(row, 0, "a project")).await?.pop())
}

pub(crate) async fn projects(db: &Reader, org: &str) -> Result<Vec<Project>> {
    db.rows("SELECT body FROM projects WHERE org = $1 ORDER BY id", &[&org], |row| decode(row, 0, "a project")).await
}
