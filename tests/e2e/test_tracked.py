"""Runs that are carried out elsewhere and reported: by `flyte run --local --tracked`, and by hand."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
import urllib.request
import uuid
from pathlib import Path

import pytest
import wire
from harness import DOMAIN, EXAMPLES, PROJECT, eventually

RUNS = "flyteidl2.workflow.RunService"
TRACKED = "flyteidl2.workflow.TrackedRunService"
DATA = "flyteidl2.dataproxy.DataProxyService"
SCOPE = {"org": "", "project": PROJECT, "domain": DOMAIN}
PLACE = {"projectId": {"organization": "", "name": PROJECT, "domain": DOMAIN}}
WORKFLOWS = Path(__file__).parent / "workflows"


def new_name() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def run_id(name: str) -> dict:
    return {**SCOPE, "name": name}


def action_id(run: str, action: str) -> dict:
    return {"run": run_id(run), "name": action}


def details(server, run: str, action: str = "a0", service: str = TRACKED) -> dict:
    return wire.unary(server, f"{service}/GetActionDetails", {"actionId": action_id(run, action)})["details"]


def phase(server, run: str, action: str = "a0") -> str:
    return details(server, run, action)["status"]["phase"].removeprefix("ACTION_PHASE_")


def phases_of(attempt: dict) -> list[str]:
    return [t["phase"].removeprefix("ACTION_PHASE_") for t in attempt["phaseTransitions"]]


def data(server, run: str, action: str) -> dict:
    return wire.unary(server, f"{DATA}/GetActionData", {"actionId": action_id(run, action)})


def listed(server, service: str) -> dict[str, dict]:
    request = {"limit": 1000}
    runs = wire.unary(server, f"{service}/ListRuns", {"request": request, **PLACE}).get("runs", [])
    return {run["action"]["id"]["run"]["name"]: run["action"] for run in runs}


STRICTLY = ["run", "--local", "--tracked", "--tracked-strict", "--name"]


def tracked_run(cli, *args: str, code: int = 0, cwd: Path = EXAMPLES):
    """Carry a run out here, under a name of its own, reported strictly; return the name and what was printed."""
    name = new_name()
    return name, cli(*STRICTLY, name, *args, of=None, code=code, cwd=cwd)


# By the SDK


@pytest.mark.parametrize(
    ("example", "tasks", "traces"),
    [("hello", 11, 1), ("nested", 8, 0), ("groups", 7, 0), ("traces", 2, 4), ("caching", 8, 0), ("sync_map", 6, 0)],
)
def test_examples_are_shown_as_they_ran(cli, sdk, server, example, tasks, traces):
    run, _ = tracked_run(cli, f"{example}.py", "main")
    actions = sdk.actions(run)
    kinds = [action.kind for action in actions]
    assert (kinds.count("task"), kinds.count("trace")) == (tasks, traces), sdk.describe(run)
    forgiven = [a for a in actions if a.phase != "succeeded"]
    assert [a.phase for a in forgiven] == ["failed"] * (example in ("traces", "sync_map")), sdk.describe(run)
    known = {action.name for action in actions}
    assert all(action.parent in known for action in actions if action.name != "a0")
    assert all(action.attempts == 1 for action in actions)
    for service in (RUNS, TRACKED):
        assert listed(server, service)[run]["metadata"]["source"] == "RUN_SOURCE_TRACKED"
    for action in actions:
        shown = data(server, run, action.name)
        spec = details(server, run, action.name)
        interface = (spec.get("task", {}).get("taskTemplate") or spec["trace"])["interface"]
        for side in ("inputs", "outputs"):
            declared = interface.get(side, {}).get("variables", [])
            found = shown.get(side, {}).get("literals", [])
            if action.phase == "succeeded" or side == "inputs":
                assert {v["key"] for v in declared} == {v["name"] for v in found}, f"{side} of {action}"


def test_the_command_line_shows_a_tracked_run(cli, sdk, server):
    run, done = tracked_run(cli, "hello.py", "main", "--whom", "tracker")
    assert f"tracked-runs/{run}" in done.text.replace("\n", "").replace(" ", "").replace("│", "")
    assert "Kaixo, tracker!" in done.text
    (shown,) = cli("get", "run", run).python()
    assert shown["action"]["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"
    assert len(cli("get", "action", run).json()) == 12
    io = cli("get", "io", run, "a0", of=None)
    assert "{'whom': 'tracker'}" in io.text and "Kaixo, tracker!" in io.text
    greeted = [a.name for a in sdk.actions(run) if a.what.endswith("greet")]
    inputs = [json.dumps(data(server, run, name)["inputs"]) for name in greeted]
    assert sum("Klingon" in text for text in inputs) == 1
    assert "only reported" in cli("get", "logs", run, of=None).text


def test_errors_are_told_as_their_authors_wrote_them(cli, server):
    run, done = tracked_run(cli, "failing.py", "main", code=1)
    assert "999 straws" in done.text
    failed = details(server, run)
    assert failed["status"]["phase"] == "ACTION_PHASE_FAILED"
    assert failed["errorInfo"] == {"code": "OutOfHay", "message": "only 999 straws left", "kind": "KIND_USER"}
    assert failed["attempts"][0]["errorInfo"] == failed["errorInfo"]


def test_an_error_that_must_not_be_tried_again_is_final_at_once(cli, sdk, server):
    run, _ = tracked_run(cli, "retries.py", "main")
    (hopeless,) = [a for a in sdk.actions(run) if a.what.endswith("hopeless")]
    assert (hopeless.phase, hopeless.attempts) == ("failed", 1)
    assert details(server, run, hopeless.name)["errorInfo"]["code"] == "DryWell"


def test_a_failed_attempt_is_not_the_end(cli, sdk, server, tmp_path):
    run, _ = tracked_run(cli, "tracked_work.py", "stumble", "--marks", str(tmp_path), cwd=WORKFLOWS)
    assert phase(server, run) == "SUCCEEDED"
    (wobbly,) = [a for a in sdk.actions(run) if a.what.endswith("wobbly")]
    assert (wobbly.phase, wobbly.attempts) == ("succeeded", 3)
    attempts = details(server, run, wobbly.name)["attempts"]
    assert [phases_of(a)[-1] for a in attempts] == ["FAILED", "FAILED", "SUCCEEDED"]
    assert [a.get("errorInfo", {}).get("message") for a in attempts] == ["try 1 went wrong", "try 2 went wrong", None]
    assert data(server, run, "a0")["outputs"]["literals"][0]["value"]["scalar"]["primitive"]["integer"] == "42"


def html(server, run: str, action: str = "a0") -> str:
    asked = {"artifactType": "ARTIFACT_TYPE_REPORT", "actionAttemptId": {"actionId": action_id(run, action), "attempt": 1}}
    try:
        link = wire.unary(server, f"{DATA}/CreateDownloadLink", asked)["preSignedUrls"]["signedUrl"][0]
    except wire.Failed as missing:
        assert missing.code == "not_found"
        return ""
    with urllib.request.urlopen(link) as answer:
        assert answer.headers["Content-Type"].startswith("text/html")
        return answer.read().decode()


@pytest.fixture
def busy(cli, server, tmp_path):
    """A run whose child waits for the file `go` in a directory: its name, its process, the directory."""
    name = new_name()
    process = cli.follow(*STRICTLY, name, "tracked_work.py", "busy", "--marks", str(tmp_path), cwd=WORKFLOWS)

    def napping() -> str | None:
        try:
            actions = wire.unary(server, f"{TRACKED}/ListActions", {"runId": run_id(name)}).get("actions", [])
        except wire.Failed:
            return None
        below = [a["id"]["name"] for a in actions if a["id"]["name"] != "a0"]
        return below[0] if (tmp_path / "napping").exists() and below else None

    child = eventually(napping, "the child to nap", about=lambda: "\n".join(process.lines))
    yield name, child, process, tmp_path
    (tmp_path / "go").touch()
    process.close()


def test_a_report_is_shown_while_the_run_goes_on(server, busy):
    run, child, process, marks = busy
    assert (phase(server, run), phase(server, run, child)) == ("RUNNING", "RUNNING")
    eventually(lambda: "half done" in html(server, run), "the first report")
    assert "rested" not in html(server, run)
    (marks / "go").touch()
    process.finish()
    assert process.process.returncode == 0, process.lines
    assert (phase(server, run), phase(server, run, child)) == ("SUCCEEDED", "SUCCEEDED")
    assert "half done" in html(server, run) and "rested" in html(server, run)


def test_an_aborted_run_stays_aborted_whatever_is_reported(server, busy):
    run, child, process, marks = busy
    wire.unary(server, f"{TRACKED}/AbortRun", {"runId": run_id(run), "reason": "not today"})
    for action in ("a0", child):
        assert phase(server, run, action) == "ABORTED"
    (marks / "go").touch()
    printed = "\n".join(process.finish())
    assert process.process.returncode != 0, printed
    assert "has ended" in printed and "aborted" in printed, "strict reporting says why"
    assert phase(server, run, child) == "ABORTED"
    shown = details(server, run)
    assert shown["status"]["phase"] == "ACTION_PHASE_ABORTED" and shown["abortInfo"]["reason"] == "not today"


def test_interrupting_the_process_aborts_the_run(server, busy):
    run, child, process, _ = busy

    def stopped() -> bool:
        # Python drops an interrupt that arrives while it cleans up an object. A person presses again.
        process.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.process.wait(15)
        return process.process.poll() is not None

    eventually(stopped, "the process to end", about=lambda: "\n".join(process.lines))
    eventually(lambda: phase(server, run) == "ABORTED", "the run to be aborted", about=lambda: "\n".join(process.lines))
    assert phase(server, run, child) == "ABORTED"
    assert "SIGINT" in details(server, run)["abortInfo"]["reason"]


# By hand


def spec(name: str = "env.work", retries: int = 0) -> dict:
    id = {"resourceType": "TASK", "project": PROJECT, "domain": DOMAIN, "name": name, "version": "na"}
    return {"taskTemplate": {"id": id, "type": "python", "metadata": {"retries": {"retries": retries}}}}


def begin(server, name: str | None = None, **more) -> str:
    """Create a tracked run; return its name."""
    request = {"runId": run_id(name or new_name()), "taskSpec": spec(), "runStartTime": "2024-01-01T00:00:00Z", **more}
    made = wire.unary(server, f"{TRACKED}/CreateRun", request)["run"]["action"]
    assert made["metadata"]["source"] == "RUN_SOURCE_TRACKED"
    return made["id"]["run"]["name"]


def event(run: str, action: str, phase: str, attempt: int = 1, version: int = 0, **more) -> dict:
    return {"id": action_id(run, action), "attempt": attempt, "phase": f"ACTION_PHASE_{phase}", "version": version, **more}


def said(run: str, action: str, phase: str, attempt: int = 1, version: int = 0, retries: int | None = None, **more) -> dict:
    """An update; `retries` introduces the action as a task that declares as many."""
    introduction = {} if retries is None else {"task": {"spec": spec(retries=retries)}, "parentName": "a0"}
    return {"event": event(run, action, phase, attempt, version), **introduction, **more}


def report(server, run: str, *updates: dict) -> list[dict]:
    statuses = wire.unary(server, f"{TRACKED}/ReportActions", {"runId": run_id(run), "updates": list(updates)})["statuses"]
    assert len(statuses) == len(updates)
    return statuses


def taken(server, run: str, *updates: dict) -> None:
    assert report(server, run, *updates) == [{}] * len(updates)


def refused(status: dict) -> tuple[str, str]:
    return wire.CODES[status.get("code", 0)], status.get("message", "")


def test_reports_may_be_repeated_and_come_in_any_order(server):
    run = begin(server)
    story = [
        said(run, "a0", "RUNNING"),
        said(run, "x", "RUNNING", retries=1),
        said(run, "y", "RUNNING", parentName="x", trace={"name": "step"}),
        said(run, "y", "SUCCEEDED", version=1),
        said(run, "x", "FAILED", version=1),
        said(run, "x", "RUNNING", attempt=2),
        said(run, "x", "SUCCEEDED", attempt=2, version=1),
    ]
    taken(server, run, *story)
    before = wire.unary(server, f"{TRACKED}/ListActions", {"runId": run_id(run)})
    taken(server, run, *story, *reversed(story), *story[3:5])
    assert wire.unary(server, f"{TRACKED}/ListActions", {"runId": run_id(run)}) == before
    assert [phases_of(a) for a in details(server, run, "x")["attempts"]] == [
        ["QUEUED", "RUNNING", "FAILED"],
        ["QUEUED", "RUNNING", "SUCCEEDED"],
    ]
    assert details(server, run, "y")["metadata"]["actionType"] == "ACTION_TYPE_TRACE"
    # The end before the beginning, and an attempt that follows one nobody heard of.
    taken(server, run, said(run, "z", "SUCCEEDED", version=3, retries=0), said(run, "z", "RUNNING", retries=0))
    taken(server, run, said(run, "w", "RUNNING", attempt=3, retries=5))
    assert phase(server, run, "z") == "SUCCEEDED"
    unheard, _, third = details(server, run, "w")["attempts"]
    assert unheard["errorInfo"]["code"] == "EndNotReported" and third["phase"] == "ACTION_PHASE_RUNNING"


def test_a_failure_waits_for_the_next_attempt_if_there_is_to_be_one(server):
    run = begin(server)
    failed = {"errorInfo": {"message": "it broke", "kind": "KIND_USER"}}
    updates = [
        said(run, "once", "RUNNING", retries=0),
        said(run, "again", "RUNNING", retries=1),
    ]
    updates += [{"event": event(run, action, "FAILED", version=1, **failed)} for action in ("once", "again")]
    taken(server, run, *updates)
    assert (phase(server, run, "once"), phase(server, run, "again")) == ("FAILED", "QUEUED")
    waiting = details(server, run, "again")
    assert [a["phase"] for a in waiting["attempts"]] == ["ACTION_PHASE_FAILED"], "there is no attempt that nobody made"
    assert waiting["attempts"][0]["errorInfo"]["message"] == "it broke"
    taken(server, run, said(run, "a0", "SUCCEEDED", version=1))
    assert phase(server, run, "again") == "ABORTED", "its parent ended before it was tried again"


def test_each_update_is_answered_by_itself(server):
    run, other = begin(server), begin(server)
    mine = said(run, "x", "RUNNING", retries=0)
    wrong = [
        {},
        {"event": event(other, "x", "RUNNING")},
        said(run, "x", "PAUSED"),
        said(run, "x", "RUNNING", attempt=0),
        said(run, "x", "RUNNING", attempt=5000),
        said(run, "no/name", "RUNNING"),
        said(run, "unknown", "RUNNING"),
        said(run, "y", "RUNNING", parentName="nobody", task={"spec": spec()}),
        said(run, "y", "RUNNING", task={}),
        {"event": event(run, "x", "SUCCEEDED", version=9, outputs={"outputUri": "s3://elsewhere/o.pb"})},
        {"event": event(run, "x", "SUCCEEDED", version=9, endTime="0001-01-01T00:00:00Z")},
        said(run, "x", "RUNNING", version=9, trace={"name": "f"}),
    ]
    statuses = report(server, run, mine, *wrong, said(run, "x", "SUCCEEDED", version=1))
    assert statuses[0] == statuses[-1] == {}
    answers = [refused(status) for status in statuses[1:-1]]
    expected = [
        ("invalid_argument", "event: is required"),
        ("invalid_argument", f"is run {other}"),
        ("invalid_argument", "event.phase"),
        ("invalid_argument", "event.attempt: is 0"),
        ("invalid_argument", "event.attempt: is 5000"),
        ("invalid_argument", "no/name"),
        ("not_found", "unknown"),
        ("not_found", "nobody"),
        ("invalid_argument", "task.spec"),
        ("invalid_argument", "event.outputs.output_uri"),
        ("ok", ""),
        ("already_exists", "another kind of action"),
    ]
    for (code, message), (wanted, part) in zip(answers, expected, strict=True):
        assert code == wanted and part in message, f"{code}: {message} (not {wanted}: {part})"
        wire.harmless(message)
    for body, code, part in [
        ({"runId": run_id(run)}, "invalid_argument", "updates"),
        ({"updates": [mine]}, "invalid_argument", "run_id"),
        ({"runId": run_id("t-nothing"), "updates": [mine]}, "not_found", "t-nothing"),
    ]:
        with pytest.raises(wire.Failed) as failed:
            wire.unary(server, f"{TRACKED}/ReportActions", body)
        assert failed.value.code == code and part in failed.value.message


def test_a_large_batch_is_taken_in_order(server):
    run = begin(server)
    updates = [said(run, "a0", "RUNNING")]
    for n in range(700):
        # Each below the one before, so that order counts.
        parent = f"x{n - 1}" if n % 10 else "a0"
        updates.append(said(run, f"x{n}", "RUNNING", parentName=parent, task={"spec": spec()}))
    updates += [said(run, f"x{n}", "SUCCEEDED", version=1) for n in reversed(range(700))]
    taken(server, run, *updates, said(run, "a0", "SUCCEEDED", version=1))
    actions = wire.unary(server, f"{TRACKED}/ListActions", {"runId": run_id(run), "request": {"limit": 1000}})["actions"]
    assert len(actions) == 701
    assert {a["status"]["phase"] for a in actions} == {"ACTION_PHASE_SUCCEEDED"}


def test_creation_is_idempotent_and_tells_executions_apart(server):
    name = new_name()
    assert begin(server, name) == name == begin(server, name)
    for more, difference in [
        ({"runStartTime": "2024-01-02T00:00:00Z"}, "another execution"),
        ({"taskSpec": spec("env.other")}, "another task"),
    ]:
        with pytest.raises(wire.Failed) as other:
            begin(server, name, **more)
        assert other.value.code == "already_exists" and difference in other.value.message and name in other.value.message
    for reserved in ("run-1", "u1"):
        with pytest.raises(wire.Failed) as kept:
            begin(server, reserved)
        assert kept.value.code == "invalid_argument" and kept.value.message.startswith("run_id.name")
    # Names that the server makes are the platform's own; a repeated request finds its run.
    place, id = {"projectId": {"name": PROJECT, "domain": DOMAIN}}, {"X-Request-Id": str(uuid.uuid4())}
    request = {**place, "taskSpec": spec(), "labels": {"made": "here"}}
    made = [wire.unary(server, f"{TRACKED}/CreateRun", request, headers=id)["run"] for _ in range(2)]
    assert made[0]["action"]["id"] == made[1]["action"]["id"]
    assert made[0]["labels"] == {"made": "here"} and made[0]["action"]["id"]["run"]["name"].startswith("r")
    for body, part in [
        ({"runId": run_id(new_name())}, "task"),
        ({"taskSpec": spec()}, "id"),
        ({"runId": run_id(new_name()), "taskSpec": spec(), "offloadedInputData": {"uri": "s3://b/x", "inputsHash": "h"}}, "uri"),
    ]:
        with pytest.raises(wire.Failed) as invalid:
            wire.unary(server, f"{TRACKED}/CreateRun", body)
        assert invalid.value.code == "invalid_argument" and part in invalid.value.message


def test_runs_are_tracked_or_run_here(sdk, server, examples):
    here = sdk.succeed(examples.hello.main, whom="here").name
    run = begin(server)
    assert run in listed(server, TRACKED) and here not in listed(server, TRACKED)
    assert {run, here} <= set(listed(server, RUNS))
    for method, body in [
        ("GetRunDetails", {"runId": run_id(here)}),
        ("GetActionDetails", {"actionId": action_id(here, "a0")}),
        ("ListActions", {"runId": run_id(here)}),
        ("AbortRun", {"runId": run_id(here)}),
        ("ReportActions", {"runId": run_id(here), "updates": [said(here, "a0", "FAILED")]}),
    ]:
        with pytest.raises(wire.Failed) as failed:
            wire.unary(server, f"{TRACKED}/{method}", body)
        assert failed.value.code == "not_found" and "not a tracked run" in failed.value.message
    for method in ("WatchRunDetails", "WatchActions"):
        with pytest.raises(wire.Failed):
            wire.stream(server, f"{TRACKED}/{method}", {"runId": run_id(here)})
    enqueue = {"action": {"actionId": action_id(run, "x"), "parentActionName": "a0", "inputUri": "", "task": {"spec": spec()}}}
    with pytest.raises(wire.Failed) as elsewhere:
        wire.unary(server, "flyteidl2.actions.ActionsService/Enqueue", enqueue | {"action": enqueue["action"] | {
            "inputUri": data_uri(server, run)}})
    assert elsewhere.value.code == "failed_precondition" and "elsewhere" in elsewhere.value.message
    with pytest.raises(wire.Failed) as source:
        wire.unary(server, f"{RUNS}/CreateRun", {**PLACE, "taskSpec": spec(), "source": "RUN_SOURCE_TRACKED"})
    assert source.value.code == "invalid_argument" and source.value.message.startswith("source")
    assert phase(server, run) == "QUEUED", "nobody takes it"


def data_uri(server, run: str) -> str:
    uris = wire.unary(server, f"{RUNS}/GetActionDataURIs", {"actionId": action_id(run, "a0")})
    assert uris["inputsUri"].endswith(f"/tracked-runs/{run}/a0/inputs.pb")
    return uris["inputsUri"]


def test_watches_follow_a_tracked_run_to_its_end(server):
    run = begin(server)
    asked = {
        "WatchRunDetails": {"runId": run_id(run)},
        "WatchActionDetails": {"actionId": action_id(run, "a0")},
        "WatchActions": {"runId": run_id(run)},
    }
    seen: dict[str, list] = {}

    def follow(method: str) -> None:
        seen[method] = [json.loads(m) for m in wire.stream(server, f"{TRACKED}/{method}", asked[method])]

    followers = [threading.Thread(target=follow, args=(method,), daemon=True) for method in asked]
    for follower in followers:
        follower.start()
    taken(server, run, said(run, "a0", "RUNNING"), said(run, "x", "RUNNING", retries=1))
    taken(server, run, said(run, "x", "FAILED", version=1))
    taken(server, run, said(run, "x", "RUNNING", attempt=2), said(run, "x", "SUCCEEDED", attempt=2, version=1))
    taken(server, run, said(run, "a0", "SUCCEEDED", version=1))
    for follower in followers:
        follower.join(30)
        assert not follower.is_alive(), "a watch ends with what it watches"
    last = "ACTION_PHASE_SUCCEEDED"
    assert seen["WatchRunDetails"][-1]["details"]["action"]["status"]["phase"] == last
    assert seen["WatchActionDetails"][-1]["details"]["status"]["phase"] == last
    ends = {a["action"]["id"]["name"]: a for m in seen["WatchActions"] for a in m.get("enrichedActions", [])}
    assert {name: a["action"]["status"]["phase"] for name, a in ends.items()} == {"a0": last, "x": last}
    assert ends["a0"]["childrenPhaseCounts"] == {"5": 1}


def test_a_watch_over_tracked_runs_shows_no_others(sdk, server, examples):
    from connectrpc.errors import ConnectError
    from flyteidl2.common import identifier_pb2
    from flyteidl2.workflow import run_service_pb2
    from flyteidl2.workflow.tracked_run_service_connect import TrackedRunServiceClientSync

    old = begin(server)
    seen: dict[str, int] = {}

    def follow() -> None:
        place = identifier_pb2.ProjectIdentifier(name=PROJECT, domain=DOMAIN)
        # It goes on until the server stops.
        with contextlib.suppress(ConnectError), TrackedRunServiceClientSync(server.endpoint) as client:
            for message in client.watch_runs(run_service_pb2.WatchRunsRequest(project_id=place)):
                seen.update({run.action.id.run.name: run.action.status.phase for run in message.runs})

    threading.Thread(target=follow, daemon=True).start()
    eventually(lambda: old in seen, "the run that is there")
    here = sdk.succeed(examples.hello.main, whom="unseen").name
    new = begin(server)
    taken(server, new, said(new, "a0", "RUNNING"), said(new, "a0", "SUCCEEDED", version=1))
    eventually(lambda: seen.get(new) == 5, "the run that is new to succeed", about=lambda: str(seen))
    assert here not in seen


def test_a_tracked_run_outlives_the_server(spawn, tmp_path):
    first = spawn(tmp_path / "data", tmp_path / "log")
    run = begin(first)
    taken(first, run, said(run, "a0", "RUNNING"), said(run, "x", "RUNNING", retries=1), said(run, "x", "FAILED", version=1))
    first.process.kill()
    first.process.wait()
    second = spawn(tmp_path / "data", tmp_path / "log")
    try:
        assert (phase(second, run), phase(second, run, "x")) == ("RUNNING", "QUEUED")
        # The reporter does not know what of its last words was heard.
        taken(second, run, said(run, "x", "FAILED", version=1), said(run, "x", "RUNNING", attempt=2))
        taken(second, run, said(run, "x", "SUCCEEDED", attempt=2, version=1), said(run, "a0", "SUCCEEDED", version=1))
        assert (phase(second, run), phase(second, run, "x")) == ("SUCCEEDED", "SUCCEEDED")
    finally:
        assert second.stop() == 0
