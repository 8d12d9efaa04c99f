//! Watchers: whether each hears of everything, and how late.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aloft_sim::ids::RunId;
use anyhow::Result;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Setting, database::Database, flow};
use crate::{
    client::{Client, Work},
    machine,
    report::{Report, quantile, sorted},
    server::Server,
};

/// What watchers heard: of which action, when its end was heard.
type Heard = Arc<Mutex<Vec<(String, i64)>>>;

/// Wait for the last words after the last action.
const TAIL: Duration = Duration::from_secs(3);

/// Enqueues `rate` actions each second into one run after the other.
async fn pace(client: &Client, runs: &[RunId], rate: u64, length: Duration) -> Result<u64> {
    let (begun, mut sent, mut under_way) = (Instant::now(), 0, JoinSet::new());
    while begun.elapsed() < length {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due {
            let run = runs[(sent % runs.len() as u64) as usize].clone();
            let (client, name) = (client.clone(), flow::name('1', sent));
            under_way.spawn(async move { client.enqueue(&run, &name, "").await });
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        while let Some(done) = under_way.try_join_next() {
            done??;
        }
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    Ok(sent)
}

/// Compares what was heard with what the worker ended, and says how late that was.
async fn judge(
    report: &mut Report,
    what: &str,
    server: &Server,
    heard: &Heard,
    watchers_of_each: u64,
    cpu: f64,
) -> Result<()> {
    let ended: HashMap<String, i64> =
        server.handed().await?.into_iter().filter(|h| h.ended > 0).map(|h| (h.action, h.ended)).collect();
    let (mut late, mut counted) = (Vec::new(), HashMap::new());
    for (action, at) in heard.lock().iter() {
        if let Some(ended) = ended.get(action) {
            // It may be heard before the worker knows that it is durable.
            late.push((at - ended).max(0) as f64 / 1000.0);
            *counted.entry(action.clone()).or_insert(0_u64) += 1;
        }
    }
    let lost: u64 =
        ended.keys().map(|action| watchers_of_each.saturating_sub(counted.get(action).copied().unwrap_or(0))).sum();
    let late = sorted(late);
    let (p50, p99, n) = (quantile(&late, 0.5), quantile(&late, 0.99), late.len() as f64);
    let memory = server.memory().0;
    report.figure(
        what,
        format!(
            "{lost} lost of {n:.0}, delay p50 {p50:.1} ms, p99 {p99:.1} ms; {cpu:.2} CPU s each second, {memory:.0} MB"
        ),
        "0 lost, p99 250 ms; 100 ms",
        &[("lost", lost as f64), ("p50", p50), ("p99", p99), ("n", n), ("cpu_per_s", cpu), ("memory_mb", memory)],
    );
    Ok(())
}

/// As many watchers as runs. Each action is shown twice: when it waits and when it has ended.
pub(super) async fn many_runs(setting: &Setting, report: &mut Report) -> Result<()> {
    let (count, length) = (setting.pick(200, 1000), Duration::from_secs(setting.pick(5, 30)));
    let updates = count as u64;
    let database = Database::fresh(setting, "watch-runs").await?;
    let server = Server::load(&database.url, &["--record"]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    let (runs, heard, mut watchers) = (flow::parents(count), Heard::default(), JoinSet::new());
    for run in &runs {
        client.create(&run.name).await?;
        let mut watch = client.watch_children(run).await?;
        let (heard, run) = (Arc::clone(&heard), run.name.clone());
        watchers.spawn(async move {
            loop {
                if let Some(told) = watch.next().await?
                    && told.succeeded
                {
                    heard.lock().push((format!("{run}/{}", told.name), machine::micros()));
                }
            }
            #[expect(unreachable_code, reason = "says what the task answers")]
            anyhow::Ok(())
        });
    }
    let cpu = server.cpu() + setting.database_cpu();
    pace(&client, &runs, updates / 2, length).await?;
    let cpu = (server.cpu() + setting.database_cpu() - cpu) / length.as_secs_f64();
    tokio::time::sleep(TAIL).await;
    let what = format!("{count} watchers on {count} runs, {updates} updates/s in all");
    judge(report, &what, &server, &heard, 1, cpu).await
}

/// Watchers of the tree of one run.
pub(super) async fn one_run(setting: &Setting, report: &mut Report) -> Result<()> {
    let (count, length) = (setting.pick(20, 100), Duration::from_secs(setting.pick(5, 30)));
    let updates = setting.pick(200, 1000);
    let database = Database::fresh(setting, "watch-one").await?;
    let server = Server::load(&database.url, &["--record"]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    let (runs, heard, mut watchers) = (flow::parents(1), Heard::default(), JoinSet::new());
    client.create(&runs[0].name).await?;
    for _ in 0..count {
        let mut watch = client.watch_tree(&runs[0]).await?;
        let (heard, run) = (Arc::clone(&heard), runs[0].name.clone());
        watchers.spawn(async move {
            loop {
                let told = watch.next().await?;
                let (at, ends) = (machine::micros(), told.into_iter().filter(|told| told.succeeded));
                heard.lock().extend(ends.map(|told| (format!("{run}/{}", told.name), at)));
            }
            #[expect(unreachable_code, reason = "says what the task answers")]
            anyhow::Ok(())
        });
    }
    let cpu = server.cpu() + setting.database_cpu();
    pace(&client, &runs, updates / 2, length).await?;
    let cpu = (server.cpu() + setting.database_cpu() - cpu) / length.as_secs_f64();
    tokio::time::sleep(TAIL).await;
    let what = format!("{count} watchers of one run's tree, {updates} updates/s");
    judge(report, &what, &server, &heard, count as u64, cpu).await
}
