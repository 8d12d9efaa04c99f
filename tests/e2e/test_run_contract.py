"""What a run may ask beyond running: caching, conditions, recovery, limits of concurrency."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.error
import urllib.request
import uuid

import pytest
import wire
from harness import DOMAIN, PROJECT, eventually

RUNS = "flyteidl2.workflow.RunService"
CACHE = "flyteidl2.cacheservice.v2.CacheService"
SCOPE = {"org": "", "project": PROJECT, "domain": DOMAIN}


def number() -> int:
    """An input that no other test has."""
    return uuid.uuid4().int % 10**9


def details(server, run: str, action: str) -> dict:
    id = {"run": {**SCOPE, "name": run}, "name": action}
    return wire.unary(server, f"{RUNS}/GetActionDetails", {"actionId": id})["details"]


def by_task(sdk, run: str) -> dict[str, list[str]]:
    """The names of a run's actions, by what they run."""
    found: dict[str, list[str]] = {}
    for action in sdk.actions(run):
        found.setdefault(action.what.rsplit(".", 1)[-1], []).append(action.name)
    return found


# Caching


def test_what_was_computed_is_not_computed_again(sdk, server, examples):
    n = number()
    first = sdk.succeed(examples.caching.main, n=n)
    stamp, one, two, three, fresh, ann, bob = first.outputs().o0
    assert one == two == three, "of identical actions at a time, one computes"
    assert ann == bob, "ignored inputs do not count"

    again = sdk.succeed(examples.caching.main, n=n)
    assert again.outputs().o0 == first.outputs().o0

    actions = by_task(sdk, again.name)
    (hit,) = actions["stamp"]
    (computed,) = by_task(sdk, first.name)["stamp"]
    shown = details(server, again.name, hit)
    assert shown["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"
    assert shown["status"]["cacheStatus"] == "CACHE_HIT"
    source = shown["attempts"][-1]["cacheMetadata"]["sourceActionAttempt"]
    assert (source["actionId"]["run"]["name"], source["actionId"]["name"]) == (first.name, computed)
    assert details(server, first.name, computed)["status"]["cacheStatus"] == "CACHE_POPULATED"
    phases = [t["phase"] for t in shown["attempts"][-1]["phaseTransitions"]]
    assert "ACTION_PHASE_RUNNING" not in phases, "a hit never ran"

    overwritten = sdk.succeed(examples.caching.main, context={"overwrite_cache": True}, n=n)
    fresh_results = overwritten.outputs().o0
    assert fresh_results[0] != stamp and fresh_results[4] != fresh
    after = sdk.succeed(examples.caching.main, n=n).outputs().o0
    assert (after[0], after[4]) == (fresh_results[0], fresh_results[4]), "what was overwritten is replaced"


def test_the_first_action_of_a_run_and_a_child_share_their_cache(sdk, examples):
    n = number()
    alone = sdk.succeed(examples.caching.stamp, n=n)
    nested = sdk.succeed(examples.caching.main, n=n)
    assert nested.outputs().o0[0] == alone.outputs().o0
    again = sdk.succeed(examples.caching.stamp, n=n)
    assert again.outputs().o0 == alone.outputs().o0


def test_a_result_whose_data_is_gone_is_computed_again(sdk, server, examples):
    n = number()
    first = sdk.succeed(examples.caching.stamp, n=n)
    uri = details(server, first.name, "a0")["attempts"][-1]["outputs"]["outputUri"]
    key = uri.removeprefix("s3://aloft-data/")
    # As a bucket's own rules would, behind our back.
    import pathlib

    store = pathlib.Path(server.log).parent / "data" / "objects"
    files = [path for path in store.rglob("outputs.pb") if key.rsplit("/", 3)[-3] in str(path)]
    assert files, f"no outputs of {key} in {store}"
    for path in files:
        path.unlink()
    second = sdk.succeed(examples.caching.stamp, n=n)
    assert second.outputs().o0 != "" and details(server, second.name, "a0")["status"]["cacheStatus"] == "CACHE_POPULATED"


def test_the_cache_service_keeps_and_reserves(server):
    key = f"key-{uuid.uuid4().hex}"
    id = {"org": "local", "project": PROJECT, "domain": DOMAIN}

    def ask(method: str, **base):
        return wire.unary(server, f"{CACHE}/{method}", {"baseRequest": {"key": key, **base}, "identifier": id})

    with pytest.raises(wire.Failed) as missing:
        ask("Get")
    assert missing.value.code == "not_found"
    held = ask("GetOrExtendReservation", ownerId="me", heartbeatInterval="10s")["reservation"]
    assert held["ownerId"] == "me" and held["heartbeatInterval"] == "10s"
    assert ask("GetOrExtendReservation", ownerId="you")["reservation"]["ownerId"] == "me"
    ask("ReleaseReservation", ownerId="you")
    assert ask("GetOrExtendReservation", ownerId="you")["reservation"]["ownerId"] == "me"
    ask("ReleaseReservation", ownerId="me")
    assert ask("GetOrExtendReservation", ownerId="you")["reservation"]["ownerId"] == "you"

    output = {"outputUri": "s3://somewhere/x", "metadata": {"keyMap": {"values": {"a": "b"}}}}
    ask("Put", output=output)
    found = ask("Get")["output"]
    assert found["outputUri"] == "s3://somewhere/x" and found["metadata"]["keyMap"]["values"] == {"a": "b"}
    with pytest.raises(wire.Failed) as taken:
        ask("Put", output=output)
    assert taken.value.code == "already_exists"
    ask("Put", output={"outputUri": "s3://somewhere/y"}, overwrite={"overwrite": True})
    assert ask("Get")["output"]["outputUri"] == "s3://somewhere/y"
    ask("Delete")
    with pytest.raises(wire.Failed) as gone:
        ask("Delete")
    assert gone.value.code == "not_found"
    with pytest.raises(wire.Failed) as literals:
        ask("Put", output={"outputLiterals": {}})
    assert literals.value.code == "invalid_argument" and "output_literals" in str(literals.value)


# Conditions


def paused(sdk, run: str, title: str) -> str:
    """The action of the condition called `title`, once it waits."""

    def found() -> str | None:
        import flyte.remote

        for condition in flyte.remote.Condition.listall(run_name=run):
            if condition.name == title and sdk.phases(run).get(condition.pb2.id.name) == "paused":
                return condition.pb2.id.name
        return None

    return eventually(found, f"condition {title} to wait", about=lambda: sdk.describe(run))


def test_a_condition_is_signalled_from_the_command_line(sdk, cli, server, examples):
    run = sdk.start(examples.conditions.main, report="It *works*.")
    action = paused(sdk, run.name, "approve")
    assert run.name in cli("get", "run", "--in-phase", "running").text
    shown = details(server, run.name, action)
    assert shown["condition"]["prompt"].startswith("# Publish?")
    assert shown["metadata"]["actionType"] == "ACTION_TYPE_CONDITION"
    listed = cli("get", "condition", run.name, of=None)
    assert action in listed.text, listed.text

    with pytest.raises(wire.Failed) as refused:
        id = {"run": {**SCOPE, "name": run.name}, "name": action}
        wire.unary(server, f"{RUNS}/SignalEvent", {"actionId": id, "payload": {"stringValue": "yes"}})
    assert refused.value.code == "invalid_argument" and "a boolean" in str(refused.value)

    said = cli("signal", "condition", run.name, action, "true", of=None)
    assert "has been signaled" in said.text, said.text
    price = paused(sdk, run.name, "price")
    signalled = details(server, run.name, action)
    assert signalled["signalInfo"]["output"]["scalar"]["primitive"]["boolean"] is True
    assert signalled["signalInfo"]["signalledBy"]["user"]["id"]["subject"] == "anonymous"
    cli("signal", "condition", run.name, price, "12.5", of=None)
    sdk.finish(run)
    assert run.outputs().o0 == "published at 12.50"


def test_a_condition_that_nobody_answers_times_out(sdk, server, examples):
    run = sdk.succeed(examples.conditions.impatient, seconds=1.0)
    assert run.outputs().o0 == "nobody answered"
    (condition,) = [a for a in sdk.actions(run.name) if a.kind == "condition"]
    assert condition.phase == "timed_out"
    assert details(server, run.name, condition.name)["errorInfo"]["code"] == "CONDITION_TIMED_OUT"


def test_a_condition_calls_a_webhook_once_and_is_answered_by_its_callback(sdk, server, examples):
    calls: list[dict] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            calls.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            # The first call is not taken, so that it has to be repeated.
            self.send_response(503 if len(calls) == 1 else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    try:
        run = sdk.start(examples.conditions.called, url=f"http://127.0.0.1:{hook.server_port}/hook")
        eventually(lambda: len(calls) >= 2, "the call to be repeated", about=lambda: sdk.describe(run.name))
        assert calls[0] == calls[1] and calls[0]["question"] == "how many?"
        answer_at = calls[1]["answer_at"]

        def answer(uri: str, body: bytes) -> int:
            try:
                with urllib.request.urlopen(urllib.request.Request(uri, data=body, method="POST"), timeout=10) as got:
                    return got.status
            except urllib.error.HTTPError as error:
                return error.code

        assert answer(answer_at.split("?")[0] + "?token=guess", b'{"value": 3}') == 403
        assert answer(answer_at, b'{"value": "three"}') == 400
        assert answer(answer_at, b'{"value": 3}') == 200
        assert answer(answer_at, b'{"value": 3}') == 200, "the same answer again changes nothing"
        assert answer(answer_at, b'{"value": 4}') == 409
        sdk.finish(run)
        assert run.outputs().o0 == 3
        assert len(calls) == 2
    finally:
        hook.shutdown()


# Recovery


def test_a_run_is_recovered_where_it_failed(sdk, cli, server, examples):
    failed = sdk.fail(examples.recover.main, broken=True)
    before = {name: sdk.action(failed.name, name) for name in sdk.phases(failed.name)}
    output = cli("rerun", failed.name, "--recover", "--no-broken", of=None)
    run = cli_run(output)
    eventually(lambda: sdk.phases(run).get("a0") == "succeeded", "the run to succeed", about=lambda: sdk.describe(run))
    phases = sdk.phases(run)
    actions = by_task(sdk, run)
    assert [phases[n] for n in actions["work"]] == ["recovered"] * 3
    assert [phases[n] for n in actions["side_effect"]] == ["recovered"]
    assert [phases[n] for n in actions["fragile"]] == ["succeeded"]
    for name in actions["work"] + actions["side_effect"]:
        shown = details(server, run, name)
        assert shown["metadata"]["recoveredFrom"]["run"]["name"] == failed.name
        assert before[name].pb2.id.name == name
    root = details(server, run, "a0")
    relation = root["metadata"]["relation"]
    assert relation["relatedTo"]["name"] == failed.name and relation["relationType"] == "RELATION_TYPE_RECOVER"

    related = {"filters": [{"function": "EQUAL", "field": "related_to", "values": [failed.name]}]}
    found = wire.unary(server, f"{RUNS}/ListRuns", {"request": related, "org": ""})["runs"]
    assert [r["action"]["id"]["run"]["name"] for r in found] == [run], "and the other way round"

    forced = actions["work"][0]
    output = cli("rerun", failed.name, "--recover", "--no-broken", "--force-rerun-action", forced, of=None)
    again = cli_run(output)
    eventually(lambda: sdk.phases(again).get("a0") == "succeeded", "it to succeed", about=lambda: sdk.describe(again))
    phases = sdk.phases(again)
    assert phases[forced] == "succeeded"
    assert [phases[n] for n in actions["work"][1:]] == ["recovered"] * 2


def cli_run(output) -> str:
    import re

    found = re.search(r"(?:Run|run)s?[:/ ]+(r[a-z0-9]{19}|[a-z][a-z0-9-]+)", output.text)
    names = re.findall(r"/runs/([a-z0-9-]+)", output.text)
    assert names or found, output.text
    return names[-1] if names else found[1]


# Limits


def test_a_run_keeps_to_its_concurrency_and_says_who_waits(sdk, server, examples):
    context = {"max_action_concurrency": 2}
    run = sdk.start(examples.concurrency.main, context=context, count=5, seconds=3.0)

    def waiting() -> list[str]:
        return [name for name, phase in sdk.phases(run.name).items() if phase == "waiting_for_resources"]

    held = eventually(waiting, "actions to be shown as waiting", about=lambda: sdk.describe(run.name))
    sdk.finish(run)
    assert run.outputs().o0 == 2
    transitions = details(server, run.name, held[0])["attempts"][-1]["phaseTransitions"]
    assert "ACTION_PHASE_WAITING_FOR_RESOURCES" in [t["phase"] for t in transitions]


# Queues


@pytest.fixture
def queue(server, binary):
    """Makes a queue of its own for a test, with the flags it names."""
    import subprocess

    def make(*flags: str) -> str:
        name = f"q-{uuid.uuid4().hex[:8]}"
        command = [str(binary), "create", "queue", name, "--endpoint", server.endpoint, *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return name

    return make


def test_a_queue_bounds_the_actions_in_it_and_no_others(sdk, queue, examples):
    narrow = queue("--action-concurrency", "1")
    run = sdk.start(examples.concurrency.main, count=3, seconds=0.7, queue=narrow)
    free = sdk.succeed(examples.concurrency.main, count=3, seconds=3.0)
    assert free.outputs().o0 > 1, "another queue goes on"
    assert sdk.finish(run).outputs().o0 == 1


def test_a_queue_bounds_runs_and_lets_their_children_go(sdk, queue, examples):
    one = queue("--run-concurrency", "1")
    runs = [sdk.start(examples.concurrency.main, context={"queue": one}, count=2, seconds=1.0) for _ in range(3)]
    spans = []
    for run in runs:
        assert sdk.finish(run).outputs().o0 == 2, "the children of one run go side by side"
        attempt = sdk.action(run.name, "a0").pb2.attempts[-1]
        started = next(t.start_time for t in attempt.phase_transitions if t.phase == 4)
        spans.append((started.ToDatetime(), attempt.end_time.ToDatetime()))
    spans.sort()
    for (_, end), (begin, _) in zip(spans, spans[1:]):
        assert begin >= end, spans


def test_what_can_never_fit_fails_at_once_with_the_reason(sdk, queue, server, examples):
    import flyte

    tiny = queue("--max-resources", "memory=64Mi")
    large = examples.concurrency.step.override(queue=tiny, resources=flyte.Resources(memory="200Mi"))
    run = sdk.finish(sdk.start(large, n=1, seconds=0.1))
    shown = details(server, run.name, "a0")
    assert shown["errorInfo"]["code"] == "UNSCHEDULABLE", shown
    assert "200Mi" in shown["errorInfo"]["message"] and "64Mi" in shown["errorInfo"]["message"]


def test_a_queue_that_does_not_exist_is_named(sdk, examples):
    with pytest.raises(Exception) as refused:
        sdk.start(examples.concurrency.main, context={"queue": "nowhere"}, count=1)
    assert "queue nowhere does not exist" in str(refused.value) and "aloft create queue nowhere" in str(refused.value)
