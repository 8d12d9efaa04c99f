//! What waits, what is in flight, and what limits it.

use std::collections::HashMap;

use aloft_core::{
    ActionName, Asks, Candidate, EndedBelow, Group, Lane, Load, Offer, QueueLimits, QueueRoom, QueueSpec, QueueState,
    ResourceCaps, RunKey, Scope, Time, WaitingRun,
};
use aloft_store::{OfferPlace, Offered};
use rusqlite::{Connection, OptionalExtension as _, params};

use crate::{
    error::from_sqlite,
    queues,
    read::{Result, action_name, get, next, rows, run_key},
};

pub(crate) fn open_children(db: &Connection, run_id: i64, name: &ActionName) -> Result<EndedBelow> {
    let sql = "SELECT name FROM actions INDEXED BY actions_live
               WHERE run_id = ?1 AND parent = ?2 AND ended_at IS NULL LIMIT ?3";
    let limit = EndedBelow::NAMES as i64;
    let names: Vec<_> = rows(db, sql, &[&run_id, &name.as_str(), &limit], |row| action_name(row, 0))?;
    let count = if names.len() < EndedBelow::NAMES {
        names.len() as u64
    } else {
        let sql = "SELECT open_children FROM actions WHERE run_id = ?1 AND name = ?2";
        let count: i64 = db
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row(params![run_id, name.as_str()], |row| row.get(0)))
            .map_err(from_sqlite)?;
        count.max(0) as u64
    };
    Ok(EndedBelow { count, names })
}

/// The runs, queues and places of an offer, each once.
#[derive(Default)]
struct Gathered {
    offer: Offer,
    runs: HashMap<i64, usize>,
    queues: HashMap<(String, String), usize>,
    places: HashMap<(String, String, String), usize>,
}

/// Fewest candidates of one group that are offered, however many groups there are.
const HEADS: usize = 8;

pub(crate) fn offer(db: &Connection, now: Time, after: &OfferPlace, groups: usize, each: usize) -> Result<Offered> {
    let mut gathered = Gathered::default();
    let mut found: Vec<OfferPlace> = Vec::new();
    let more = loop {
        let Some(group) = next_group(db, found.last().unwrap_or(after))? else { break false };
        if found.len() == groups {
            break true;
        }
        found.push(group);
    };
    // Of many groups a few heads each are enough for a plan: one that needs more of a group asks again.
    let each = (each.saturating_mul(4) / found.len().max(1)).clamp(HEADS.min(each), each);
    for place in &found {
        let candidates = candidates(db, place, now, each)?;
        if candidates.is_empty() {
            continue;
        }
        let run = gathered.run(db, place.run)?;
        let org = gathered.offer.runs[run].run.scope.org.clone();
        let queue = gathered.queue(db, &org, &place.queue)?;
        gathered.offer.groups.push(Group { run, queue, candidates });
    }
    let next_ready = next(db, "ready_at", now.as_micros())?;
    Ok(Offered { offer: gathered.offer, next: found.pop().filter(|_| more), next_ready })
}

/// The first group of a run and queue after `at`. A step over the index for each, however much waits in it.
fn next_group(db: &Connection, at: &OfferPlace) -> Result<Option<OfferPlace>> {
    let sql = "SELECT run_id, queue FROM actions INDEXED BY actions_ready
               WHERE ready_at IS NOT NULL AND (run_id, queue) > (?1, ?2) ORDER BY run_id, queue LIMIT 1";
    db.prepare_cached(sql)
        .and_then(|mut s| {
            s.query_row(params![at.run, at.queue], |row| Ok(OfferPlace { run: row.get(0)?, queue: row.get(1)? }))
                .optional()
        })
        .map_err(from_sqlite)
}

/// Most parents of one group that are tried again and offered together.
const PARENTS: usize = 64;

fn candidates(db: &Connection, of: &OfferPlace, now: Time, limit: usize) -> Result<Vec<Candidate>> {
    // A parent that is tried again while its children go on counts against no limit, so it does not wait in line.
    let mut found = ready(db, of, now, "actions_ready_parents", "open_children > 0", PARENTS)?;
    found.extend(ready(db, of, now, "actions_ready", "open_children = 0", limit)?);
    Ok(found)
}

fn ready(
    db: &Connection,
    of: &OfferPlace,
    now: Time,
    index: &str,
    which: &str,
    limit: usize,
) -> Result<Vec<Candidate>> {
    let sql = format!(
        "SELECT name, ready_at, asks_memory, asks_cpu, asks_gpu, open_children FROM actions INDEXED BY {index}
         WHERE run_id = ?1 AND queue = ?2 AND ready_at IS NOT NULL AND ready_at <= ?3 AND {which}
         ORDER BY ready_at, depth DESC LIMIT ?4"
    );
    rows(db, &sql, &[&of.run, &of.queue, &now.as_micros(), &(limit as i64)], |row| {
        let amount = |column| Ok(get::<i64>(row, column)?.max(0) as u64);
        Ok(Candidate {
            action: action_name(row, 0)?,
            ready_at: Time::from_micros(get(row, 1)?),
            asks: Asks { memory: amount(2)?, cpu: amount(3)?, gpu: amount(4)? },
            counts: amount(5)? == 0,
        })
    })
}

impl Gathered {
    fn run(&mut self, db: &Connection, id: i64) -> Result<usize> {
        if let Some(found) = self.runs.get(&id) {
            return Ok(*found);
        }
        let sql = "SELECT r.org, r.project, r.domain, r.name, r.max_actions, r.started,
                          (SELECT count(*) FROM actions a INDEXED BY actions_counted_of_run
                           WHERE a.run_id = r.id AND a.counted = 1)
                   FROM runs r WHERE r.id = ?1";
        let mut found: Vec<(RunKey, Option<u32>, bool, i64)> =
            rows(db, sql, &[&id], |row| Ok((run_key(row, 0)?, get(row, 4)?, get(row, 5)?, get(row, 6)?)))?;
        let Some((run, max_actions, started, in_flight)) = found.pop() else {
            return Err(aloft_store::StoreError::Corrupt(format!("actions of a run that is not there ({id})")));
        };
        let places = self.places_of(db, &run.scope)?;
        let in_flight = in_flight.max(0) as u64;
        self.offer.runs.push(WaitingRun { run, max_actions, in_flight, started, places });
        let index = self.offer.runs.len() - 1;
        self.runs.insert(id, index);
        Ok(index)
    }

    fn queue(&mut self, db: &Connection, org: &str, name: &str) -> Result<usize> {
        let key = (org.to_owned(), name.to_owned());
        if let Some(found) = self.queues.get(&key) {
            return Ok(*found);
        }
        let spec = queue_spec(db, org, name)?.map(|(spec, _)| spec).unwrap_or_default();
        let load = if is_limited(&spec) { queue_in_flight(db, org, name)? } else { Load::default() };
        self.offer.queues.push(Lane { name: format!("queue {name}"), spec, load });
        let index = self.offer.queues.len() - 1;
        self.queues.insert(key, index);
        Ok(index)
    }

    fn places_of(&mut self, db: &Connection, scope: &Scope) -> Result<Vec<usize>> {
        let mut indices = Vec::new();
        for place in limited_places(db, scope)? {
            let key = (scope.org.clone(), scope.project.clone(), place.domain.clone());
            if let Some(found) = self.places.get(&key) {
                indices.push(*found);
                continue;
            }
            let load = place_in_flight(db, scope, &place.domain)?;
            self.offer.places.push(Lane { name: place.name, spec: place.spec, load });
            self.places.insert(key, self.offer.places.len() - 1);
            indices.push(self.offer.places.len() - 1);
        }
        Ok(indices)
    }
}

fn is_limited(spec: &QueueSpec) -> bool {
    let limits = &spec.limits;
    limits.run_concurrency.is_some() || limits.action_concurrency.is_some() || limits.resources != Default::default()
}

/// The runs and actions in flight that `of`, a condition on `a` and `r`, selects.
fn in_flight(db: &Connection, of: &str, runs: &str, key: &[&dyn rusqlite::ToSql]) -> Result<Load> {
    let sql = format!(
        "SELECT count(*), ifnull(sum(a.asks_memory), 0), ifnull(sum(a.asks_cpu), 0), ifnull(sum(a.asks_gpu), 0)
         FROM actions a JOIN runs r ON r.id = a.run_id WHERE a.counted = 1 AND {of}"
    );
    let amount = |row: &rusqlite::Row<'_>, column| Ok(get::<i64>(row, column)?.max(0) as u64);
    let mut load = rows(db, &sql, key, |row| {
        let asks = Asks { memory: amount(row, 1)?, cpu: amount(row, 2)?, gpu: amount(row, 3)? };
        Ok(Load { runs: 0, actions: amount(row, 0)?, asks })
    })?
    .pop()
    .unwrap_or_default();
    let sql = format!("SELECT count(*) FROM runs r WHERE r.started = 1 AND r.ended = 0 AND {runs}");
    load.runs = rows(db, &sql, key, |row| amount(row, 0))?.pop().unwrap_or_default();
    Ok(load)
}

fn queue_in_flight(db: &Connection, org: &str, name: &str) -> Result<Load> {
    in_flight(db, "a.queue = ?1 AND r.org = ?2", "r.queue = ?1 AND r.org = ?2", &[&name, &org])
}

/// A project, or one domain of it, that has limits.
struct Place {
    /// What it is called in a sentence.
    name: String,
    /// Empty for the whole project.
    domain: String,
    spec: QueueSpec,
}

const IN_PLACE: &str = "r.org = ?1 AND r.project = ?2 AND (?3 = '' OR r.domain = ?3)";

fn place_in_flight(db: &Connection, scope: &Scope, domain: &str) -> Result<Load> {
    in_flight(db, IN_PLACE, IN_PLACE, &[&scope.org, &scope.project, &domain])
}

/// What a queue holds, counted no further than its depth. `None` if there is no such queue.
pub(crate) fn queue_room(db: &Connection, org: &str, name: &str) -> Result<Option<QueueRoom>> {
    let Some((spec, closed)) = queue_spec(db, org, name)? else { return Ok(None) };
    let depth = Some(spec.limits.depth.unwrap_or(aloft_core::DEFAULT_DEPTH));
    let load = QueueRoom { name: format!("queue {name}"), closed, depth, ..QueueRoom::default() };
    held(db, load, "a.queue = ?1 AND r.org = ?2", &[&name, &org]).map(Some)
}

/// What the project and domain of `scope` hold, where they have a depth.
pub(crate) fn place_rooms(db: &Connection, scope: &Scope) -> Result<Vec<QueueRoom>> {
    let limited = limited_places(db, scope)?.into_iter().filter(|p| p.spec.limits.depth.is_some());
    limited
        .map(|place| {
            let load = QueueRoom { name: place.name, depth: place.spec.limits.depth, ..QueueRoom::default() };
            held(db, load, IN_PLACE, &[&scope.org, &scope.project, &place.domain])
        })
        .collect()
}

fn held(db: &Connection, mut load: QueueRoom, of: &str, key: &[&dyn rusqlite::ToSql]) -> Result<QueueRoom> {
    let limit = load.depth.map_or(i64::MAX, i64::from);
    let count = |which: &str| -> Result<u64> {
        let sql = format!(
            "SELECT count(*) FROM (SELECT 1 FROM actions a JOIN runs r ON r.id = a.run_id
                                   WHERE {which} AND {of} LIMIT {limit})"
        );
        Ok(rows(db, &sql, key, |row| get::<i64>(row, 0))?.pop().unwrap_or_default().max(0) as u64)
    };
    load.waiting = count("a.ended_at IS NULL AND a.worker IS NULL AND a.queue IS NOT NULL")?;
    load.running = count("a.counted = 1")?;
    Ok(load)
}

/// A queue's specification, and why it takes no new work. `None` if there is no such queue.
fn queue_spec(db: &Connection, org: &str, name: &str) -> Result<Option<(QueueSpec, Option<&'static str>)>> {
    let Some(queue) = queues::one(db, org, name)? else { return Ok(None) };
    let closed = match queue.state {
        _ if queue.deleted_at.is_some() => Some("deleted"),
        QueueState::Active => None,
        QueueState::Draining => Some("draining"),
        QueueState::Drained => Some("drained"),
    };
    Ok(Some((queue.spec, closed)))
}

/// The project and the domain of `scope`, where they have limits.
fn limited_places(db: &Connection, scope: &Scope) -> Result<Vec<Place>> {
    Ok(queues::limits_of(db, scope)?
        .into_iter()
        .map(|l| {
            let name = match l.domain.as_str() {
                "" => format!("project {}", l.project),
                domain => format!("domain {domain} of project {}", l.project),
            };
            let limits = QueueLimits {
                run_concurrency: l.run_concurrency,
                action_concurrency: l.action_concurrency,
                depth: l.depth,
                resources: ResourceCaps::default(),
            };
            Place { name, domain: l.domain, spec: QueueSpec { limits, ..QueueSpec::default() } }
        })
        .collect())
}
