//! The rows of `live`: what has to be looked after.

use aloft_core::{ActionName, Time};

use super::{
    send::{Statements, params},
    write::Row,
};
use crate::rows::{amount, clean};

/// What changes in a row of `live`, a column each.
struct Changing {
    ids: Vec<i64>,
    phases: Vec<i64>,
    ended: Vec<bool>,
    ready: Vec<Option<i64>>,
    due: Vec<Option<i64>>,
    workers: Vec<Option<String>>,
    lookups: Vec<Option<i64>>,
    keys: Vec<Option<String>>,
    calls: Vec<Option<i64>>,
    open: Vec<i64>,
}

impl Changing {
    fn of(rows: &[&Row<'_>]) -> Self {
        let states = || rows.iter().map(|r| &r.changed.state);
        Self {
            ids: rows.iter().map(|r| r.id).collect(),
            phases: states().map(|s| i64::from(s.phase.number())).collect(),
            ended: states().map(|s| s.phase.is_terminal()).collect(),
            ready: states().map(|s| s.ready_at().map(Time::as_micros)).collect(),
            due: states().map(|s| s.due_at().map(Time::as_micros)).collect(),
            workers: states().map(|s| s.live_lease().map(|l| l.worker.0.clone())).collect(),
            lookups: rows.iter().map(|r| r.changed.lookup_at.flatten().map(Time::as_micros)).collect(),
            keys: states().map(|s| s.pending_lookup().map(|p| clean(&p.key))).collect(),
            calls: states().map(|s| s.webhook_is_due().then(|| s.created_at.as_micros())).collect(),
            open: rows.iter().map(|r| r.changed.open_children).collect(),
        }
    }
}

/// Inserts actions that have to be looked after from now on.
pub(super) fn insert(all: &mut Statements<'_>, rows: &[&Row<'_>]) {
    let states = || rows.iter().map(|r| &r.changed.state);
    let run_ids: Vec<i64> = rows.iter().map(|r| r.run_id).collect();
    let names: Vec<String> = states().map(|s| s.name.as_str().to_owned()).collect();
    let parents: Vec<Option<String>> = states().map(|s| s.parent().map(|p| p.as_str().to_owned())).collect();
    let above: Vec<String> =
        states().map(|s| s.ancestors.iter().map(ActionName::as_str).collect::<Vec<_>>().join("\n")).collect();
    let depths: Vec<i64> = states().map(|s| amount(s.ancestors.len() as u64)).collect();
    let tasks: Vec<bool> = states().map(|s| s.task().is_some()).collect();
    let queues: Vec<Option<String>> = states().map(|s| s.queue().map(str::to_owned)).collect();
    let asks: Vec<_> = states().map(|s| s.task().map(|t| t.asks).unwrap_or_default()).collect();
    let memory: Vec<i64> = asks.iter().map(|a| amount(a.memory)).collect();
    let cpu: Vec<i64> = asks.iter().map(|a| amount(a.cpu)).collect();
    let gpu: Vec<i64> = asks.iter().map(|a| amount(a.gpu)).collect();
    let c = Changing::of(rows);
    let sql = "INSERT INTO live (id, run_id, name, parent, ancestors, depth, phase, ended, task, queue, ready_at, due_at,
                                 worker, lookup_at, cache_key, call_at, open_children, asks_memory, asks_cpu, asks_gpu)
               SELECT k.id, k.run_id, k.name, k.parent, string_to_array(k.above, E'\\n'), k.depth, k.phase, k.ended, k.task,
                      k.queue, k.ready_at, k.due_at, k.worker, k.lookup_at, k.cache_key, k.call_at, k.open_children,
                      k.memory, k.cpu, k.gpu
               FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
                           $8::bool[], $9::bool[], $10::text[], $11::bigint[], $12::bigint[], $13::text[],
                           $14::bigint[], $15::text[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bigint[],
                           $20::bigint[])
                    k (id, run_id, name, parent, above, depth, phase, ended, task, queue, ready_at, due_at, worker,
                       lookup_at, cache_key, call_at, open_children, memory, cpu, gpu)";
    all.add(
        sql,
        params![
            c.ids, run_ids, names, parents, above, depths, c.phases, c.ended, tasks, queues, c.ready, c.due, c.workers,
            c.lookups, c.keys, c.calls, c.open, memory, cpu, gpu,
        ],
    );
}

/// Updates those that had to be before.
pub(super) fn update(all: &mut Statements<'_>, rows: &[&Row<'_>]) {
    let sets: Vec<bool> = rows.iter().map(|r| r.changed.lookup_at.is_some()).collect();
    let c = Changing::of(rows);
    let sql = "UPDATE live l SET phase = k.phase, ended = k.ended, ready_at = k.ready_at, due_at = k.due_at,
                      worker = k.worker, lookup_at = CASE WHEN k.sets THEN k.lookup_at ELSE l.lookup_at END,
                      cache_key = k.cache_key, call_at = k.call_at, open_children = k.open_children
               FROM unnest($1::bigint[], $2::bigint[], $3::bool[], $4::bigint[], $5::bigint[], $6::text[], $7::bool[],
                           $8::bigint[], $9::text[], $10::bigint[], $11::bigint[])
                    k (id, phase, ended, ready_at, due_at, worker, sets, lookup_at, cache_key, call_at, open_children)
               WHERE l.id = k.id";
    all.add(
        sql,
        params![c.ids, c.phases, c.ended, c.ready, c.due, c.workers, sets, c.lookups, c.keys, c.calls, c.open],
    );
}
