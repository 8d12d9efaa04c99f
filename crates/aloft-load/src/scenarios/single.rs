//! One large run: what its last actions cost against its first, and how its views do at that size.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Setting, database::Database, flow};
use crate::{
    client::{Client, Work},
    report::{Report, ms},
    server::Server,
};

/// Actions of the large run that have not ended at a time.
const AT_ONCE: usize = 2000;

/// One run with many actions.
pub(super) async fn single(setting: &Setting, report: &mut Report) -> Result<()> {
    let count = setting.actions.unwrap_or(setting.pick(20_000, 250_000)) as u64;
    let step = (count / 25).max(1000);
    let database = Database::fresh(setting, "single").await?;
    let server = Server::load(&database.url, &[]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    let runs = flow::parents(1);
    let flow = flow::Flow::begin(&client, &runs, AT_ONCE, count + step).await?;
    // Not counted: until what is to be warm is.
    flow.reach(step).await?;
    let mut marks = vec![flow.mark(setting, &server)];
    for i in 1..=count / step {
        flow.reach(step + i * step).await?;
        marks.push(flow.mark(setting, &server));
    }
    let parts: Vec<_> = marks.windows(2).map(|w| w[0].until(w[1])).collect();
    flow.finish().await?;
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(()) };
    let cpu = last.cpu_per_thousand() / first.cpu_per_thousand();
    let time = (last.at / last.ended) / (first.at / first.ended);
    let seconds = marks.last().map_or(0.0, |m| m.at) - marks[0].at;
    let by_part: Vec<String> = parts.iter().map(|p| format!("{:.3}", p.cpu_per_thousand())).collect();
    report.figure(
        &format!("one run with {count} actions: cost of the last {step} against the first"),
        format!(
            "CPU {cpu:.2} x, time {time:.2} x; {seconds:.0} s in all, {:.0} /s; CPU s per 1000 by part: {}",
            count as f64 / seconds,
            by_part.join(" ")
        ),
        "1.2 x; 1.0 x",
        &[("cpu", cpu), ("time", time), ("seconds", seconds), ("memory_mb", server.memory().0)],
    );
    views(setting, report, &client, &server, count).await
}

async fn views(setting: &Setting, report: &mut Report, client: &Client, server: &Server, count: u64) -> Result<()> {
    let (run, times) = (&flow::parents(1)[0], setting.pick(20, 100));
    let mut pages = Vec::new();
    let mut details = Vec::new();
    for i in 0..times {
        let begun = Instant::now();
        client.list_actions(run, 100).await?;
        pages.push(ms(begun.elapsed()));
        let begun = Instant::now();
        client.details(run, &flow::name('1', (i * 997) % count)).await?;
        details.push(ms(begun.elapsed()));
    }
    report.spread(&format!("first page of ListActions, run of {count}"), "", pages)?;
    report.spread(&format!("GetActionDetails, run of {count}"), "", details)?;
    let before = server.memory().0;
    let (begun, cpu) = (Instant::now(), server.cpu());
    let mut tree = client.watch_tree(run).await?;
    let (mut told, mut first) = (0, None);
    while told < count {
        let heard = tokio::time::timeout(Duration::from_secs(120), tree.next()).await??;
        first = first.or_else(|| Some(ms(begun.elapsed())));
        told += heard.len() as u64;
    }
    let (all, first) = (begun.elapsed().as_secs_f64(), first.unwrap_or_default());
    let (cpu, grown) = (server.cpu() - cpu, server.memory().0 - before);
    report.figure(
        &format!("WatchActions of a run of {count}"),
        format!("first message {first:.0} ms, all {all:.1} s, {cpu:.1} CPU s, {grown:.0} MB"),
        "",
        &[("first_ms", first), ("seconds", all), ("cpu", cpu), ("memory_mb", grown)],
    );
    // What each change costs while that watch is open.
    let (mut took, mut heard) = (Vec::new(), Vec::new());
    let cpu = server.cpu();
    for i in 0..times {
        let name = flow::name('2', i);
        let begun = Instant::now();
        client.enqueue(run, &name, "late").await?;
        took.push(ms(begun.elapsed()));
        while !tree.next().await?.iter().any(|told| told.name == name && told.succeeded) {}
        heard.push(ms(begun.elapsed()));
    }
    let each = (server.cpu() - cpu) / times as f64 * 1000.0;
    report.spread(&format!("Enqueue into a run of {count} that is watched"), "", took)?;
    report.spread(&format!("Enqueue to its end heard by WatchActions, run of {count}"), "", heard)?;
    report.figure(
        &format!("CPU of one action of a watched run of {count}, alone"),
        format!("{each:.2} ms"),
        "",
        &[("ms", each)],
    );
    Ok(())
}
