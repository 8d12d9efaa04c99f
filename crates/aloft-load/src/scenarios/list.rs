//! Lists in a project of a million runs.

use std::time::Instant;

use anyhow::Result;

use super::{Setting, database::Database};
use crate::{
    client::{Client, Work},
    report::{Report, ms},
    server::Server,
};

/// Copies of the first run's rows. Made by SQL, because a million runs take an hour by requests.
const SQLITE: &str = "
BEGIN;
INSERT INTO runs (org, project, domain, name, seq, created_at, created_by, source, info, max_actions, started, ended, queue,
                  related_to)
WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
SELECT org, project, domain, name || '-' || n, seq, created_at + n, created_by, source, info, max_actions, started, ended,
       queue, related_to
FROM runs CROSS JOIN n WHERE name = 'first';
INSERT INTO actions (run_id, name, parent, depth, grp, kind, phase, created_at, updated_at, ended_at, duration_ms,
                     task_name, task_version, short_name, environment, ready_at, due_at, worker, state, queue)
SELECT r.id, a.name, a.parent, a.depth, a.grp, a.kind, a.phase, r.created_at, a.updated_at, a.ended_at, a.duration_ms,
       a.task_name, a.task_version, a.short_name, a.environment, a.ready_at, a.due_at, a.worker, a.state, a.queue
FROM runs r CROSS JOIN actions a
WHERE r.name LIKE 'first-%' AND a.run_id = (SELECT id FROM runs WHERE name = 'first') AND a.name = 'a0';
COMMIT;
ANALYZE;
";

const POSTGRES: &str = "
INSERT INTO runs (org, project, domain, name, seq, made, at, created_at, created_by, source, queue, max_actions, in_flight,
                  started, ended, related_to, info)
SELECT org, project, domain, name || '-' || n, seq, made, at, created_at + n, created_by, source, queue, max_actions, 0,
       started, ended, related_to, info
FROM runs CROSS JOIN generate_series(1, {count}) n WHERE name = 'first';
CREATE TEMP TABLE first AS SELECT * FROM actions WHERE run_id = (SELECT id FROM runs WHERE name = 'first');
INSERT INTO actions
SELECT (f).* FROM (
    SELECT jsonb_populate_record(a, jsonb_build_object('id', r.id * 16777216, 'run_id', r.id, 'created_at', r.created_at)) f
    FROM runs r CROSS JOIN first a WHERE r.name LIKE 'first-%') x;
INSERT INTO run_index
SELECT (f).* FROM (
    SELECT jsonb_populate_record(i, jsonb_build_object('id', r.id, 'name', r.name, 'created_at', r.created_at)) f
    FROM runs r CROSS JOIN run_index i WHERE i.name = 'first' AND r.name LIKE 'first-%') x;
INSERT INTO run_changes SELECT id, id FROM runs WHERE name LIKE 'first-%';
ANALYZE;
";

/// The first page of a project's runs.
pub(super) async fn list(setting: &Setting, report: &mut Report) -> Result<()> {
    let (count, times) = setting.pick((50_000, 50), (1_000_000, 200));
    let database = Database::fresh(setting, "list").await?;
    let server = Server::load(&database.url, &[]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    client.create("first").await?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let sql = if setting.is_postgres() { POSTGRES } else { SQLITE };
    database.execute(&sql.replace("{count}", &count.to_string())).await?;
    let mut took = Vec::new();
    for _ in 0..times {
        let begun = Instant::now();
        client.list_runs(100).await?;
        took.push(ms(begun.elapsed()));
    }
    report.spread(&format!("first page of 100 runs of {count}"), "50 ms; 15 ms p99", took)?;
    // What is written beside so many must not be dearer.
    let mut took = Vec::new();
    for i in 0..times {
        let begun = Instant::now();
        client.create(&format!("late{i}")).await?;
        took.push(ms(begun.elapsed()));
    }
    report.spread(&format!("CreateRun beside {count} runs"), "", took)?;
    Ok(())
}
