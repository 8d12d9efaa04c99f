//! Single requests: how long they take, and how many there can be.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::{Setting, database::Database, flow};
use crate::{
    client::{self, Client, Work},
    machine,
    report::{Report, ms, quantile, sorted},
    server::Server,
};

/// Pause between two requests of a light load.
const LIGHT: Duration = Duration::from_millis(20);

/// Runs one client on a thread of its own, so that what its threads say to each other is not measured.
async fn alone<T: Send + 'static>(client: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let alone = || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(client);
    tokio::task::spawn_blocking(alone).await?
}

/// `CreateRun` at light load, beside the disk.
pub(super) async fn create(setting: &Setting, report: &mut Report) -> Result<()> {
    let count = setting.pick(100, 500);
    let database = Database::fresh(setting, "create").await?;
    let server = Server::load(&database.url, &[]).await?;
    // At the same pace: a disk at rest takes several times as long as one that is kept busy.
    let disk: Vec<f64> = machine::fdatasync(&setting.home, count, LIGHT)?.into_iter().map(ms).collect();
    let url = server.url.clone();
    let took = alone(async move {
        let client = Client::new(&url, Work::Nothing).await?;
        for i in 0..20 {
            client.create(&format!("warm{i}")).await?;
        }
        let mut took = Vec::new();
        for i in 0..count {
            tokio::time::sleep(LIGHT).await;
            let begun = Instant::now();
            client.create(&format!("c{i}")).await?;
            took.push(ms(begun.elapsed()));
        }
        Ok(took)
    })
    .await?;
    report.spread("fdatasync of 4 KiB every 20 ms", "", disk)?;
    report.spread("CreateRun, light load", "3 / 15 ms; 1 / 5 ms beyond fsync", took)?;
    Ok(())
}

/// Runs created by many clients, and carried out.
pub(super) async fn submit(setting: &Setting, report: &mut Report) -> Result<()> {
    let length = Duration::from_secs(setting.seconds.unwrap_or(setting.pick(5, 30)));
    let database = Database::fresh(setting, "submit").await?;
    let server = Server::load(&database.url, &[]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    let mut clients = JoinSet::new();
    let (begun, cpu, database_cpu) = (Instant::now(), server.cpu(), setting.database_cpu());
    for number in 0..64 {
        let client = client.clone();
        clients.spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < length {
                let sent = Instant::now();
                client.create(&format!("s{number}-{}", took.len())).await?;
                took.push(ms(sent.elapsed()));
            }
            anyhow::Ok(took)
        });
    }
    let mut took = Vec::new();
    while let Some(done) = clients.join_next().await {
        took.extend(done??);
    }
    let (seconds, count) = (begun.elapsed().as_secs_f64(), took.len() as f64);
    let took = sorted(took);
    let cpu = (server.cpu() - cpu, setting.database_cpu() - database_cpu);
    let (rate, p50, p99) = (count / seconds, quantile(&took, 0.5), quantile(&took, 0.99));
    report.figure(
        "run submissions, 64 clients",
        format!("{rate:.0} /s, p50 {p50:.1} ms, p99 {p99:.1} ms, {:.2} CPU s per 1000", (cpu.0 + cpu.1) / count * 1e3),
        "1,000 /s; 2,000 /s",
        &[("rate", rate), ("p50", p50), ("p99", p99), ("server_cpu", cpu.0), ("database_cpu", cpu.1), ("n", count)],
    );
    Ok(())
}

/// From sending `Enqueue` to a waiting worker having the action.
pub(super) async fn handed(setting: &Setting, report: &mut Report) -> Result<()> {
    let count = setting.pick(100, 500);
    let database = Database::fresh(setting, "handed").await?;
    let server = Server::load(&database.url, &["--record"]).await?;
    let url = server.url.clone();
    let sent = alone(async move {
        let client = Client::new(&url, Work::Nothing).await?;
        let run = client::run("parent");
        client.create(&run.name).await?;
        let mut sent = std::collections::HashMap::new();
        for i in 0..count + 20 {
            tokio::time::sleep(LIGHT).await;
            let name = flow::name('1', i as u64);
            let at = machine::micros();
            client.enqueue(&run, &name, "").await?;
            // The first warm what is to be warm.
            if i >= 20 {
                sent.insert(format!("{}/{name}", run.name), at);
            }
        }
        Ok(sent)
    })
    .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let handed = server.handed().await?;
    let took: Vec<f64> =
        handed.iter().filter_map(|h| Some((h.handed - sent.get(&h.action)?) as f64 / 1000.0)).collect();
    anyhow::ensure!(took.len() == sent.len(), "{} of {} actions were handed out", took.len(), sent.len());
    report.spread("Enqueue sent to handed to a waiting worker", "5 / 20 ms; 2 / 10 ms beyond fsync", took)?;
    Ok(())
}
