"""What clients rely on and no example shows: repetition, both controllers, exact watches.

Requests are made of the SDK's own messages and sent over Connect as JSON, so that they can be repeated and raced.
"""

from __future__ import annotations

import concurrent.futures
import json
import uuid

import httpx
import pytest
import wire
from harness import eventually

SCOPE = {"org": "", "project": "flytesnacks", "domain": "development"}
RUNS = "flyteidl2.workflow.RunService"
ACTIONS = "flyteidl2.actions.ActionsService"
TERMINAL = {f"ACTION_PHASE_{p}" for p in ("SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT", "RECOVERED")}


def task_spec(name: str = "contract.sleeper") -> dict:
    """A task that no environment can run: it stays where the test wants to look at it, or fails at once."""
    return {
        "taskTemplate": {
            "id": {"resourceType": "TASK", "name": name, "version": "1", "project": "flytesnacks", "domain": "development"},
            "type": "python",
            "metadata": {"runtime": {"type": "FLYTE_SDK", "version": "2.12.1"}, "retries": {}},
            "container": {"image": "", "args": ["no-such-program"]},
        },
        "shortName": name.rsplit(".", 1)[-1],
    }


def create(server, body: dict, request_id: str | None = None):
    headers = {"x-request-id": request_id} if request_id else {}
    return wire.unary(server, f"{RUNS}/CreateRun", body, headers=headers)


def first_messages(server, method: str, body: dict, count: int) -> list[dict]:
    """The first `count` messages of a stream that may never end."""
    envelope = wire.envelope(json.dumps(body).encode())
    kind = {"content-type": "application/connect+json"}
    read, messages = b"", []
    with httpx.stream("POST", f"{server.endpoint}/{method}", content=envelope, headers=kind, timeout=30) as response:
        for chunk in response.iter_bytes():
            read += chunk
            while len(read) >= 5 and len(read) >= 5 + (size := int.from_bytes(read[1:5], "big")):
                messages.append(json.loads(read[5 : 5 + size]))
                read = read[5 + size :]
                if len(messages) == count:
                    return messages
    return messages


def run_name(response) -> str:
    return response["run"]["action"]["id"]["run"]["name"]


def test_a_repeated_create_run_finds_the_run_it_made(server):
    body = {"projectId": {"name": "flytesnacks", "domain": "development"}, "taskSpec": task_spec()}
    request = str(uuid.uuid4())
    names = {run_name(create(server, body, request)) for _ in range(3)}
    assert len(names) == 1, "the SDK repeats a request whose answer it lost under the same x-request-id"
    assert run_name(create(server, body, str(uuid.uuid4()))) not in names
    assert run_name(create(server, body)) != run_name(create(server, body)), "without an identifier, every request is a run"


def test_a_taken_run_name_is_the_same_run_or_a_clear_refusal(server):
    run = {**SCOPE, "name": f"mine-{uuid.uuid4().hex[:8]}"}
    body = {"runId": run, "taskSpec": task_spec()}
    assert run_name(create(server, body)) == run["name"]
    assert run_name(create(server, body)) == run["name"]
    with pytest.raises(wire.Failed) as refused:
        create(server, {"runId": run, "taskSpec": task_spec("contract.other")})
    assert refused.value.code == "already_exists" and run["name"] in str(refused.value)


def test_of_racing_creates_one_makes_the_run(server):
    run = {**SCOPE, "name": f"race-{uuid.uuid4().hex[:8]}"}
    body = {"runId": run, "taskSpec": task_spec()}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: run_name(create(server, body)), range(16)))
    assert set(answers) == {run["name"]}
    actions = wire.unary(server, f"{RUNS}/ListActions", {"runId": run})["actions"]
    assert [a["id"]["name"] for a in actions] == ["a0"]


@pytest.mark.parametrize("env", [{"_U_USE_ACTIONS": "0"}, {"_U_USE_ACTIONS": "1"}], ids=["queue and state", "actions"])
def test_both_ways_that_a_task_can_talk(sdk, examples, env):
    run = sdk.succeed(examples.hello.main, context={"env_vars": env}, whom="both")
    assert "Hello, both!" in run.outputs().o0
    kinds = [a.kind for a in sdk.actions(run.name)]
    assert kinds.count("task") == 11 and kinds.count("trace") == 1


def test_an_enqueue_can_be_repeated_and_is_refused_below_what_has_ended(server, sdk, examples):
    run = sdk.start(examples.abort.main)
    name = {**SCOPE, "name": run.name}
    eventually(lambda: sdk.phases(run.name).get("a0") == "running", "the parent to run")
    base = f"s3://aloft-data/local/flytesnacks/development/runs/{run.name}"
    action = {
        "actionId": {"run": name, "name": "extra"},
        "parentActionName": "a0",
        "inputUri": f"{base}/extra/inputs.pb",
        "runOutputBase": base,
        "task": {"spec": task_spec()},
    }
    for _ in range(3):
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": action})
    extra = [a for a in wire.unary(server, f"{RUNS}/ListActions", {"runId": name})["actions"] if a["id"]["name"] == "extra"]
    assert len(extra) == 1
    orphan = {**action, "actionId": {"run": name, "name": "orphan"}, "parentActionName": "nobody"}
    with pytest.raises(wire.Failed) as refused:
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": orphan})
    assert refused.value.code == "not_found" and "nobody" in str(refused.value)

    wire.unary(server, f"{RUNS}/AbortRun", {"runId": name, "reason": "enough"})
    wire.unary(server, f"{RUNS}/AbortRun", {"runId": name, "reason": "again"})
    late = {**action, "actionId": {"run": name, "name": "late"}}
    with pytest.raises(wire.Failed) as refused:
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": late})
    assert refused.value.code == "aborted", "the SDK stops its task on this one"
    phases = {a["id"]["name"]: a["status"]["phase"] for a in wire.unary(server, f"{RUNS}/ListActions", {"runId": name})["actions"]}
    assert set(phases.values()) <= TERMINAL, phases


def test_a_watch_tells_every_child_once_and_ends_in_what_the_lists_say(server, sdk, examples):
    run = sdk.succeed(examples.hello.main, whom="watch")
    parent = {"run": {**SCOPE, "name": run.name}, "name": "a0"}
    told: dict[str, list[str]] = {}
    sentinels = 0
    for message in first_messages(server, f"{ACTIONS}/WatchForUpdates", {"parentActionId": parent}, 12):
        if update := message.get("actionUpdate"):
            assert not sentinels, "the snapshot comes before its sentinel"
            told.setdefault(update["actionId"]["name"], []).append(update["phase"])
            assert update["outputUri"].startswith("s3://aloft-data/")
        else:
            assert message["controlMessage"]["sentinel"] is True
            sentinels += 1
    assert sentinels == 1 and len(told) == 11
    assert all(phases == ["ACTION_PHASE_SUCCEEDED"] for phases in told.values()), told
