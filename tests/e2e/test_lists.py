"""Lists over the wire and through the CLI: filters, orders, pages, totals."""

from __future__ import annotations

import datetime
import uuid

import flyte.remote
import pytest
import wire
from flyte.models import ActionPhase
from harness import DOMAIN, PROJECT, eventually
from test_contract import task_spec

RUNS = "flyteidl2.workflow.RunService"
TASKS = "flyteidl2.task.TaskService"
SCOPE = {"org": "", "project": PROJECT, "domain": DOMAIN}
PROJECT_ID = {"name": PROJECT, "domain": DOMAIN}


def list_runs(server, **request) -> dict:
    scope = request.pop("scope", {"projectId": PROJECT_ID})
    only = request.pop("paused", False)
    body = {**scope, "request": {"limit": 1000, **request}, "pausedActionsOnly": only}
    return wire.unary(server, f"{RUNS}/ListRuns", body)


def names(answer: dict) -> list[str]:
    return [run["action"]["id"]["run"]["name"] for run in answer.get("runs", [])]


def selected(server, function: str, field: str, *values: str, **more) -> set[str]:
    filters = [{"function": function, "field": field, "values": list(values)}, *more.pop("filters", [])]
    return set(names(list_runs(server, filters=filters, **more)))


@pytest.fixture(scope="module")
def some(server):
    """A dozen runs of two tasks that fail at once, with labels of their own."""
    mark = uuid.uuid4().hex[:8]
    made = {}
    for i in range(12):
        name = f"list-{mark}-{i:02}"
        labels = {"mark": mark, "number": str(i), "half": ["low", "high"][i // 6]}
        if i % 4 == 0:
            labels["fourth"] = ""
        body = {
            "runId": {**SCOPE, "name": name},
            "taskSpec": task_spec(f"lists{mark}.task{i % 2}"),
            "runSpec": {"labels": {"values": labels}},
            "source": ["RUN_SOURCE_CLI", "RUN_SOURCE_WEB"][i % 2],
        }
        wire.unary(server, f"{RUNS}/CreateRun", body)
        made[name] = labels

    def settled() -> bool:
        found = list_runs(server, filters=[{"function": "EQUAL", "field": "labels.mark", "values": [mark]}])
        return all("endTime" in run["action"]["status"] for run in found["runs"])

    eventually(settled, "the runs to end")
    return mark, made


def of(some, *numbers: int) -> set[str]:
    return {f"list-{some[0]}-{i:02}" for i in numbers}


def test_every_function_filters_runs(server, some):
    mark, made = some
    mine = {"function": "EQUAL", "field": "labels.mark", "values": [mark]}
    task = f"lists{mark}.task"
    first = f"list-{mark}-00"
    expected = [
        ("EQUAL", "name", [first], {0}),
        ("NOT_EQUAL", "name", [first], set(range(1, 12))),
        ("GREATER_THAN", "name", [f"list-{mark}-09"], {10, 11}),
        ("GREATER_THAN_OR_EQUAL", "run_name", [f"list-{mark}-09"], {9, 10, 11}),
        ("LESS_THAN", "name", [f"list-{mark}-01"], {0}),
        ("LESS_THAN_OR_EQUAL", "name", [f"list-{mark}-01"], {0, 1}),
        ("CONTAINS", "task_name", ["task1"], {1, 3, 5, 7, 9, 11}),
        ("CONTAINS", "task_name", ["TASK1"], set()),
        ("CONTAINS_CASE_INSENSITIVE", "task_name", ["TASK1"], {1, 3, 5, 7, 9, 11}),
        ("VALUE_IN", "labels.number", ["3", "7", "99"], {3, 7}),
        ("VALUE_NOT_IN", "labels.number", [str(i) for i in range(10)], {10, 11}),
        ("ENDS_WITH", "name", ["-05"], {5}),
        ("NOT_ENDS_WITH", "task_name", ["0"], {1, 3, 5, 7, 9, 11}),
        ("EXISTS", "labels.fourth", [], {0, 4, 8}),
        ("NOT_EXISTS", "labels.fourth", [], set(range(12)) - {0, 4, 8}),
        ("EQUAL", "labels.fourth", [""], {0, 4, 8}),
        ("EQUAL", "phase", ["ABORTED"], set()),
        ("EQUAL", "phase", ["6"], set(range(12))),
        ("NOT_EQUAL", "PHASE", ["ACTION_PHASE_FAILED"], set()),
        ("EQUAL", "run_source", ["WEB"], {1, 3, 5, 7, 9, 11}),
        ("EQUAL", "function_name", ["task0"], {0, 2, 4, 6, 8, 10}),
        ("EQUAL", "task_version", ["1"], set(range(12))),
        ("EQUAL", "created_by", ["anonymous"], set(range(12))),
        ("EQUAL", "project", ["other"], set()),
        ("EXISTS", "ended_at", [], set(range(12))),
        ("EXISTS", "trigger_name", [], set()),
        ("GREATER_THAN", "created_at", ["2000-01-01T00:00:00"], set(range(12))),
        ("LESS_THAN", "updated_at", ["2000-01-01"], set()),
        ("GREATER_THAN_OR_EQUAL", "duration_ms", ["0"], set(range(12))),
        ("LESS_THAN", "attempts", ["1"], set()),
        ("EQUAL", "action_type", ["TASK"], set(range(12))),
        ("EQUAL", "cache_status", ["CACHE_DISABLED"], set(range(12))),
    ]
    for function, field, values, numbers in expected:
        found = selected(server, function, field, *values, filters=[mine])
        assert found == of(some, *numbers), f"{function} {field} {values}"
    raw = names(list_runs(server, rawFilters=[f"eq(labels.mark,{mark})+value_in(labels.number, 1;2)", "eq(phase, FAILED)"]))
    assert set(raw) == of(some, 1, 2)


def test_scopes_of_runs(server, some):
    mark, _ = some
    task = {**SCOPE, "name": f"lists{mark}.task1"}
    odd = of(some, 1, 3, 5, 7, 9, 11)
    assert set(names(list_runs(server, scope={"taskName": task}))) == odd
    assert set(names(list_runs(server, scope={"taskId": {**task, "version": "1"}}))) == odd
    assert names(list_runs(server, scope={"taskId": {**task, "version": "2"}})) == []
    assert names(list_runs(server, scope={"triggerName": {**SCOPE, "name": "nightly"}})) == []
    assert odd <= set(names(list_runs(server, scope={"org": "local"})))
    assert names(list_runs(server, scope={"org": "elsewhere"})) == []


def test_keys_sort_in_their_order_and_pages_follow_it(server, some):
    mark, made = some
    mine = [{"function": "EQUAL", "field": "labels.mark", "values": [mark]}]
    orders = [
        [],
        [{"key": "name", "direction": "ASCENDING"}],
        [{"key": "task_name", "direction": "DESCENDING"}, {"key": "name", "direction": "ASCENDING"}],
        [{"key": "labels.half", "direction": "ASCENDING"}, {"key": "created_at", "direction": "DESCENDING"}],
        [{"key": "phase", "direction": "DESCENDING"}, {"key": "name", "direction": "DESCENDING"}],
        [{"key": "updated_at", "direction": "ASCENDING"}],
    ]
    keys = {
        "name": lambda run: run["action"]["id"]["run"]["name"],
        "task_name": lambda run: run["action"]["metadata"]["task"]["id"]["name"],
        "labels.half": lambda run: run["labels"]["half"],
        "created_at": lambda run: run["action"]["status"]["startTime"],
        "phase": lambda run: run["action"]["status"]["phase"],
    }
    for order in orders:
        whole = list_runs(server, filters=mine, sortByFields=order)["runs"]
        assert len(whole) == 12
        if order and order[0]["key"] in keys:
            expected = list(whole)
            for key in reversed(order):
                expected.sort(key=keys[key["key"]], reverse=key["direction"] == "DESCENDING")
            assert whole == expected, order
        for size in (1, 5, 12):
            paged, token = [], ""
            while True:
                answer = list_runs(server, filters=mine, sortByFields=order, limit=size, token=token)
                paged += names(answer)
                assert len(answer["runs"]) <= size
                if not (token := answer.get("token", "")):
                    break
            assert paged == names({"runs": whole}), (order, size)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"filters": [{"function": "EQUAL", "field": "colour", "values": ["red"]}]}, ["colour", "labels.<key>", "phase"]),
        ({"filters": [{"function": "CONTAINS", "field": "phase", "values": ["4"]}]}, ["phase", "VALUE_IN"]),
        ({"filters": [{"function": "EQUAL", "field": "phase", "values": ["dancing"]}]}, ["dancing", "RUNNING"]),
        ({"filters": [{"function": "LESS_THAN", "field": "created_at", "values": ["noon"]}]}, ["noon"]),
        ({"sortByFields": [{"key": "colour"}]}, ["sort_by_fields", "colour"]),
        ({"sortBy": {"key": "colour"}}, ["sort_by", "colour"]),
        ({"rawFilters": ["like(name, x)"]}, ["raw_filters", "like"]),
        ({"token": "mine"}, ["token"]),
        ({"sortByFields": [{"key": "name"}] * 9}, ["sort_by_fields", "8"]),
    ],
)
def test_what_a_list_cannot_do_is_refused_with_a_sentence(server, request_, said):
    with pytest.raises(wire.Failed) as refused:
        list_runs(server, **request_)
    assert refused.value.code == "invalid_argument"
    assert all(word in str(refused.value) for word in said), refused.value


def test_a_token_is_of_one_list(server, some):
    mark, _ = some
    mine = [{"function": "EQUAL", "field": "labels.mark", "values": [mark]}]
    for order in ([], [{"key": "phase"}]):
        token = list_runs(server, filters=mine, sortByFields=order, limit=2)["token"]
        assert len(list_runs(server, filters=mine, sortByFields=order, limit=3, token=token)["runs"]) == 3
        with pytest.raises(wire.Failed) as refused:
            list_runs(server, sortByFields=order, limit=2, token=token)
        assert refused.value.code == "invalid_argument"


def test_actions_are_filtered_and_sorted(server, sdk, examples):
    run = sdk.succeed(examples.hello.main, whom="lists")

    def actions(**request) -> list[dict]:
        body = {"runId": {**SCOPE, "name": run.name}, "request": {"limit": 100, **request}}
        return wire.unary(server, f"{RUNS}/ListActions", body).get("actions", [])

    def count(function: str, field: str, *values: str) -> int:
        return len(actions(filters=[{"function": function, "field": field, "values": list(values)}]))

    everything = len(actions())
    assert count("EQUAL", "parent_name", "a0") + count("EXISTS", "parent_name") >= everything - 1
    assert count("NOT_EXISTS", "parent_name") == 1
    assert count("EQUAL", "action_type", "2") == 1 == count("EQUAL", "action_type", "TRACE")
    assert count("VALUE_IN", "phase", "5", "6") == everything
    assert count("NOT_EQUAL", "phase", "SUCCEEDED") == 0
    assert count("EQUAL", "run_name", run.name) == everything
    assert count("GREATER_THAN_OR_EQUAL", "duration_ms", "0") == everything
    assert count("EXISTS", "group") + count("NOT_EXISTS", "group") == everything
    by_end = [a["status"]["endTime"] for a in actions(sortByFields=[{"key": "ended_at", "direction": "ASCENDING"}])]
    assert by_end == sorted(by_end)


def test_the_cli_finds_runs_by_all_that_it_can_ask(cli, sdk, examples):
    mark = uuid.uuid4().hex[:8]
    good = sdk.succeed(examples.hello.main, context={"labels": {"lists": mark, "kind": "good"}}, whom="cli")
    bad = sdk.fail(examples.recover.main)
    found = lambda *args: [r["action"]["id"]["run"]["name"] for r in cli("get", "run", "--limit", "1000", *args).json()]  # noqa: E731
    assert found("--with-label", f"lists={mark}") == [good.name]
    assert found("--with-label", f"lists={mark}", "--with-label", "kind=bad") == []
    assert found("--with-label-key", "lists", "--with-label", f"lists={mark}") == [good.name]
    assert good.name in found("--in-phase", "succeeded", "--only-mine")
    assert good.name not in found("--in-phase", "recovered"), "sent as the digits of 10"
    task = good.pb2.action.metadata.task.id
    assert good.name in found("--task-name", task.name, "--task-version", task.version)
    assert good.name not in found("--task-name", task.name, "--task-version", "none")
    yesterday = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S")
    assert good.name in found("--created-after", yesterday, "--updated-after", yesterday)
    assert good.name not in found("--created-before", yesterday)
    assert good.name not in found("--updated-before", yesterday)
    assert bad.name in found("--in-phase", "failed")
    shown = cli("get", "action", good.name, "--in-phase", "succeeded").json()
    assert len(shown) == len(cli("get", "action", good.name).json())
    children = list(flyte.remote.Action.listall(for_run_name=good.name, parent_name="a0", in_phase=(ActionPhase.SUCCEEDED,)))
    assert children and all(a.pb2.metadata.parent == "a0" for a in children)


def test_recovered_actions_are_found_as_the_sdk_asks_for_them(sdk, cli, examples):
    first = sdk.fail(examples.recover.main)
    again = cli("rerun", first.name, "--recover", timeout=120).run_name
    eventually(lambda: set(sdk.phases(again).values()) & {"recovered"}, "an action to be recovered")
    found = cli("get", "action", again, "--in-phase", "recovered").json()
    assert found and all(a["status"]["phase"] == "ACTION_PHASE_RECOVERED" for a in found)


def test_runs_that_wait_for_somebody_are_listed(sdk, cli, server, examples):
    run = sdk.start(examples.conditions.main, report="Listed.")
    eventually(lambda: "paused" in sdk.phases(run.name).values(), "the condition to wait")
    assert run.name in names(list_runs(server, paused=True))
    shown = cli("get", "run", "--paused-only", "--limit", "1000").json()
    assert run.name in [r["action"]["id"]["run"]["name"] for r in shown]
    paused = wire.unary(
        server,
        f"{RUNS}/ListActions",
        {"runId": {**SCOPE, "name": run.name}, "request": {"filters": [{"field": "phase", "values": ["PAUSED"]}]}},
    )["actions"]
    assert len(paused) == 1
    wire.unary(server, f"{RUNS}/AbortRun", {"runId": {**SCOPE, "name": run.name}})
    assert run.name not in names(list_runs(server, paused=True)), "from that commit on"


def test_tasks_are_counted_and_know_their_latest_run(server):
    mark = uuid.uuid4().hex[:8]
    deployed = [(f"env{mark}.a", "1"), (f"env{mark}.a", "2"), (f"env{mark}.b", "1")]
    for name, version in deployed:
        spec = task_spec(name)
        spec["taskTemplate"]["id"]["version"] = version
        spec["taskTemplate"]["metadata"]["isEntrypoint"] = name.endswith("b")
        wire.unary(server, f"{TASKS}/DeployTask", {"taskId": {**SCOPE, "name": name, "version": version}, "spec": spec})
    run = {**SCOPE, "name": f"latest-{mark}"}
    wire.unary(
        server, f"{RUNS}/CreateRun", {"runId": run, "taskId": {**SCOPE, "name": f"env{mark}.a", "version": "1"}}
    )

    def tasks(*filters, known=(), **more) -> dict:
        request = {"filters": [{"function": f, "field": n, "values": v} for f, n, v in filters], "limit": 100, **more}
        return wire.unary(server, f"{TASKS}/ListTasks", {"projectId": PROJECT_ID, "request": request, "knownFilters": list(known)})

    mine = ("CONTAINS", "name", [f"env{mark}."])
    answer = tasks(mine, sortByFields=[{"key": "name", "direction": "ASCENDING"}])
    assert [(t["taskId"]["name"], t["taskId"]["version"]) for t in answer["tasks"]] == [deployed[1], deployed[2]]
    assert answer["metadata"]["filteredTotal"] == 2 <= answer["metadata"]["total"]
    latest = answer["tasks"][0]["taskSummary"]["latestRun"]
    assert latest["runId"]["name"] == run["name"] and latest["rootTaskName"] == f"env{mark}.a"
    assert "taskSummary" not in answer["tasks"][1], "it never ran"
    assert tasks(mine, known=[{"isEntrypoint": True}])["metadata"]["filteredTotal"] == 1
    assert tasks(mine, known=[{"deployedBy": "anonymous"}])["metadata"]["filteredTotal"] == 2
    assert "tasks" not in tasks(mine, known=[{"deployedBy": "nobody"}])
    assert [t["taskId"]["version"] for t in tasks(("EQUAL", "name", [f"env{mark}.a"]))["tasks"]] == ["2", "1"]
    page = tasks(mine, limit=1)
    assert len(page["tasks"]) == 1 and len(tasks(mine, limit=1, token=page["token"])["tasks"]) == 1

    versions = wire.unary(server, f"{TASKS}/ListVersions", {"taskName": {**SCOPE, "name": f"env{mark}.a"}})["versions"]
    assert [v["version"] for v in versions] == ["2", "1"]
    assert all(v["deployedBy"]["user"]["id"]["subject"] == "anonymous" for v in versions)
    assert versions[1]["latestRun"]["runId"]["name"] == run["name"] and "latestRun" not in versions[0]
