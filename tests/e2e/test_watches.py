"""Watches over the wire: what they show, of what, and how they end."""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import wire
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from flyteidl2.common import identifier_pb2, list_pb2
from flyteidl2.task import task_definition_pb2
from flyteidl2.workflow import run_service_pb2 as service
from flyteidl2.workflow.run_service_connect import RunServiceClientSync
from google.protobuf.timestamp_pb2 import Timestamp
from harness import DOMAIN, PROJECT, Cli, eventually, write_config
from test_contract import task_spec

RUNS = "flyteidl2.workflow.RunService"
SCOPE = {"org": "", "project": PROJECT, "domain": DOMAIN}
PROJECT_ID = identifier_pb2.ProjectIdentifier(name=PROJECT, domain=DOMAIN)
RUNNING, SUCCEEDED, FAILED, ABORTED = 4, 5, 6, 7


class Followed:
    """A stream, read in a thread; `method` is the client's."""

    def __init__(self, server, method: str, request):
        self.messages: list = []
        self.ended = False
        self.error: ConnectError | None = None

        def body() -> None:
            try:
                with RunServiceClientSync(server.endpoint) as client:
                    for message in getattr(client, method)(request):
                        self.messages.append(message)
                self.ended = True
            except ConnectError as error:
                self.error = error

        threading.Thread(target=body, daemon=True).start()

    def until(self, condition, what: str):
        return eventually(lambda: condition(list(self.messages)), what, 60, lambda: f"{self.messages} {self.error}")

    def end(self) -> list:
        eventually(lambda: self.ended or self.error, "the stream to end", 60)
        assert self.error is None, self.error
        return self.messages

    def refusal(self) -> ConnectError:
        return eventually(lambda: self.error, "the stream to be refused", 30)


def run_id(name: str) -> identifier_pb2.RunIdentifier:
    return identifier_pb2.RunIdentifier(project=PROJECT, domain=DOMAIN, name=name)


def action_id(run: str, name: str) -> identifier_pb2.ActionIdentifier:
    return identifier_pb2.ActionIdentifier(run=run_id(run), name=name)


def where(function: str, field: str, *values: str) -> list_pb2.Filter:
    return list_pb2.Filter(function=list_pb2.Filter.Function.Value(function), field=field, values=values)


def abort(server, run: str, action: str | None = None) -> None:
    if action is None:
        wire.unary(server, f"{RUNS}/AbortRun", {"runId": {**SCOPE, "name": run}, "reason": "watched"})
    else:
        body = {"actionId": {"run": {**SCOPE, "name": run}, "name": action}, "reason": "watched"}
        wire.unary(server, f"{RUNS}/AbortAction", body)


def failing_run(server, task: str, name: str | None = None) -> str:
    name = name or f"watch-{uuid.uuid4().hex[:10]}"
    wire.unary(server, f"{RUNS}/CreateRun", {"runId": {**SCOPE, "name": name}, "taskSpec": task_spec(task)})
    return name


@pytest.fixture
def sleeping(server, sdk, examples):
    """A run whose root and two children run until they are aborted."""
    run = sdk.start(examples.abort.main)
    sdk.until(run.name, lambda phases: list(phases.values()) == ["running"] * 3, "the sleepers to sleep")
    children = sorted(name for name in sdk.phases(run.name) if name != "a0")
    yield run.name, children
    try:
        abort(server, run.name)
    except wire.Failed:
        pass


def enriched(messages) -> list[tuple[str, bool, int, dict[int, int]]]:
    return [
        (e.action.id.name, e.meets_filter, e.action.status.phase, dict(e.children_phase_counts))
        for m in messages
        for e in m.enriched_actions
    ]


def test_an_action_that_leaves_the_filter_is_told_once_more(server, sleeping):
    run, (first, second) = sleeping
    request = service.WatchActionsRequest(run_id=run_id(run), filter=[where("VALUE_IN", "PHASE", str(RUNNING))])
    watch = Followed(server, "watch_actions", request)
    watch.until(lambda m: len(enriched(m)) >= 3, "the snapshot")
    assert enriched(watch.messages)[0] == ("a0", True, RUNNING, {RUNNING: 2}), "parents come first"
    abort(server, run, first)
    left = (first, False, ABORTED, {})
    watch.until(lambda m: left in enriched(m), "the news that it left")
    counted = ("a0", True, RUNNING, {RUNNING: 1, ABORTED: 1})
    watch.until(lambda m: counted in enriched(m), "the counts of its parent")
    abort(server, run)
    seen = enriched(watch.end())
    assert seen.count(left) == 1
    last = {name: (meets, phase) for name, meets, phase, _ in seen}
    assert last == {"a0": (False, ABORTED), first: (False, ABORTED), second: (False, ABORTED)}


def test_what_is_above_an_action_is_shown_with_it(server, sleeping):
    run, children = sleeping
    request = service.WatchActionsRequest(run_id=run_id(run), filter=[where("CONTAINS_CASE_INSENSITIVE", "NAME", "SLEEP")])
    watch = Followed(server, "watch_actions", request)
    watch.until(lambda m: len(enriched(m)) >= 3, "the snapshot")
    shown = {name: meets for name, meets, _, _ in enriched(watch.messages)}
    assert shown == {"a0": False, **dict.fromkeys(children, True)}
    nobody = service.WatchActionsRequest(run_id=run_id(run), filter=[where("EQUAL", "name", "nobody")])
    other = Followed(server, "watch_actions", nobody)
    abort(server, run)
    watch.end()
    assert enriched(other.end()) == [], "nothing meets this filter"


def test_filters_of_a_watch_are_checked(server, sleeping):
    run, _ = sleeping
    for filter_, part in [(where("EQUAL", "colour", "red"), "colour"), (where("VALUE_IN", "PHASE", "99"), "99")]:
        request = service.WatchActionsRequest(run_id=run_id(run), filter=[filter_])
        refused = Followed(server, "watch_actions", request).refusal()
        assert refused.code == Code.INVALID_ARGUMENT and part in refused.message


def test_watches_of_what_is_over_show_the_end_and_close(server, sdk, examples):
    run = sdk.succeed(examples.hello.main, whom="over")
    actions = Followed(server, "watch_actions", service.WatchActionsRequest(run_id=run_id(run.name))).end()
    assert {phase for _, _, phase, _ in enriched(actions)} == {SUCCEEDED}
    root = action_id(run.name, "a0")
    (details,) = Followed(server, "watch_action_details", service.WatchActionDetailsRequest(action_id=root)).end()
    assert details.details.status.phase == SUCCEEDED
    (of_run,) = Followed(server, "watch_run_details", service.WatchRunDetailsRequest(run_id=run_id(run.name))).end()
    assert of_run.details.action == details.details and of_run.details.HasField("run_spec")
    request = service.WatchClusterEventsRequest(id=root, attempt=1)
    events = [e for m in Followed(server, "watch_cluster_events", request).end() for e in m.cluster_events]
    assert events == list(details.details.attempts[0].cluster_events)
    assert [e.reason for e in events if e.reason not in ("WaitingForResources", "Preparing")] == ["Queued", "Started", "Completed"]
    assert all(e.source_component and e.count == 1 and e.message and e.type for e in events)


def test_cluster_events_are_of_one_attempt(server, sdk, examples):
    run = sdk.succeed(examples.retries.main, good_attempt=1)
    flaky = next(a.name for a in sdk.actions(run.name) if a.what.endswith("flaky"))

    def reasons(attempt: int) -> list[str]:
        request = service.WatchClusterEventsRequest(id=action_id(run.name, flaky), attempt=attempt)
        return [e.reason for m in Followed(server, "watch_cluster_events", request).end() for e in m.cluster_events]

    assert reasons(1)[-1] == "Failed" and reasons(2)[-1] == "Completed"
    for attempt, code in [(0, Code.INVALID_ARGUMENT), (9, Code.NOT_FOUND)]:
        request = service.WatchClusterEventsRequest(id=action_id(run.name, flaky), attempt=attempt)
        assert Followed(server, "watch_cluster_events", request).refusal().code == code


def runs_of(messages) -> list[tuple[str, int]]:
    return [(r.action.id.run.name, r.action.status.phase) for m in messages for r in m.runs]


def test_watches_over_runs_have_what_runs_and_what_is_new(server, sleeping):
    old, _ = sleeping
    task = f"watch{uuid.uuid4().hex[:6]}.t"
    # More than the first message holds, so that the sleeping run is not among the newest.
    for i in range(110):
        failing_run(server, f"{task}-other", f"filler-{uuid.uuid4().hex[:8]}-{i}")
    mine = failing_run(server, task)
    name = task_definition_pb2.TaskIdentifier(project=PROJECT, domain=DOMAIN, name=task)
    cluster = identifier_pb2.ClusterIdentifier(name="local")
    targets = {
        "project": service.WatchRunsRequest(project_id=PROJECT_ID),
        "org": service.WatchRunsRequest(org="local"),
        "cluster": service.WatchRunsRequest(cluster_id=cluster),
        "task": service.WatchRunsRequest(task_id=name),
    }
    watches = {what: Followed(server, "watch_runs", request) for what, request in targets.items()}
    for what, watch in watches.items():
        wanted = mine if what == "task" else old
        watch.until(lambda m, w=wanted: w in dict(runs_of(m)), f"{wanted} in the watch of the {what}")
    new = failing_run(server, task)
    for what, watch in watches.items():
        watch.until(lambda m: dict(runs_of(m)).get(new) == FAILED, f"the end of the new run in the watch of the {what}")
    abort(server, old)
    for what in ("project", "org", "cluster"):
        watches[what].until(lambda m: dict(runs_of(m)).get(old) == ABORTED, "the abort")
    assert {r for r, _ in runs_of(watches["task"].messages)} == {mine, new}
    for watch in watches.values():
        told = [r for r in runs_of(watch.messages) if r[0] == new]
        assert len(told) == len(set(told)), "nothing is told twice"
    empty = service.WatchRunsRequest(task_id=task_definition_pb2.TaskIdentifier(project=PROJECT, domain=DOMAIN, name="none"))
    assert Followed(server, "watch_runs", empty).until(lambda m: m, "word that there is nothing")[0].runs == []
    request = service.WatchRunsRequest(cluster_id=identifier_pb2.ClusterIdentifier(name="moon"))
    refused = Followed(server, "watch_runs", request).refusal()
    assert refused.code == Code.NOT_FOUND and "local" in refused.message


def now() -> Timestamp:
    at = Timestamp()
    at.GetCurrentTime()
    return at


def test_groups_are_counted_once_and_then_kept_up(server, sleeping):
    run, _ = sleeping
    task = f"group{uuid.uuid4().hex[:6]}"
    since = now()
    failed = [failing_run(server, f"{task}.a") for _ in range(3)]
    failed += [failing_run(server, f"{task}.b")]

    def over() -> bool:
        found = wire.unary(server, f"{RUNS}/ListRuns", {"projectId": {"name": PROJECT, "domain": DOMAIN}, "request": {"limit": 4}})
        return all("endTime" in r["action"]["status"] for r in found["runs"])

    eventually(over, "the runs to end")
    mine = where("CONTAINS", "task_name", task)

    def request(**more) -> service.WatchGroupsRequest:
        limit = list_pb2.ListRequest(limit=2, filters=[mine])
        return service.WatchGroupsRequest(project_id=PROJECT_ID, start_date=since, request=limit, **more)

    once = Followed(server, "watch_groups", request(end_date=now())).end()
    assert [m.sentinel for m in once] == [True]
    b, a = once[0].task_groups
    assert (a.task_name, a.short_name, a.total_runs, b.total_runs) == (f"{task}.a", "a", 3, 1), "the latest first"
    assert {p.phase: p.count for p in a.phase_counts} == {FAILED: 3} and a.average_failure_rate == 1.0
    assert [s.run_name for s in a.recent_statuses] == failed[2:0:-1]
    assert [i.user.id.subject for i in a.created_by] == ["anonymous"]
    errors = a.error_counts
    assert errors.user_error + errors.system_error + errors.unspecified_error == 3
    assert a.HasField("latest_finished_time") and a.average_duration.ToMilliseconds() >= 0
    up = service.WatchGroupsRequest.KnownSortField(created_at=list_pb2.Sort.ASCENDING)
    (sorted_up,) = Followed(server, "watch_groups", request(end_date=now(), known_sort_fields=[up])).end()
    assert [g.task_name for g in sorted_up.task_groups] == [f"{task}.a", f"{task}.b"]

    live = Followed(server, "watch_groups", request())
    live.until(lambda m: m and m[-1].sentinel, "the first list")
    new = failing_run(server, f"{task}.b")

    def latest(messages) -> dict:
        return {g.task_name: g for m in messages for g in m.task_groups}

    live.until(
        lambda m: latest(m)[f"{task}.b"].total_runs == 2
        and [(p.phase, p.count) for p in latest(m)[f"{task}.b"].phase_counts] == [(FAILED, 2)],
        "the new run to be counted",
    )
    assert latest(live.messages)[f"{task}.b"].recent_statuses[0].run_name == new
    assert sum(m.sentinel for m in live.messages) == 1
    assert all(g.task_name == f"{task}.b" for m in live.messages[1:] for g in m.task_groups), "only what changed"


def test_a_group_that_leaves_the_filter_is_to_be_deleted(server, sleeping):
    run, _ = sleeping
    filters = [where("EQUAL", "phase", "RUNNING"), where("EQUAL", "name", run)]
    request = service.WatchGroupsRequest(
        project_id=PROJECT_ID, start_date=Timestamp(seconds=1), request=list_pb2.ListRequest(filters=filters)
    )
    watch = Followed(server, "watch_groups", request)
    (first,) = watch.until(lambda m: m, "the first list")[0].task_groups
    assert (first.task_name, first.total_runs) == ("abort.main", 1)
    assert first.HasField("average_time_to_running") and not first.HasField("latest_finished_time")
    abort(server, run)
    gone = watch.until(lambda m: [g for n in m for g in n.task_groups if g.should_delete], "the group to leave")
    assert [g.task_name for g in gone] == ["abort.main"]


def test_groups_that_cannot_be_watched_are_refused(server):
    sort = list_pb2.ListRequest(sort_by_fields=[list_pb2.Sort(key="phase")])
    for request, part in [
        (service.WatchGroupsRequest(project_id=PROJECT_ID), "start_date"),
        (service.WatchGroupsRequest(start_date=now()), "project_id"),
        (service.WatchGroupsRequest(project_id=PROJECT_ID, start_date=now(), request=list_pb2.ListRequest(token="x")), "token"),
        (service.WatchGroupsRequest(project_id=PROJECT_ID, start_date=now(), request=sort), "sort_by_fields"),
    ]:  # fmt: skip
        refused = Followed(server, "watch_groups", request).refusal()
        assert refused.code == Code.INVALID_ARGUMENT and part in refused.message


@pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="that server is not ours to stop")
def test_every_watch_hears_that_the_server_stops(spawn, tmp_path):
    server = spawn(tmp_path / "data", tmp_path / "server.log")
    cli = Cli(Path(sys.executable).parent / "flyte", write_config(tmp_path / "config.yaml", server.authority), tmp_path)
    try:
        run = cli("run", "abort.py", "main").run_name
        root = action_id(run, "a0")
        watches = {
            "watch_actions": service.WatchActionsRequest(run_id=run_id(run)),
            "watch_action_details": service.WatchActionDetailsRequest(action_id=root),
            "watch_run_details": service.WatchRunDetailsRequest(run_id=run_id(run)),
            "watch_runs": service.WatchRunsRequest(project_id=PROJECT_ID),
            "watch_groups": service.WatchGroupsRequest(project_id=PROJECT_ID, start_date=Timestamp(seconds=1)),
            "watch_cluster_events": service.WatchClusterEventsRequest(id=root, attempt=1),
        }
        followed = {method: Followed(server, method, request) for method, request in watches.items()}
        for method, watch in followed.items():
            watch.until(lambda m: m, f"{method} to begin")
        time.sleep(0.2)
        assert not any(watch.ended or watch.error for watch in followed.values())
    finally:
        assert server.stop() == 0
    for method, watch in followed.items():
        error = eventually(lambda w=watch: w.error, f"{method} to hear", 10)
        assert error.code == Code.UNAVAILABLE, (method, error)
