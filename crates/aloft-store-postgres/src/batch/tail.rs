//! The end of a batch: its place in the order of all commits, and the commit.
//!
//! One statement takes the lock on the row of `feed`, and the commit follows it on the same connection without waiting for
//! its answer, so that the lock is held for hardly longer than the disk takes.

use aloft_core::ActionName;
use tokio_postgres::types::ToSql;

use super::{Open, Trouble, decide::Decided, load::Known, write::Written};
use crate::rows::amount;

/// Changes of roots within one commit: more than a batch can have.
pub(crate) const PLACES: u64 = 1 << 20;

/// Commits, and returns the commit's place in the feed.
pub(super) async fn commit(
    tx: Open,
    (channel, own): (&str, &str),
    known: &Known,
    decided: &Decided,
    written: &Written,
) -> Result<u64, Trouble> {
    let (mut runs, mut firsts, mut lasts, mut roots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (key, run) in &decided.runs {
        let Some(id) = written.runs.get(key).copied() else { continue };
        runs.push(id);
        firsts.push(amount(known.runs.get(key).map_or(0, |r| r.seq) + 1));
        lasts.push(amount(run.seq));
        let root = decided.actions.get(key).and_then(|a| a.get(&ActionName::root()));
        if root.is_some_and(|root| root.at.is_some()) {
            roots.push(id);
        }
    }
    let text = |f: &dyn Fn(&(aloft_core::Scope, String)) -> String| written.loads.keys().map(f).collect::<Vec<_>>();
    let (orgs, projects) = (text(&|(s, _)| s.org.clone()), text(&|(s, _)| s.project.clone()));
    let (domains, queues) = (text(&|(s, _)| s.domain.clone()), text(&|(_, q)| q.clone()));
    let sums = |f: fn(&super::write::Load) -> i64| written.loads.values().map(f).collect::<Vec<i64>>();
    let sql = tx
        .prepare_cached(
            "WITH p AS (UPDATE feed SET pos = pos + 1 RETURNING pos),
             c AS (INSERT INTO commits (pos, runs, firsts, lasts)
                   SELECT p.pos, $1::bigint[], $2::bigint[], $3::bigint[] FROM p),
             r AS (INSERT INTO run_changes (run_id, changed)
                   SELECT k.id, p.pos * 1048576 + k.n FROM p, unnest($4::bigint[]) WITH ORDINALITY k (id, n)
                   ON CONFLICT (run_id) DO UPDATE SET changed = excluded.changed),
             l AS (INSERT INTO loads (org, project, domain, queue, waiting, held, counted, memory, cpu, gpu, runs)
                   SELECT k.* FROM p, unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[],
                        $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[])
                        k (org, project, domain, queue, waiting, held, counted, memory, cpu, gpu, runs)
                   ON CONFLICT (org, project, domain, queue) DO UPDATE SET
                        waiting = loads.waiting + excluded.waiting, held = loads.held + excluded.held,
                        counted = loads.counted + excluded.counted, memory = loads.memory + excluded.memory,
                        cpu = loads.cpu + excluded.cpu, gpu = loads.gpu + excluded.gpu, runs = loads.runs + excluded.runs)
             SELECT p.pos, pg_notify($16, $17)::text FROM p",
        )
        .await?;
    let params: [&(dyn ToSql + Sync); 17] = [
        &runs,
        &firsts,
        &lasts,
        &roots,
        &orgs,
        &projects,
        &domains,
        &queues,
        &sums(|l| l.waiting),
        &sums(|l| l.held),
        &sums(|l| l.counted),
        &sums(|l| l.memory),
        &sums(|l| l.cpu),
        &sums(|l| l.gpu),
        &sums(|l| l.runs),
        &channel,
        &own,
    ];
    let statement = tx.query_one(&sql, &params);
    // Polled together, so that both go out at once. The second cannot overtake the first.
    let (placed, committed) = tokio::join!(statement, tx.batch_execute("COMMIT"));
    // If the first failed, the second has rolled back.
    committed?;
    tx.ended();
    let pos: i64 = placed?.get(0);
    Ok(pos.unsigned_abs() * PLACES + (PLACES - 1))
}
