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

/// In how many turns the last part is sent, and beside it the first one of another run.
const TURNS: u64 = 8;

/// One run with many actions.
pub(super) async fn single(setting: &Setting, report: &mut Report) -> Result<()> {
    let count = setting.actions.unwrap_or(setting.pick(20_000, 250_000)) as u64;
    let step = (count / 25).max(1000);
    let database = Database::fresh(setting, "single").await?;
    let server = Server::load(&database.url, &[]).await?;
    let client = Client::new(&server.url, Work::Nothing).await?;
    let runs = flow::parents(2);
    let flow = flow::Flow::begin(&client, &runs[..1], AT_ONCE).await?;
    // The last part is sent in turns with the first of another run. Not counted: until what is to be warm is.
    flow.allow(count as usize);
    flow.reach(step).await?;
    let mut marks = vec![flow.mark(setting, &server)];
    for i in 2..=count / step {
        flow.reach(i * step).await?;
        marks.push(flow.mark(setting, &server));
    }
    let parts: Vec<_> = marks.windows(2).map(|w| w[0].until(w[1])).collect();
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else { return Ok(()) };
    let (cpu, time) = last.costs_beside(*first);
    let (done, by_part) = (marks[0].until(marks[marks.len() - 1]), parts.iter().map(|p| p.cpu_per_thousand()));
    let by_part: Vec<String> = by_part.map(|p| format!("{p:.3}")).collect();
    report.figure(
        &format!("one run with {count} actions: cost of the last {step} against the first"),
        format!(
            "CPU {cpu:.2} x, time {time:.2} x; {:.0} s in all, {:.0} /s; CPU s per 1000 by part: {}",
            done.at,
            done.ended / done.at,
            by_part.join(" ")
        ),
        "1.2 x; 1.0 x",
        &[("cpu", cpu), ("time", time), ("seconds", done.at), ("memory_mb", server.memory().0)],
    );
    let fresh = flow::Flow::begin(&client, &runs[1..], AT_ONCE).await?;
    let (cpu, time) = in_turns(setting, &server, &flow, &fresh, step).await?;
    report.figure(
        &format!("{step} more of them in turns with the first {step} of another run"),
        format!("CPU {cpu:.2} x, time {time:.2} x"),
        "1.2 x; 1.0 x",
        &[("cpu", cpu), ("time", time)],
    );
    flow.finish().await?;
    fresh.finish().await?;
    views(setting, report, &client, &server, count).await
}

/// What `step` more actions of `large` cost against the first ones of `fresh`, CPU and time: sent in turns, so that it does not
/// matter how fast the machine is from one minute to the next.
async fn in_turns(
    setting: &Setting,
    server: &Server,
    large: &flow::Flow,
    fresh: &flow::Flow,
    step: u64,
) -> Result<(f64, f64)> {
    let mut costs = [flow::Mark::default(); 2];
    for turn in 0..2 * TURNS {
        // Each goes first as often as the other.
        let of = usize::from(turn % 4 == 1 || turn % 4 == 2);
        let flow = [large, fresh][of];
        let begun = flow.mark(setting, server);
        let many = step / TURNS;
        flow.allow(many as usize);
        flow.reach(begun.ended as u64 + many).await?;
        costs[of].add(begun.until(flow.mark(setting, server)));
    }
    Ok(costs[0].costs_beside(costs[1]))
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
