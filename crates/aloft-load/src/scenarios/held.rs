//! The real server with many actions that run: its memory, its start, its end by `kill -9`.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::{Setting, database::Database, flow};
use crate::{
    client::{self, Client, Work},
    report::{Report, ms, say},
    server::Server,
};

/// Runs that the actions are in, as in the SDK's own harness.
const RUNS: usize = 20;

/// Clients that enqueue.
const CLIENTS: usize = 64;

/// How long actions may take to begin, and to be found again.
const PATIENCE: Duration = Duration::from_secs(600);

/// Starts of an empty server, then many actions held running, a crash and a start with them.
pub(super) async fn held(setting: &Setting, report: &mut Report) -> Result<()> {
    if setting.aloft.is_none() {
        say("held: left out, because --aloft does not name the real server");
        return Ok(());
    }
    let count = setting.actions.unwrap_or(setting.pick(5_000, 100_000));
    let rest = Duration::from_secs(setting.seconds.unwrap_or(setting.pick(3, 900)));
    let database = Database::fresh(setting, "held").await?;
    let data = setting.home.join("held");
    let url = if setting.is_postgres() { database.url.clone() } else { format!("sqlite://{}", database.url) };
    let mut starts = Vec::new();
    for _ in 0..setting.pick(3, 10) {
        let (server, took) = Server::real(setting, &data, &url).await?;
        starts.push(ms(took));
        server.stop().await?;
    }
    report.spread("start to first RPC, empty", "300 ms; 150 ms", starts)?;

    let (server, _) = Server::real(setting, &data, &url).await?;
    let client = Client::new(&server.url, Work::Sleep).await?;
    let (begun, cpu) = (Instant::now(), server.cpu() + setting.database_cpu());
    begin(&client, count).await?;
    running(&database, count + RUNS).await?;
    let (took, cpu) = (begun.elapsed().as_secs_f64(), server.cpu() + setting.database_cpu() - cpu);
    let (now, most) = server.memory();
    report.figure(
        &format!("{count} actions enqueued and running"),
        format!("{took:.1} s, {cpu:.1} CPU s, memory {now:.0} MB, at most {most:.0} MB"),
        "",
        &[("seconds", took), ("cpu", cpu), ("memory_mb", now), ("memory_most_mb", most)],
    );
    let idle = server.cpu();
    tokio::time::sleep(rest).await;
    let (now, most) = server.memory();
    let idle = (server.cpu() - idle) / rest.as_secs_f64() * 100.0;
    report.figure(
        &format!("{count} actions held running for {} s: resident memory of the server", rest.as_secs()),
        format!("{now:.0} MB, at most {most:.0} MB; {idle:.1} % CPU"),
        "300 MB; 100 MB",
        &[("memory_mb", now), ("memory_most_mb", most), ("cpu_percent", idle)],
    );
    let (mut first, mut owned) = (Vec::new(), Vec::new());
    let mut server = server;
    for _ in 0..setting.pick(2, 5) {
        let began = Instant::now();
        server.kill().await?;
        let (again, took) = Server::real(setting, &data, &url).await?;
        first.push(ms(took));
        server = again;
        server.found_again(PATIENCE).await?;
        owned.push(ms(began.elapsed()));
    }
    report.spread(&format!("kill -9 to first RPC, {count} live actions"), "1 s; 0.5 s", first.clone())?;
    report.spread(&format!("start to first RPC with {count} live actions"), "3 s; 1 s", first)?;
    report.spread(&format!("kill -9 to every one of {count} live actions owned again"), "10 s; 5 s", owned)?;
    let (now, most) = server.memory();
    report.figure(
        &format!("memory after a start with {count} live actions"),
        format!("{now:.0} MB, at most {most:.0} MB"),
        "300 MB; 100 MB",
        &[("memory_mb", now), ("memory_most_mb", most)],
    );
    server.kill().await
}

async fn begin(client: &Client, count: usize) -> Result<()> {
    for i in 0..RUNS {
        client.create(&format!("p{i:05}")).await?;
    }
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = client.clone();
        clients.spawn(async move {
            for i in (number..count).step_by(CLIENTS) {
                let run = client::run(&format!("p{:05}", i % RUNS));
                client.enqueue(&run, &flow::name('1', i as u64), "").await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

/// Waits until so many actions run, by the record.
async fn running(database: &Database, count: usize) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        // Phase 4 is running.
        if database.number("SELECT count(*) FROM actions WHERE phase = 4").await? as usize >= count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    anyhow::bail!("not all actions run after {PATIENCE:?}")
}
