//! What waits, what is in flight, and what limits it.

use std::collections::HashMap;

use aloft_core::{
    Asks, Candidate, Group, Lane, Load, Offer, QueueLimits, QueueSpec, ResourceCaps, RunKey, Scope, Time, WaitingRun,
};
use aloft_store::{Census, OfferPlace, Offered, ProjectLimits, Queue, QueueLoad, StoreError};
use tokio_postgres::{Row, types::ToSql};

use crate::{
    read::Reader,
    rows::{action_name, decode, maybe_time, number, run_key, time},
};

/// Fewest candidates of one group that are offered, however many groups there are.
const HEADS: usize = 8;

/// Most parents of one group that are tried again and offered together.
const PARENTS: usize = 64;

/// Sums of what queues hold, in the order of [`load`].
const SUMS: &str = "coalesce(sum(l.runs), 0)::bigint, coalesce(sum(l.counted), 0)::bigint,
                    coalesce(sum(l.memory), 0)::bigint, coalesce(sum(l.cpu), 0)::bigint,
                    coalesce(sum(l.gpu), 0)::bigint";

fn load(row: &Row, first: usize) -> Load {
    let asks = Asks { memory: number(row, first + 2), cpu: number(row, first + 3), gpu: number(row, first + 4) };
    Load { runs: number(row, first), actions: number(row, first + 1), asks }
}

/// What waits and may start by `now`, with all that limits it.
pub(crate) async fn offer(
    db: &Reader,
    now: Time,
    after: &OfferPlace,
    groups: usize,
    each: usize,
) -> Result<Offered, StoreError> {
    // A step over the index for each group, however much waits in it.
    let sql = "WITH RECURSIVE g AS (
                   (SELECT run_id, queue FROM live WHERE ready_at IS NOT NULL AND (run_id, queue) > ($1, $2)
                    ORDER BY run_id, queue LIMIT 1)
                   UNION ALL
                   SELECT n.run_id, n.queue FROM g CROSS JOIN LATERAL (
                       SELECT run_id, queue FROM live WHERE ready_at IS NOT NULL AND (run_id, queue) > (g.run_id, g.queue)
                       ORDER BY run_id, queue LIMIT 1) n)
               SELECT run_id, queue FROM g LIMIT $3";
    let limit = groups as i64 + 1;
    let from: [&(dyn ToSql + Sync); 3] = [&after.run, &after.queue, &limit];
    let found = db.rows(sql, &from, |row| Ok(OfferPlace { run: row.get(0), queue: row.get(1) }));
    let sql = "SELECT min(ready_at) FROM live WHERE ready_at > $1";
    let now = now.as_micros();
    let later: [&(dyn ToSql + Sync); 1] = [&now];
    let next_ready = db.rows(sql, &later, |row| Ok(maybe_time(row, 0)));
    // What does not depend on what waits is asked for together with it.
    let (mut found, limits, mut next_ready) = tokio::try_join!(biased; found, Limits::read(db), next_ready)?;
    let next_ready = next_ready.pop().flatten();
    if found.is_empty() {
        return Ok(Offered { offer: Offer::default(), next: None, next_ready });
    }
    let more = found.len() > groups;
    found.truncate(groups);
    // Of many groups a few heads each are enough for a plan: one that needs more of a group asks again.
    let each = (each.saturating_mul(4) / found.len().max(1)).clamp(HEADS.min(each), each);
    let (runs, queues): (Vec<i64>, Vec<&str>) = found.iter().map(|g| (g.run, g.queue.as_str())).unzip();
    // A parent that is tried again while its children go on counts against no limit, so it does not wait in line.
    let sql = "SELECT k.n, c.name, c.ready_at, c.asks_memory, c.asks_cpu, c.asks_gpu, c.open_children
               FROM unnest($1::bigint[], $2::text[]) WITH ORDINALITY k (run_id, queue, n)
               CROSS JOIN LATERAL (
                   (SELECT * FROM live
                    WHERE run_id = k.run_id AND queue = k.queue AND ready_at IS NOT NULL AND ready_at <= $3
                      AND open_children > 0
                    ORDER BY ready_at LIMIT $5)
                   UNION ALL
                   (SELECT * FROM live
                    WHERE run_id = k.run_id AND queue = k.queue AND ready_at IS NOT NULL AND ready_at <= $3
                      AND open_children = 0
                    ORDER BY ready_at, depth DESC LIMIT $4)) c
               ORDER BY k.n, c.open_children = 0, c.ready_at, c.depth DESC";
    let (most, parents) = (each as i64, PARENTS as i64);
    let heads: [&(dyn ToSql + Sync); 5] = [&runs, &queues, &now, &most, &parents];
    let waiting = db.rows(sql, &heads, |row| {
        let candidate = Candidate {
            action: action_name(row, 1)?,
            ready_at: time(row, 2),
            asks: Asks { memory: number(row, 3), cpu: number(row, 4), gpu: number(row, 5) },
            counts: row.get::<_, i64>(6) == 0,
        };
        Ok((usize::try_from(row.get::<_, i64>(0) - 1).unwrap_or(0), candidate))
    });
    let (waiting, runs) = tokio::try_join!(biased; waiting, waiting_runs(db, &runs))?;
    let mut candidates: HashMap<usize, Vec<Candidate>> = HashMap::new();
    for (place, candidate) in waiting {
        candidates.entry(place).or_default().push(candidate);
    }
    let mut gathered = Gathered::new(runs, limits);
    for (place, group) in found.iter().enumerate() {
        let Some(candidates) = candidates.remove(&place) else { continue };
        gathered.add(group, candidates)?;
    }
    Ok(Offered { offer: gathered.offer, next: found.pop().filter(|_| more), next_ready })
}

struct RunFound {
    key: RunKey,
    max_actions: Option<u32>,
    in_flight: u64,
    started: bool,
}

async fn waiting_runs(db: &Reader, runs: &[i64]) -> Result<HashMap<i64, RunFound>, StoreError> {
    let sql = "SELECT org, project, domain, name, id, max_actions, in_flight, started FROM runs WHERE id = ANY($1)";
    let of_runs: [&(dyn ToSql + Sync); 1] = [&runs];
    let found = db.rows(sql, &of_runs, |row| {
        let most = row.get::<_, Option<i64>>(5).and_then(|n| u32::try_from(n).ok());
        let run = RunFound { key: run_key(row, 0), max_actions: most, in_flight: number(row, 6), started: row.get(7) };
        Ok((row.get::<_, i64>(4), run))
    });
    Ok(found.await?.into_iter().collect())
}

/// All queues and limits, with what is in flight in each.
struct Limits {
    specs: HashMap<(String, String), (QueueSpec, Load)>,
    limits: Vec<(ProjectLimits, Load)>,
}

impl Limits {
    async fn read(db: &Reader) -> Result<Self, StoreError> {
        let of_queues = format!(
            "SELECT q.body, {SUMS} FROM queues q LEFT JOIN loads l ON l.org = q.org AND l.queue = q.name
             GROUP BY q.org, q.name, q.body"
        );
        let none: [&(dyn ToSql + Sync); 0] = [];
        let specs = db.rows(&of_queues, &none, |row| {
            let queue: Queue = decode(row, 0, "a queue")?;
            Ok(((queue.org, queue.name), (queue.spec, load(row, 1))))
        });
        let of_projects = format!(
            "SELECT p.body, {SUMS} FROM project_limits p
             LEFT JOIN loads l ON l.org = p.org AND l.project = p.project AND p.domain IN ('', l.domain)
             GROUP BY p.org, p.project, p.domain, p.body ORDER BY p.org, p.project, p.domain"
        );
        let limits = db.rows(&of_projects, &none, |row| Ok((decode(row, 0, "the limits of a project")?, load(row, 1))));
        let (specs, limits) = tokio::try_join!(specs, limits)?;
        Ok(Self { specs: specs.into_iter().collect(), limits })
    }
}

/// The runs, queues and places of an offer, each once.
struct Gathered {
    offer: Offer,
    found: HashMap<i64, RunFound>,
    specs: HashMap<(String, String), (QueueSpec, Load)>,
    limits: Vec<(ProjectLimits, Load)>,
    runs: HashMap<i64, usize>,
    queues: HashMap<(String, String), usize>,
    places: HashMap<(String, String, String), usize>,
}

impl Gathered {
    fn new(found: HashMap<i64, RunFound>, limits: Limits) -> Self {
        let Limits { specs, limits } = limits;
        Self {
            offer: Offer::default(),
            found,
            specs,
            limits,
            runs: HashMap::new(),
            queues: HashMap::new(),
            places: HashMap::new(),
        }
    }

    fn add(&mut self, group: &OfferPlace, candidates: Vec<Candidate>) -> Result<(), StoreError> {
        let run = self.run(group.run)?;
        let org = self.offer.runs[run].run.scope.org.clone();
        let queue = self.queue(&org, &group.queue);
        self.offer.groups.push(Group { run, queue, candidates });
        Ok(())
    }

    fn run(&mut self, id: i64) -> Result<usize, StoreError> {
        if let Some(found) = self.runs.get(&id) {
            return Ok(*found);
        }
        let Some(found) = self.found.remove(&id) else {
            return Err(StoreError::Corrupt(format!("actions of a run that is not there ({id})")));
        };
        let places = self.places_of(&found.key.scope);
        let RunFound { key, max_actions, in_flight, started } = found;
        self.offer.runs.push(WaitingRun { run: key, max_actions, in_flight, started, places });
        let index = self.offer.runs.len() - 1;
        self.runs.insert(id, index);
        Ok(index)
    }

    fn queue(&mut self, org: &str, name: &str) -> usize {
        let key = (org.to_owned(), name.to_owned());
        if let Some(found) = self.queues.get(&key) {
            return *found;
        }
        let (spec, load) = self.specs.get(&key).cloned().unwrap_or_default();
        self.offer.queues.push(Lane { name: format!("queue {name}"), spec, load });
        let index = self.offer.queues.len() - 1;
        self.queues.insert(key, index);
        index
    }

    fn places_of(&mut self, scope: &Scope) -> Vec<usize> {
        let mut indices = Vec::new();
        for (limits, load) in &self.limits {
            let here = limits.org == scope.org && limits.project == scope.project;
            if !here || !(limits.domain.is_empty() || limits.domain == scope.domain) {
                continue;
            }
            let key = (limits.org.clone(), limits.project.clone(), limits.domain.clone());
            if let Some(found) = self.places.get(&key) {
                indices.push(*found);
                continue;
            }
            let name = match limits.domain.as_str() {
                "" => format!("project {}", limits.project),
                domain => format!("domain {domain} of project {}", limits.project),
            };
            let of_place = QueueLimits {
                run_concurrency: limits.run_concurrency,
                action_concurrency: limits.action_concurrency,
                depth: limits.depth,
                resources: ResourceCaps::default(),
            };
            let spec = QueueSpec { limits: of_place, ..QueueSpec::default() };
            self.offer.places.push(Lane { name, spec, load: *load });
            self.places.insert(key, self.offer.places.len() - 1);
            indices.push(self.offer.places.len() - 1);
        }
        indices
    }
}

/// What queues of an organisation hold, one of them or all.
pub(crate) async fn loads(db: &Reader, org: &str, name: Option<&str>) -> Result<Vec<(String, QueueLoad)>, StoreError> {
    let sql = "SELECT queue, sum(waiting)::bigint, sum(held)::bigint, sum(runs)::bigint FROM loads
               WHERE org = $1 AND ($2::text IS NULL OR queue = $2) GROUP BY queue
               HAVING sum(waiting) > 0 OR sum(held) > 0 OR sum(runs) > 0";
    db.rows(sql, &[&org, &name], |row| {
        let load = QueueLoad { waiting: number(row, 1), running: number(row, 2), runs: number(row, 3) };
        Ok((row.get(0), load))
    })
    .await
}

pub(crate) async fn census(db: &Reader) -> Result<Census, StoreError> {
    let sql = "SELECT (SELECT count(*) FROM run_index WHERE ended_at IS NULL),
                      (SELECT count(*) FILTER (WHERE NOT ended) FROM live), (SELECT count(DISTINCT worker) FROM live)";
    let found = db.rows(sql, &[], |row| Ok((number(row, 0), number(row, 1), number(row, 2)))).await?;
    let (runs, actions, workers) = found.into_iter().next().unwrap_or_default();
    let sql =
        "SELECT org, queue, sum(waiting)::bigint, sum(held)::bigint, sum(runs)::bigint FROM loads GROUP BY org, queue
               HAVING sum(waiting) > 0 OR sum(held) > 0 OR sum(runs) > 0";
    let queues = db
        .rows(sql, &[], |row| {
            let load = QueueLoad { waiting: number(row, 2), running: number(row, 3), runs: number(row, 4) };
            Ok(((row.get(0), row.get(1)), load))
        })
        .await?;
    Ok(Census { queues: queues.into_iter().collect(), runs, actions, workers })
}
