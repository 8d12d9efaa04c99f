//! `WatchGroups`: the runs of a project by task.

use std::{cmp::Ordering, collections::VecDeque};

use aloft_core::Phase;
use aloft_flyteidl2::flyteidl2::workflow::{
    TaskGroup, WatchGroupsRequest, WatchGroupsResponse,
    task_group::{ErrorCounts, PhaseCounts, RecentStatus},
    watch_groups_request::{ScopeBy, known_sort_field::SortBy as KnownSort},
};
use aloft_store::{Cursor, Direction, Field, Filter, ListQuery, ListScope, Listed, Op, RunRow, SortBy, TaskTotals};
use buffa_types::google::protobuf::Duration as WireDuration;

use super::{Changes, Step, stream, totals::Totals};
use crate::{
    Control,
    rpc::{
        actions::Messages,
        convert,
        error::{Answer, invalid, wire},
        list,
    },
};

/// Recent runs of a group when the request does not say how many, and at most.
const RECENT: usize = 10;
const MAX_RECENT: usize = 100;

/// Groups in one message.
const MESSAGE: usize = 200;

/// Most people named in a group.
const MAX_PEOPLE: usize = 100;

struct Groups {
    changes: Changes,
    order: Vec<SortBy>,
    recent: usize,
    /// Whether the stream ends with the first list.
    once: bool,
    totals: Option<Totals>,
    /// Tasks to send, and whether they are of the first list.
    pending: VecDeque<TaskGroup>,
    first: bool,
}

pub(in super::super) async fn groups(
    control: Control,
    request: WatchGroupsRequest,
) -> Answer<Messages<WatchGroupsResponse>> {
    let Some(ScopeBy::ProjectId(id)) = &request.scope_by else {
        return Err(invalid("project_id: is required"));
    };
    let place = control.project_scope(id)?;
    let scope = list::scope(place.org, &place.project, &place.domain);
    let start = request.start_date.as_option().ok_or_else(|| invalid("start_date: is required"))?;
    let start = convert::checked_time("start_date", start)?;
    let end = request.end_date.as_option().map(|at| convert::checked_time("end_date", at)).transpose()?;
    let query = list::query(Listed::Runs, request.request.as_option())?;
    if !query.token.is_empty() {
        return Err(invalid("request.token: groups have no pages; leave it empty"));
    }
    let mut order = query.sort;
    for known in &request.known_sort_fields {
        if let Some(KnownSort::CreatedAt(direction)) = &known.sort_by {
            let ascending = direction.as_known().is_some_and(|d| d as i32 == 1);
            let direction = if ascending { Direction::Ascending } else { Direction::Descending };
            order.push(SortBy { field: Field::CreatedAt, direction });
        }
    }
    if order.is_empty() {
        order.push(SortBy::newest());
    }
    for sort in &order {
        if !matches!(sort.field, Field::CreatedAt | Field::TaskName | Field::ShortName | Field::Environment) {
            return Err(invalid(
                "sort_by_fields: groups are sorted by created_at, task_name, function_name or environment",
            ));
        }
    }
    let mut filters = query.filters;
    filters.push(Filter { field: Field::CreatedAt, op: Op::GreaterOrEqual, values: vec![start.into()] });
    filters.extend(end.map(|end| Filter { field: Field::CreatedAt, op: Op::LessOrEqual, values: vec![end.into()] }));
    let asked = request.request.as_option().map_or(0, |r| r.limit as usize);
    let start = Groups {
        changes: Changes::new(control, scope, filters).await?,
        order,
        recent: if asked == 0 { RECENT } else { asked.min(MAX_RECENT) },
        once: end.is_some(),
        totals: None,
        pending: VecDeque::new(),
        first: true,
    };
    Ok(stream(start, |groups| Box::pin(groups.next())))
}

impl Groups {
    async fn next(&mut self) -> Answer<Step<WatchGroupsResponse>> {
        if self.totals.is_none() {
            self.begin().await?;
        }
        while self.pending.is_empty() && !self.first {
            let rows = self.changes.next().await?;
            if rows.is_empty() {
                return Ok(Step::Send(WatchGroupsResponse::default()));
            }
            let Some(totals) = &mut self.totals else { continue };
            let changed = totals.change(rows).into_iter().collect::<Vec<_>>();
            self.gather(changed).await?;
        }
        let task_groups = self.pending.drain(..self.pending.len().min(MESSAGE)).collect();
        // The end of the first list is told once, even if there is nothing in it.
        let sentinel = self.first && self.pending.is_empty();
        self.first &= !sentinel;
        let message = WatchGroupsResponse { task_groups, sentinel, ..Default::default() };
        Ok(if sentinel && self.once { Step::Last(message) } else { Step::Send(message) })
    }

    async fn begin(&mut self) -> Answer<()> {
        let Changes { control, scope, filters, .. } = &self.changes;
        let found = control.store().run_totals(scope, filters).await.map_err(wire)?;
        self.changes.upto = found.upto;
        let totals = Totals::new(found);
        let names = totals.names();
        self.totals = Some(totals);
        self.gather(names).await
    }

    /// Makes messages of tasks, in order.
    async fn gather(&mut self, tasks: Vec<String>) -> Answer<()> {
        let mut groups = Vec::with_capacity(tasks.len());
        for task in tasks {
            let Changes { control, scope, filters, .. } = &self.changes;
            let Some(totals) = &self.totals else { continue };
            let Some(of) = totals.of(&task) else {
                groups.push(TaskGroup { task_name: task, should_delete: true, ..Default::default() });
                continue;
            };
            let recent = recent(control, scope, filters, &task, self.recent).await?;
            let people = totals.subjects(of, MAX_PEOPLE);
            groups.push(group(task, of, &recent, people.iter().map(convert::identity).collect()));
        }
        groups.sort_by(|a, b| compare(&self.order, a, b));
        self.pending.extend(groups);
        Ok(())
    }
}

async fn recent(
    control: &Control,
    scope: &ListScope,
    filters: &[Filter],
    task: &str,
    limit: usize,
) -> Answer<Vec<RunRow>> {
    let filters = filters.iter().cloned().chain([Filter::equal(Field::TaskName, task)]).collect();
    let page = control.store().list_runs(scope, &ListQuery::newest(filters, limit)).await.map_err(wire)?;
    Ok(page.rows)
}

fn average(sum_ms: u64, of: u64) -> Option<WireDuration> {
    let ms = i64::try_from(sum_ms.checked_div(of)?).unwrap_or(i64::MAX);
    let nanos = i32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
    Some(WireDuration { seconds: ms / 1000, nanos, ..Default::default() })
}

fn group(
    task_name: String,
    totals: &TaskTotals,
    recent: &[RunRow],
    created_by: Vec<aloft_flyteidl2::flyteidl2::common::EnrichedIdentity>,
) -> TaskGroup {
    let wide = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let newest = recent.first();
    let task = newest.and_then(|row| row.root.task()).map(|t| &t.task);
    let failed = totals.phases.get(&Phase::Failed.number()).copied().unwrap_or(0);
    let statuses = recent.iter().map(|row| RecentStatus {
        run_name: row.run.key.name.clone(),
        phase: convert::phase(row.root.phase).into(),
        ..Default::default()
    });
    let phases = totals.phases.iter().filter_map(|(number, count)| {
        let phase = convert::phase(Phase::from_number(*number)?);
        Some(PhaseCounts { phase: phase.into(), count: wide(*count), ..Default::default() })
    });
    let [user, system, unspecified] = totals.errors;
    TaskGroup {
        task_name,
        environment_name: task.map(|t| t.environment.clone()).unwrap_or_default(),
        short_name: task.map(|t| t.short_name.clone()).unwrap_or_default(),
        total_runs: wide(totals.runs),
        latest_run_time: newest.map(|row| convert::timestamp(row.run.created_at)).into(),
        recent_statuses: statuses.collect(),
        average_failure_rate: if totals.runs == 0 { 0.0 } else { failed as f64 / totals.runs as f64 },
        average_duration: average(totals.duration_ms, totals.ended).into(),
        latest_finished_time: totals.latest_end.map(convert::timestamp).into(),
        created_by,
        error_counts: ErrorCounts {
            user_error: wide(user),
            system_error: wide(system),
            unspecified_error: wide(unspecified),
            ..Default::default()
        }
        .into(),
        phase_counts: phases.collect(),
        average_time_to_running: average(totals.waited_ms, totals.started).into(),
        ..Default::default()
    }
}

fn compare(order: &[SortBy], a: &TaskGroup, b: &TaskGroup) -> Ordering {
    let key = |field: &Field, group: &TaskGroup| match field {
        Field::TaskName => Cursor::Text(group.task_name.clone()),
        Field::ShortName => Cursor::Text(group.short_name.clone()),
        Field::Environment => Cursor::Text(group.environment_name.clone()),
        _ => group.latest_run_time.as_option().map_or(Cursor::Null, |at| Cursor::Int(convert::time(at).as_micros())),
    };
    let places = order.iter().map(|sort| {
        let found = match (key(&sort.field, a), key(&sort.field, b)) {
            (Cursor::Int(a), Cursor::Int(b)) => a.cmp(&b),
            (Cursor::Text(a), Cursor::Text(b)) => a.cmp(&b),
            (Cursor::Null, Cursor::Int(_)) => Ordering::Less,
            (Cursor::Int(_), Cursor::Null) => Ordering::Greater,
            _ => Ordering::Equal,
        };
        if sort.direction == Direction::Descending { found.reverse() } else { found }
    });
    places.chain([a.task_name.cmp(&b.task_name)]).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}
