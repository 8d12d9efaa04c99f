//! What waits, what is in flight, and what limits it.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
};

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

/// Groups after place ($1, $2), at most $3 and one more, with their runs; of each but the last of too many the candidates by time
/// $4: its parents that are tried again, at most $5, and up to $6 others, fewer if there are many groups, but up to $7. A step
/// over the index for each group, however much waits in it.
const GROUPS: &str = "
    WITH RECURSIVE g AS (
        (SELECT run_id, queue FROM live WHERE ready_at IS NOT NULL AND (run_id, queue) > ($1, $2)
         ORDER BY run_id, queue LIMIT 1)
        UNION ALL
        SELECT n.run_id, n.queue FROM g CROSS JOIN LATERAL (
            SELECT run_id, queue FROM live WHERE ready_at IS NOT NULL AND (run_id, queue) > (g.run_id, g.queue)
            ORDER BY run_id, queue LIMIT 1) n),
    k AS MATERIALIZED (
        SELECT row_number() OVER () AS n, run_id, queue FROM (SELECT * FROM g LIMIT $3::bigint + 1) s),
    many AS MATERIALIZED (
        SELECT least($6::bigint, greatest($7::bigint, 4 * $6 / greatest(least(count(*), $3), 1))) AS heads FROM k)
    SELECT k.n, k.run_id, k.queue, c.name, c.ready_at, c.asks_memory, c.asks_cpu, c.asks_gpu, c.open_children,
           r.org, r.project, r.domain, r.name, r.max_actions, r.in_flight, r.started
    FROM k
    LEFT JOIN LATERAL (SELECT * FROM runs WHERE id = k.run_id LIMIT 1) r ON true
    LEFT JOIN LATERAL (
        (SELECT * FROM live
         WHERE run_id = k.run_id AND queue = k.queue AND ready_at IS NOT NULL AND ready_at <= $4::bigint
           AND open_children > 0 AND k.n <= $3
         ORDER BY ready_at LIMIT $5::bigint)
        UNION ALL
        (SELECT * FROM live
         WHERE run_id = k.run_id AND queue = k.queue AND ready_at IS NOT NULL AND ready_at <= $4::bigint
           AND open_children = 0 AND k.n <= $3
         ORDER BY ready_at, depth DESC LIMIT (SELECT heads FROM many))) c ON true
    ORDER BY k.n, c.open_children = 0, c.ready_at, c.depth DESC";

/// What waits and may start by `now`, with all that limits it. What it asks for goes out at once.
pub(crate) async fn offer(
    db: &Reader,
    now: Time,
    after: &OfferPlace,
    groups: usize,
    each: usize,
) -> Result<Offered, StoreError> {
    let micros = now.as_micros();
    let (most, each, parents, heads) = (groups as i64, each as i64, PARENTS as i64, HEADS as i64);
    // A parent that is tried again while its children go on counts against no limit, so it does not wait in line.
    let of_groups: [&(dyn ToSql + Sync); 7] = [&after.run, &after.queue, &most, &micros, &parents, &each, &heads];
    let last = AtomicI64::new(0);
    let waiting = db.rows(GROUPS, &of_groups, |row| {
        let group = OfferPlace { run: row.get(1), queue: row.get(2) };
        let candidate = match row.get::<_, Option<&str>>(3) {
            Some(_) => Some(Candidate {
                action: action_name(row, 3)?,
                ready_at: time(row, 4),
                asks: Asks { memory: number(row, 5), cpu: number(row, 6), gpu: number(row, 7) },
                counts: row.get::<_, i64>(8) == 0,
            }),
            None => None,
        };
        // Once for each group is enough.
        let n = row.get::<_, i64>(0);
        let run = row.get::<_, Option<&str>>(9).filter(|_| last.swap(n, Relaxed) != n).map(|_| RunFound {
            key: run_key(row, 9),
            max_actions: row.get::<_, Option<i64>>(13).and_then(|n| u32::try_from(n).ok()),
            in_flight: number(row, 14),
            started: row.get(15),
        });
        Ok((n, group, candidate, run))
    });
    let sql = "SELECT min(ready_at + 0) FROM live WHERE ready_at IS NOT NULL AND ready_at + 0 > $1";
    let later: [&(dyn ToSql + Sync); 1] = [&micros];
    let next_ready = db.rows(sql, &later, |row| Ok(maybe_time(row, 0)));
    let (waiting, limits, mut next_ready) = tokio::try_join!(biased; waiting, Limits::read(db), next_ready)?;
    let next_ready = next_ready.pop().flatten();
    let more = waiting.last().is_some_and(|(n, ..)| *n > most);
    let mut next = None;
    let mut gathered = Gathered::new(limits);
    for (n, group, candidate, run) in waiting.into_iter().filter(|(n, ..)| *n <= most) {
        if let Some(candidate) = candidate {
            gathered.add(n, &group, run, candidate)?;
        }
        next = Some(group);
    }
    Ok(Offered { offer: gathered.offer, next: next.filter(|_| more), next_ready })
}

struct RunFound {
    key: RunKey,
    max_actions: Option<u32>,
    in_flight: u64,
    started: bool,
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
    /// The number of the last group.
    last: i64,
    specs: HashMap<(String, String), (QueueSpec, Load)>,
    limits: Vec<(ProjectLimits, Load)>,
    runs: HashMap<i64, usize>,
    queues: HashMap<(String, String), usize>,
    places: HashMap<(String, String, String), usize>,
}

impl Gathered {
    fn new(limits: Limits) -> Self {
        let Limits { specs, limits } = limits;
        Self {
            offer: Offer::default(),
            last: 0,
            specs,
            limits,
            runs: HashMap::new(),
            queues: HashMap::new(),
            places: HashMap::new(),
        }
    }

    /// Adds a candidate of group number `n`, which comes after all of the groups before.
    fn add(
        &mut self,
        n: i64,
        place: &OfferPlace,
        run: Option<RunFound>,
        candidate: Candidate,
    ) -> Result<(), StoreError> {
        if let Some(group) = self.offer.groups.last_mut().filter(|_| self.last == n) {
            group.candidates.push(candidate);
            return Ok(());
        }
        let run = self.run(place.run, run)?;
        let org = self.offer.runs[run].run.scope.org.clone();
        let queue = self.queue(&org, &place.queue);
        self.offer.groups.push(Group { run, queue, candidates: vec![candidate] });
        self.last = n;
        Ok(())
    }

    fn run(&mut self, id: i64, found: Option<RunFound>) -> Result<usize, StoreError> {
        if let Some(found) = self.runs.get(&id) {
            return Ok(*found);
        }
        let Some(found) = found else {
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
