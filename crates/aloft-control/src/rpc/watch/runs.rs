//! `WatchRuns`: the newest runs, all that have not ended, then every change.

use std::collections::HashMap;

use aloft_core::{CacheStatus, Phase, RunKey};
use aloft_flyteidl2::flyteidl2::workflow::{Run, WatchRunsRequest, WatchRunsResponse, watch_runs_request::Target};
use aloft_store::{Field, Filter, ListQuery, Op, RunRow};

use super::{Changes, Step, stream};
use crate::{
    Control,
    rpc::{
        actions::Messages,
        error::{Answer, invalid, not_found, wire},
        list, run,
    },
};

/// Runs of the first message.
const NEWEST: usize = 100;

/// Runs that have not ended in one further message.
const LIVE: usize = 500;

/// What of a run was sent.
struct Sent {
    phase: Phase,
    attempts: usize,
    cache: CacheStatus,
    changed: u64,
}

struct Runs {
    changes: Changes,
    snapshot: Snapshot,
    /// The runs that have not ended, some 200 bytes each, and those that were sent ahead of the changes.
    sent: HashMap<RunKey, Sent>,
}

enum Snapshot {
    Newest,
    /// The token of the next page.
    Live(String),
    Done,
}

pub(in super::super) async fn runs(control: Control, request: WatchRunsRequest) -> Answer<Messages<WatchRunsResponse>> {
    runs_that(control, request, Vec::new()).await
}

/// As [`runs`], of those that meet `filters` too. What they say of a run must never change.
pub(in super::super) async fn runs_that(
    control: Control,
    request: WatchRunsRequest,
    mut filters: Vec<Filter>,
) -> Answer<Messages<WatchRunsResponse>> {
    let scope = match &request.target {
        Some(Target::ProjectId(id)) => {
            let scope = control.project_scope(id)?;
            list::scope(scope.org, &scope.project, &scope.domain)
        }
        Some(Target::Org(org)) => list::scope(control.org(org), "", ""),
        Some(Target::ClusterId(id)) => {
            // One data plane, so far: its runs are all there are.
            let known = &control.settings().cluster;
            if id.name != *known {
                return Err(not_found(format!(
                    "cluster_id: there is no cluster {:?}; the cluster is {known}",
                    id.name
                )));
            }
            list::scope(control.org(&id.organization), "", "")
        }
        Some(Target::TaskId(id)) => {
            if id.name.is_empty() {
                return Err(invalid("task_id.name: is required"));
            }
            filters.push(Filter::equal(Field::TaskName, &id.name));
            if !id.version.is_empty() {
                filters.push(Filter::equal(Field::TaskVersion, &id.version));
            }
            let scope = control.scope(&id.org, &id.project, &id.domain)?;
            list::scope(scope.org, &scope.project, &scope.domain)
        }
        None => list::scope(control.org(""), "", ""),
    };
    let changes = Changes::new(control, scope, filters).await?;
    let start = Runs { changes, snapshot: Snapshot::Newest, sent: HashMap::new() };
    Ok(stream(start, |runs| Box::pin(runs.next())))
}

impl Runs {
    async fn next(&mut self) -> Answer<Step<WatchRunsResponse>> {
        loop {
            let (runs, quiet) = match std::mem::replace(&mut self.snapshot, Snapshot::Done) {
                Snapshot::Newest => {
                    self.snapshot = Snapshot::Live(String::new());
                    let rows = self.list(Vec::new(), NEWEST, String::new()).await?.0;
                    // The first message comes even if there is nothing: then that is the news.
                    (self.news(rows), true)
                }
                Snapshot::Live(token) => {
                    let phases = Phase::ALL.into_iter().filter(|p| !p.is_terminal()).map(|p| i64::from(p.number()));
                    let live = vec![list::number(Field::Phase, Op::In, phases)];
                    let (rows, next) = self.list(live, LIVE, token).await?;
                    if !next.is_empty() {
                        self.snapshot = Snapshot::Live(next);
                    }
                    (self.news(rows), false)
                }
                Snapshot::Done => {
                    let rows = self.changes.next().await?;
                    let quiet = rows.is_empty();
                    let runs = self.news(rows.into_iter().filter(|(_, meets)| *meets).map(|(row, _)| row));
                    let upto = self.changes.upto;
                    self.sent.retain(|_, sent| !sent.phase.is_terminal() || sent.changed > upto);
                    (runs, quiet)
                }
            };
            if quiet || !runs.is_empty() {
                return Ok(Step::Send(WatchRunsResponse { runs, ..Default::default() }));
            }
        }
    }

    async fn list(&self, more: Vec<Filter>, limit: usize, token: String) -> Answer<(Vec<RunRow>, String)> {
        let Changes { control, scope, filters, .. } = &self.changes;
        let filters = filters.iter().cloned().chain(more).collect();
        let query = ListQuery { token, ..ListQuery::newest(filters, limit) };
        let page = control.store().list_runs(scope, &query).await.map_err(wire)?;
        Ok((page.rows, page.next))
    }

    /// Those of the rows that tell something new.
    fn news(&mut self, rows: impl IntoIterator<Item = RunRow>) -> Vec<Run> {
        let mut runs = Vec::new();
        for row in rows {
            let (phase, attempts, cache) = (row.root.phase, row.root.attempts.len(), row.root.cache.status);
            let before = self.sent.get(&row.run.key);
            if before.is_some_and(|s| row.changed <= s.changed) {
                continue;
            }
            let tells = before.is_none_or(|s| (s.phase, s.attempts, s.cache) != (phase, attempts, cache));
            self.sent.insert(row.run.key.clone(), Sent { phase, attempts, cache, changed: row.changed });
            if tells {
                runs.push(run::to_run(&row.run, &row.root));
            }
        }
        runs
    }
}
