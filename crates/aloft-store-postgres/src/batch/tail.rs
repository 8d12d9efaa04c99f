//! The end of a batch: its place in the order of all commits.
//!
//! It takes the lock on the row of `feed` when all else is written, and the commit follows without waiting for an answer, so
//! that the lock is held for hardly longer than the disk takes.

use aloft_core::ActionName;
use aloft_store::Share;
use tokio_postgres::Row;

use super::{
    decide::Decided,
    load::Known,
    send::{End, Params, Plain, params},
    write::Rows,
};
use crate::rows::amount;

/// Changes of roots within one commit: more than a batch can have.
pub(crate) const PLACES: u64 = 1 << 20;

/// What else the end of a batch does.
pub(super) struct Wanted {
    /// For how many runs that may be made next it takes numbers, where some are made.
    pub(super) ahead: usize,
    /// What limits new work must have this revision, or it fails as [`super::guard`] does.
    pub(super) revision: Option<i64>,
    /// No turn to hand out work may have been taken since this one, or it fails with [`super::Trouble::TurnOver`].
    pub(super) turn: Option<i64>,
}

/// Takes the commit's place in the feed, behind all that it writes.
pub(super) fn place<'s>(
    (channel, own): (&'s str, &'s str),
    known: &Known,
    decided: &Decided,
    rows: &Rows<'s>,
    Wanted { ahead, revision, turn }: Wanted,
) -> End<'s> {
    let (mut runs, mut firsts, mut lasts, mut roots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (key, run) in &decided.runs {
        let Some(id) = rows.runs.get(key).copied() else { continue };
        runs.push(id);
        firsts.push(amount(known.runs.get(key).map_or(0, |r| r.seq) + 1));
        lasts.push(amount(run.seq));
        let root = decided.actions.get(key).and_then(|a| a.get(&ActionName::root()));
        if root.is_some_and(|root| root.at.is_some()) {
            roots.push(id);
        }
    }
    let loads = rows.loads();
    let text = |f: fn(&aloft_core::Scope) -> &String| loads.keys().map(|(s, _)| f(s).as_str()).collect::<Vec<_>>();
    let (orgs, projects, domains) = (text(|s| &s.org), text(|s| &s.project), text(|s| &s.domain));
    let queues: Vec<&str> = loads.keys().map(|(_, queue)| *queue).collect();
    let sums = |f: fn(&Share) -> i64| loads.values().map(f).collect::<Vec<i64>>();
    let counts = [
        sums(|l| l.waiting),
        sums(|l| l.held),
        sums(|l| l.counted),
        sums(|l| l.memory),
        sums(|l| l.cpu),
        sums(|l| l.gpu),
        sums(|l| l.runs),
    ];
    let mut values: Params<'s> = params![Plain(runs), Plain(firsts), Plain(lasts), Plain(channel), Plain(own)];
    values.extend(params![orgs, projects, domains, queues]);
    for column in counts {
        values.extend(params![column]);
    }
    // Only where there are some: a statement all of whose columns have one row is the cheaper one.
    let mut of_roots = "";
    let mut numbers = "'{}'::bigint[]".to_owned();
    if !roots.is_empty() {
        let order: Vec<i64> = (1..).take(roots.len()).collect();
        values.extend(params![roots, order]);
        of_roots = ", r AS (INSERT INTO run_changes (run_id, changed)
                   SELECT k.id, p.pos * 1048576 + k.n FROM p, unnest($17::bigint[], $18::bigint[]) k (id, n)
                   ON CONFLICT (run_id) DO UPDATE SET changed = excluded.changed)";
        if ahead > 0 {
            values.extend(params![Plain(amount(ahead as u64))]);
            let count = values.len();
            numbers = format!("ARRAY(SELECT nextval('runs_id_seq') FROM generate_series(1, ${count}::bigint))");
        }
    }
    let mut check = String::new();
    if let Some(revision) = revision {
        values.extend(params![Plain(revision)]);
        let expected = values.len();
        check = format!(
            ", CASE WHEN (SELECT revision FROM site_revision) = ${expected}::bigint THEN 0 ELSE refuse_outdated() END"
        );
    }
    let mut next = "pos + 1".to_owned();
    if let Some(turn) = turn {
        values.extend(params![Plain(turn)]);
        // Looked at again on what another has left behind, if this has to wait for it.
        next = format!("CASE WHEN turn = ${}::bigint THEN pos + 1 ELSE refuse_turn() END", values.len());
    }
    let before = format!("p AS (UPDATE feed SET pos = {next} WHERE ");
    let after = format!(
        " RETURNING pos),
             c AS (INSERT INTO commits (pos, runs, firsts, lasts) SELECT p.pos, $1::bigint[], $2::bigint[], $3::bigint[] FROM p),
             l AS (INSERT INTO loads (org, project, domain, queue, waiting, held, counted, memory, cpu, gpu, runs)
                   SELECT k.* FROM p, unnest($6::text[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[],
                        $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[], $16::bigint[])
                        k (org, project, domain, queue, waiting, held, counted, memory, cpu, gpu, runs)
                   ON CONFLICT (org, project, domain, queue) DO UPDATE SET
                        waiting = loads.waiting + excluded.waiting, held = loads.held + excluded.held,
                        counted = loads.counted + excluded.counted, memory = loads.memory + excluded.memory,
                        cpu = loads.cpu + excluded.cpu, gpu = loads.gpu + excluded.gpu, runs = loads.runs + excluded.runs)
             {of_roots} SELECT p.pos, pg_notify($4, $5)::text, {numbers} {check} FROM p"
    );
    End { before, after, params: values }
}

/// The place that [`place`] took, and the numbers for runs that it took ahead.
pub(super) fn taken(row: &Row) -> (u64, Vec<i64>) {
    (row.get::<_, i64>(0).unsigned_abs() * PLACES + (PLACES - 1), row.get(2))
}
