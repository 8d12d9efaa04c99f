//! What a batch looks at, loaded and locked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aloft_core::{ActionName, ActionState, CacheEntry, Command, QueueState, Reservation, RunKey, Scope, Time};
use aloft_store::{ProjectLimits, Queue, StoreError, Submission};
use tokio_postgres::{Row, types::ToSql};

use super::{
    Trouble,
    kept::{Kept, Noted},
};
use crate::{
    Tx,
    cache::{self, Place},
    rows::{action_name, decode, number, run_key, time},
};

/// A run's row, locked.
#[derive(Clone, Debug)]
pub(super) struct RunRow {
    pub(super) id: i64,
    pub(super) seq: u64,
    pub(super) made: i64,
    pub(super) at: Time,
    pub(super) started: bool,
    pub(super) created_at: Time,
    /// How many batches in a row have found it as this writer had left it.
    pub(super) quiet: u8,
}

/// An action as it is stored.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) id: i64,
    pub(super) state: ActionState,
    pub(super) open_children: i64,
}

/// What a queue or a place holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) waiting: i64,
    pub(super) counted: i64,
}

/// The work that holds a place in the cache: entries by domain, and the reservation.
#[derive(Clone, Debug, Default)]
pub(super) struct Cached {
    pub(super) entries: BTreeMap<String, CacheEntry>,
    pub(super) holder: Option<Reservation>,
}

/// What is not loaded yet and has been asked for.
#[derive(Debug, Default)]
pub(super) struct Missing {
    pub(super) children: BTreeSet<(RunKey, ActionName)>,
    pub(super) cached: BTreeSet<Place>,
}

impl Missing {
    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty() && self.cached.is_empty()
    }
}

/// Queues by organisation and name, with what they hold.
pub(super) type Queues = HashMap<(String, String), (Queue, Held)>;

/// Places with limits, with what they hold.
pub(super) type Places = HashMap<Scope, Vec<(ProjectLimits, Held)>>;

/// What a batch knows before it decides.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Whether records are packed by now.
    pub(super) packs: bool,
    pub(super) runs: HashMap<RunKey, RunRow>,
    pub(super) actions: HashMap<RunKey, HashMap<ActionName, Stored>>,
    /// Open children by their parents: the first few names.
    pub(super) children: HashMap<(RunKey, ActionName), Vec<ActionName>>,
    pub(super) cached: HashMap<Place, Cached>,
    pub(super) queues: Queues,
    pub(super) places: Places,
    /// Numbers for runs that may be new.
    pub(super) fresh: Vec<i64>,
    /// The revision of what runs are created by and of what limits them, if it matters.
    pub(super) site_revision: Option<u64>,
    /// The turn to hand out work in which this process may be.
    pub(super) turn: Option<u64>,
    /// What is known to be recorded of runs.
    pub(super) noted: HashMap<RunKey, Noted>,
}

/// The columns of runs that identify them, as arrays.
fn columns(keys: &[&RunKey]) -> [Vec<String>; 4] {
    let text = |f: fn(&RunKey) -> &String| keys.iter().map(|k| f(k).clone()).collect();
    [text(|k| &k.scope.org), text(|k| &k.scope.project), text(|k| &k.scope.domain), text(|k| &k.name)]
}

impl Known {
    /// Begins on `tx`, locks the runs and loads what the commands touch, with everything above it, and what limits it. The
    /// root of each run comes too: it tells a missing run from a missing action. What can be asked for before the locks have
    /// answered is asked behind them at once: one round trip for most batches.
    pub(super) async fn load(
        tx: &Tx,
        kept: &mut Kept,
        keys: &BTreeSet<&RunKey>,
        submissions: &[Submission],
    ) -> Result<Self, Trouble> {
        let mut known = Self::default();
        let wanted: Vec<&RunKey> = keys.iter().copied().collect();
        let [orgs, projects, domains, names] = columns(&wanted);
        // Before the first is sent: preparing waits for an answer.
        let lock = tx
            .prepare_cached(
                "SELECT r.org, r.project, r.domain, r.name, r.id, r.seq, r.made, r.at, r.started, r.created_at
                 FROM runs r
                 JOIN unnest($1::text[], $2::text[], $3::text[], $4::text[]) k (org, project, domain, name)
                   ON r.org = k.org AND r.project = k.project AND r.domain = k.domain AND r.name = k.name
                 ORDER BY r.id FOR UPDATE OF r",
            )
            .await?;
        let params: [&(dyn ToSql + Sync); 4] = [&orgs, &projects, &domains, &names];
        let guessed = kept.missing(submissions);
        let of = Limited::of(submissions);
        // The first look at each of these sends it, in this order: what is read is read behind the locks, and what limits behind
        // its revision.
        let (begun, locked, found, fresh, limits) = tokio::join!(
            biased;
            tx.batch_execute("BEGIN"),
            tx.query(&lock, &params),
            actions(tx, &guessed),
            numbers(tx, submissions),
            limits(tx, &of),
        );
        begun?;
        for row in locked? {
            let mut run = RunRow {
                id: row.get(4),
                seq: row.get::<_, i64>(5).unsigned_abs(),
                made: row.get(6),
                at: time(&row, 7),
                started: row.get(8),
                created_at: time(&row, 9),
                quiet: 0,
            };
            let key = run_key(&row, 0);
            let (actions, noted) = kept.take(&key, &mut run);
            known.actions.insert(key.clone(), actions);
            known.noted.insert(key.clone(), noted);
            known.runs.insert(key, run);
        }
        (known.queues, known.places) = limits?;
        (known.fresh, known.site_revision) = fresh?;
        kept.keep_limits(&known, of);
        known.load_actions(tx, submissions, guessed, found?).await?;
        Ok(known)
    }

    /// Loads what the commands touch and is not known; what was `asked` for already, and `found`, was.
    async fn load_actions(
        &mut self,
        tx: &Tx,
        submissions: &[Submission],
        mut asked: BTreeSet<(i64, ActionName)>,
        found: Vec<(i64, Stored)>,
    ) -> Result<(), Trouble> {
        let by_id: HashMap<i64, RunKey> = self.runs.iter().map(|(key, run)| (run.id, key.clone())).collect();
        self.add_actions(&by_id, found);
        let mut wanted: BTreeSet<(i64, ActionName)> = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for submission in submissions {
            let Some(run) = self.runs.get(&submission.run) else { continue };
            let known = self.actions.get(&submission.run);
            let mut touched = submission.command.touches();
            touched.push(ActionName::root());
            while let Some(name) = touched.pop() {
                let place = (run.id, name);
                match known.and_then(|k| k.get(&place.1)) {
                    // What is above what is kept may have been forgotten.
                    Some(stored) => {
                        if seen.insert(place) {
                            touched.extend(stored.state.ancestors.iter().cloned());
                        }
                    }
                    None if asked.contains(&place) => {}
                    None => drop(wanted.insert(place)),
                }
            }
        }
        while !wanted.is_empty() {
            let found = actions(tx, &wanted).await?;
            asked.append(&mut wanted);
            let above = found.iter().flat_map(|(run, s)| s.state.ancestors.iter().map(|name| (*run, name.clone())));
            wanted.extend(above.filter(|place| !asked.contains(place)));
            self.add_actions(&by_id, found);
        }
        Ok(())
    }

    fn add_actions(&mut self, by_id: &HashMap<i64, RunKey>, found: Vec<(i64, Stored)>) {
        for (run, stored) in found {
            // Of a run that is gone by now, or was kept under another number, nothing is known.
            let Some(key) = by_id.get(&run) else { continue };
            self.actions.entry(key.clone()).or_default().insert(stored.state.name.clone(), stored);
        }
    }

    /// Loads what decisions have asked for.
    pub(super) async fn add(&mut self, tx: &Tx, missing: &Missing) -> Result<(), Trouble> {
        if !missing.cached.is_empty() {
            self.load_cached(tx, &missing.cached).await?;
        }
        for (run, name) in &missing.children {
            let names = match self.runs.get(run) {
                Some(found) => children(tx, found.id, name).await?,
                None => Vec::new(),
            };
            self.children.insert((run.clone(), name.clone()), names);
        }
        Ok(())
    }

    /// Locks keys of the cache, in one order, and loads what lies there.
    async fn load_cached(&mut self, tx: &Tx, places: &BTreeSet<Place>) -> Result<(), Trouble> {
        cache::lock(tx, places.iter()).await?;
        for place in places {
            let cached = Cached { entries: cache::entries(tx, place).await?, holder: cache::holder(tx, place).await? };
            self.cached.insert(place.clone(), cached);
        }
        Ok(())
    }

    /// A queue's name, whether it is closed, its depth and what it holds.
    pub(super) fn closed(queue: &Queue) -> Option<&'static str> {
        match queue.state {
            _ if queue.deleted_at.is_some() => Some("deleted"),
            QueueState::Active => None,
            QueueState::Draining => Some("draining"),
            QueueState::Drained => Some("drained"),
        }
    }
}

/// Actions by the numbers of their runs and their names.
async fn actions(tx: &Tx, wanted: &BTreeSet<(i64, ActionName)>) -> Result<Vec<(i64, Stored)>, Trouble> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, names): (Vec<i64>, Vec<&str>) = wanted.iter().map(|(id, name)| (*id, name.as_str())).unzip();
    let sql = tx
        .prepare_cached(
            "SELECT a.run_id, a.id, a.state, coalesce(l.open_children, 0) FROM actions a
             JOIN unnest($1::bigint[], $2::text[]) k (run_id, name) ON a.run_id = k.run_id AND a.name = k.name
             LEFT JOIN live l ON l.id = a.id",
        )
        .await?;
    let stored = |row: &Row| {
        let state: ActionState = decode(row, 2, "the state of an action")?;
        Ok((row.get(0), Stored { id: row.get(1), open_children: row.get(3), state }))
    };
    tx.query(&sql, &[&ids, &names]).await?.iter().map(stored).collect()
}

/// A number for each run that the commands create, if it is new; and the revision of what runs are created and limited by.
pub(super) async fn numbers(tx: &Tx, submissions: &[Submission]) -> Result<(Vec<i64>, Option<u64>), Trouble> {
    let count = super::creates(submissions);
    if count == 0 && Limited::of(submissions).is_empty() {
        return Ok((Vec::new(), None));
    }
    let sql = "SELECT revision, ARRAY(SELECT nextval('runs_id_seq') FROM generate_series(1, $1::bigint))
               FROM site_revision";
    let sql = tx.prepare_cached(sql).await?;
    let found = tx.query_one(&sql, &[&(count as i64)]).await?;
    Ok((found.get(1), Some(number(&found, 0))))
}

/// Where commands add work: what is there limits them.
#[derive(Debug, Default)]
pub(super) struct Limited {
    /// Organisations with names of queues.
    pub(super) queues: BTreeSet<(String, String)>,
    pub(super) scopes: BTreeSet<Scope>,
}

impl Limited {
    pub(super) fn of(submissions: &[Submission]) -> Self {
        let mut of = Self::default();
        for submission in submissions {
            if let Command::CreateRun { seed, .. } | Command::Enqueue { seed, .. } = &submission.command
                && let aloft_core::Seed::Task(task) = seed.as_ref()
            {
                of.queues.insert((submission.run.scope.org.clone(), task.queue.clone()));
                of.scopes.insert(submission.run.scope.clone());
            }
        }
        of
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

/// What queues and places hold, where something is to be added to them.
async fn limits(tx: &Tx, of: &Limited) -> Result<(Queues, Places), Trouble> {
    let (mut known_queues, mut known_places) = (Queues::new(), Places::new());
    let Limited { queues, scopes } = of;
    if of.is_empty() {
        return Ok((known_queues, known_places));
    }
    let (orgs, names): (Vec<&str>, Vec<&str>) = queues.iter().map(|(o, n)| (o.as_str(), n.as_str())).unzip();
    let of_queues = tx
        .prepare_cached(
            "SELECT q.org, q.name, q.body, coalesce(sum(l.waiting), 0)::bigint, coalesce(sum(l.counted), 0)::bigint
             FROM queues q JOIN unnest($1::text[], $2::text[]) k (org, name) ON q.org = k.org AND q.name = k.name
             LEFT JOIN loads l ON l.org = q.org AND l.queue = q.name
             GROUP BY q.org, q.name, q.body",
        )
        .await?;
    let (owners, projects): (Vec<&str>, Vec<&str>) =
        scopes.iter().map(|s| (s.org.as_str(), s.project.as_str())).unzip();
    let of_projects = tx
        .prepare_cached(
            "SELECT p.body, coalesce(sum(l.waiting), 0)::bigint, coalesce(sum(l.counted), 0)::bigint
             FROM project_limits p
             LEFT JOIN loads l ON l.org = p.org AND l.project = p.project AND p.domain IN ('', l.domain)
             WHERE (p.org, p.project) IN (SELECT * FROM unnest($1::text[], $2::text[]))
             GROUP BY p.org, p.project, p.domain, p.body ORDER BY p.domain",
        )
        .await?;
    let (queues, places): ([&(dyn ToSql + Sync); 2], [&(dyn ToSql + Sync); 2]) =
        ([&orgs, &names], [&owners, &projects]);
    let (queues, places) = tokio::try_join!(tx.query(&of_queues, &queues), tx.query(&of_projects, &places))?;
    for row in queues {
        let queue: Queue = decode(&row, 2, "a queue")?;
        let held = Held { waiting: row.get(3), counted: row.get(4) };
        known_queues.insert((row.get(0), row.get(1)), (queue, held));
    }
    for row in places {
        let limits: ProjectLimits = decode(&row, 0, "the limits of a project")?;
        let held = Held { waiting: row.get(1), counted: row.get(2) };
        for scope in scopes {
            let here = limits.org == scope.org && limits.project == scope.project;
            if here && (limits.domain.is_empty() || limits.domain == scope.domain) {
                known_places.entry(scope.clone()).or_default().push((limits.clone(), held));
            }
        }
    }
    Ok((known_queues, known_places))
}

/// The names of the first children of `parent` that have not ended, one more than an event names.
async fn children(tx: &Tx, run_id: i64, parent: &ActionName) -> Result<Vec<ActionName>, Trouble> {
    let sql = tx
        .prepare_cached("SELECT name FROM live WHERE run_id = $1 AND parent = $2 AND NOT ended ORDER BY id LIMIT $3")
        .await?;
    let limit = aloft_core::EndedBelow::NAMES as i64;
    let rows: Vec<Row> = tx.query(&sql, &[&run_id, &parent.as_str(), &limit]).await?;
    Ok(rows.iter().map(|row| action_name(row, 0)).collect::<Result<_, StoreError>>()?)
}
