//! Actions that do nothing, for a long time: how many each second, what they cost and what they leave behind.

use std::time::Duration;

use anyhow::Result;

use super::{Setting, database::Database, flow};
use crate::{
    client::{Client, Work},
    report::Report,
    server::Server,
};

/// Runs side by side.
const RUNS: usize = 10;

/// What the SDK's controller lets be under way of one parent.
const AT_ONCE: usize = 1000;

/// How long the load lasts before it is measured.
const WARM: Duration = Duration::from_secs(3);

/// Durable no-op actions, with commits and bytes for each.
pub(super) async fn noop(setting: &Setting, report: &mut Report) -> Result<()> {
    let length = Duration::from_secs(setting.seconds.unwrap_or(setting.pick(8, 600)));
    let database = Database::fresh(setting, "noop").await?;
    let server = Server::load(&database.url, &[]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    let empty = database.bytes().await?;
    let flow = flow::Flow::begin(&client, &flow::parents(RUNS), AT_ONCE).await?;
    flow.allow_all();
    tokio::time::sleep(WARM).await;
    let (begun, commits) = (flow.mark(setting, &server), database.commits().await?);
    tokio::time::sleep(length).await;
    let (done, after) = (begun.until(flow.mark(setting, &server)), database.commits().await?);
    let sent = flow.finish().await? as f64;
    let memory = server.memory();
    let rate = done.ended / done.at;
    let per_thousand = |cpu: f64| cpu / done.ended * 1e3;
    let [of_server, of_database, of_clients] = done.cpu.map(per_thousand);
    report.figure(
        &format!("durable no-op actions, {} s", length.as_secs()),
        format!(
            "{rate:.0} /s; CPU s per 1000: server {of_server:.3}, database {of_database:.3}, clients {of_clients:.3}; \
             {:.0} MB",
            memory.0
        ),
        "3,000 /s; 8,000 /s",
        &[
            ("rate", rate),
            ("server_cpu_per_1000", of_server),
            ("database_cpu_per_1000", of_database),
            ("clients_cpu_per_1000", of_clients),
            ("memory_mb", memory.0),
            ("n", done.ended),
        ],
    );
    let commits = (after - commits) / done.ended;
    report.figure("commits per action under load", format!("{commits:.4}"), "0.2; 0.05", &[("commits", commits)]);
    server.stop().await?;
    let mut numbers = Vec::new();
    let mut all = 0.0;
    for (table, bytes) in database.bytes().await? {
        let before = empty.iter().find(|(name, _)| *name == table).map_or(0.0, |(_, bytes)| *bytes);
        let each = (bytes - before) / sent;
        all += each;
        numbers.push((table, each));
    }
    let numbers: Vec<_> = numbers.iter().map(|(table, each)| (table.as_str(), *each)).collect();
    let mut largest: Vec<_> = numbers.iter().filter(|(_, each)| *each > 10.0).collect();
    largest.sort_by(|a, b| b.1.total_cmp(&a.1));
    let shown: Vec<_> = largest.iter().map(|(table, each)| format!("{table} {each:.0}")).collect();
    report.figure("bytes per finished action", format!("{all:.0} ({})", shown.join(", ")), "3 KB; 1.5 KB", &numbers);
    Ok(())
}
