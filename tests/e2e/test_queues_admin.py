"""Queues and limits of projects, managed as an administrator does: by `aloft create|get|update|delete|undelete` against a
running server. What queues do to runs is tested elsewhere; here it is what they declare, what they say they hold, and
what is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import wire
from harness import PROJECT, eventually

QUEUES = "aloft.v1.QueueService"
LIMITS = "aloft.v1.LimitsService"
USAGE, UNREACHABLE = 2, 18

HEADER = "NAME STATE PRIORITY FAIRNESS WAITING RUNNING RUNS MAX-RUNS MAX-ACTIONS DEPTH MAX-RESOURCES".split()


@dataclass
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def json(self):
        return json.loads(self.out)

    def rows(self) -> list[dict[str, str]]:
        header, *rows = [line.split() for line in self.out.splitlines()]
        for row in rows:
            assert len(row) == len(header), self.out
        return [dict(zip(header, row)) for row in rows]


@pytest.fixture(scope="session")
def command(binary, tmp_path_factory):
    """Run `aloft` with these words, in a world without settings of its own."""
    home = tmp_path_factory.mktemp("home")

    def run(*words: str | Path, code: int = 0, **env: str) -> Said:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("ALOFT_", "XDG_"))}
        done = subprocess.run(
            [binary, *map(str, words)],
            env=clean | {"HOME": str(home)} | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "panicked" not in done.stderr, done.stderr
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def aloft(command, server):
    """Run `aloft` against the server of this session."""
    return lambda *words, code=0: command(*words, code=code, ALOFT_ENDPOINT=server.endpoint)


@pytest.fixture
def name() -> str:
    """A name that no queue has had."""
    return f"q-{uuid.uuid4().hex[:12]}"


def refused(aloft, *words: str, says: tuple[str, ...]) -> None:
    """The command is refused in one sentence that holds these words, and prints nothing else."""
    said = aloft(*words, code=1)
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("aloft: ")
    for word in says:
        assert word in line, f"{word!r} is not in {line!r}"
    wire.harmless(line, *words)


def show(aloft, name: str) -> dict:
    return aloft("get", "queue", name, "-o", "json").json()


# A queue's life


def test_a_queue_is_created_shown_changed_and_deleted(aloft, name):
    declared = ["--run-concurrency", "5", "--action-concurrency", "10", "--depth", "100", "--priority", "high"]
    declared += ["--max-resources", "memory=600Mi", "--max-resources", "cpu=1500m,gpu=0", "--fairness", "fifo"]
    assert aloft("create", "queue", name, *declared).out == f"Created queue {name}.\n"

    shown = show(aloft, name)
    for key in ("created_at", "updated_at"):
        assert shown.pop(key).endswith("Z")
    assert shown == {
        "org": "local",
        "name": name,
        "state": "active",
        "priority": "high",
        "fairness": "fifo",
        "run_concurrency": 5,
        "action_concurrency": 10,
        "depth": 100,
        "max_resources": {"memory": "600Mi", "cpu": "1500m", "gpu": "0"},
        "waiting_actions": 0,
        "running_actions": 0,
        "running_runs": 0,
        "generation": 1,
        "created_by": "anonymous",
        "deleted_at": None,
    }

    # What is not named stays as it is.
    changes = ["--depth", "none", "--action-concurrency", "none", "--max-resources", "memory=none,cpu=2"]
    assert aloft("update", "queue", name, *changes).out == f"Updated queue {name}.\n"
    shown = show(aloft, name)
    assert (shown["run_concurrency"], shown["action_concurrency"], shown["depth"]) == (5, None, 10000)
    assert (shown["max_resources"], shown["priority"]) == ({"cpu": "2", "gpu": "0"}, "high")
    assert shown["generation"] == 2

    assert f"Queue {name} is deleted." in aloft("delete", "queue", name).out
    shown = show(aloft, name)
    assert (shown["state"], shown["generation"]) == ("deleted", 3)
    assert shown["deleted_at"]
    assert name not in aloft("get", "queue").out
    assert name in aloft("get", "queue", "--deleted").out

    back = aloft("undelete", "queue", name)
    assert "drained" in back.out
    assert "--state active" in back.out
    shown = show(aloft, name)
    assert (shown["state"], shown["deleted_at"], shown["run_concurrency"]) == ("drained", None, 5)
    aloft("update", "queue", name, "--state", "active")
    assert show(aloft, name)["state"] == "active"


def test_the_same_again_is_no_error(aloft, name):
    create = ["create", "queue", name, "--action-concurrency", "0"]
    aloft(*create)
    generation = show(aloft, name)["generation"]
    assert aloft(*create).out == f"Queue {name} exists already, exactly so.\n"
    # What it has anyway.
    assert "exactly so" in aloft(*create, "--depth", "10000", "--priority", "medium", "--fairness", "round-robin").out
    assert aloft("update", "queue", name, "--action-concurrency", "0").out == f"Queue {name} is so already.\n"
    assert aloft("update", "queue", name, "--state", "active").out == f"Queue {name} is so already.\n"
    assert "and active" in aloft("undelete", "queue", name).out
    assert show(aloft, name)["generation"] == generation
    aloft("delete", "queue", name)
    aloft("delete", "queue", name)
    assert show(aloft, name)["generation"] == generation + 1


def test_another_one_of_the_same_name_is_refused(aloft, name):
    aloft("create", "queue", name, "--depth", "5")
    refused(aloft, "create", "queue", name, "--priority", "low", says=(name, "depth, priority", "aloft update queue"))
    assert (show(aloft, name)["depth"], show(aloft, name)["priority"]) == (5, "medium")
    aloft("delete", "queue", name)
    refused(aloft, "create", "queue", name, says=(name, "deleted", f"aloft undelete queue {name}"))
    for change in (["--depth", "1"], ["--state", "draining"], ["--state", "active"]):
        refused(aloft, "update", "queue", name, *change, says=(name, "deleted", "undelete"))


def test_a_drained_queue_is_shown_as_such(aloft, name):
    aloft("create", "queue", name)
    aloft("update", "queue", name, "--state", "draining", "--priority", "low")
    assert show(aloft, name)["state"] == "drained", "it holds nothing"
    assert aloft("update", "queue", name, "--state", "draining").out == f"Queue {name} is so already.\n"
    assert f"Queue {name} exists already, exactly so, and is drained." in aloft("create", "queue", name, "--priority", "low").out
    aloft("update", "queue", name, "--state", "active")
    assert show(aloft, name)["state"] == "active"


def test_the_default_queue_is_always_there(aloft):
    shown = show(aloft, "default")
    assert (shown["state"], shown["generation"], shown["created_at"]) == ("active", 0, None)
    limits = ("run_concurrency", "action_concurrency", "depth")
    assert [shown[limit] for limit in limits] == [None] * 3
    assert "exactly so" in aloft("create", "queue", "default").out
    refused(aloft, "delete", "queue", "default", says=("default", "deleted"))
    refused(aloft, "update", "queue", "default", "--state", "draining", says=("default", "drained"))
    refused(aloft, "update", "queue", "default", "--depth", "5", says=("default", "limited"))
    assert show(aloft, "default") == shown | {
        key: show(aloft, "default")[key] for key in ("waiting_actions", "running_actions", "running_runs")
    }


def test_a_queue_says_what_it_holds(aloft, sdk, examples):
    def load() -> tuple[int, int]:
        shown = show(aloft, "default")
        return shown["running_actions"], shown["running_runs"]

    # What runs of other tests have left behind ends first.
    eventually(lambda: load() == (0, 0), "the default queue to be empty")
    run = sdk.start(examples.abort.main, sleepers=["Ada"], seconds=600)
    try:
        eventually(lambda: load() == (2, 1), "the run and its child to run", about=lambda: aloft("get", "queue").out)
        (row,) = aloft("get", "queue", "default").rows()
        assert (row["RUNNING"], row["RUNS"]) == ("2", "1")
    finally:
        run.abort()
    eventually(lambda: load() == (0, 0), "nothing to run any more", about=lambda: aloft("get", "queue").out)


def test_a_queue_with_work_is_drained_before_it_is_deleted(aloft, sdk, examples, name):
    def state() -> tuple[str, int]:
        shown = show(aloft, name)
        return shown["state"], shown["running_actions"]

    aloft("create", "queue", name)
    run = sdk.start(examples.abort.main, context={"queue": name}, sleepers=["Ada"], seconds=600)
    try:
        eventually(lambda: state() == ("active", 2), "the run and its child to run", about=lambda: aloft("get", "queue").out)
        refused(aloft, "delete", "queue", name, says=("2 actions (0 waiting, 2 running)", "--state draining"))
        aloft("update", "queue", name, "--state", "draining")
        assert state() == ("draining", 2)
        refused(aloft, "delete", "queue", name, says=("2 actions (0 waiting, 2 running)",))
        with pytest.raises(Exception, match=f"queue {name} is draining"):
            sdk.start(examples.abort.main, context={"queue": name})
    finally:
        run.abort()
    eventually(lambda: state() == ("drained", 0), "the queue to be drained", about=lambda: aloft("get", "queue").out)
    aloft("delete", "queue", name)
    with pytest.raises(Exception, match=f"queue {name} is deleted"):
        sdk.start(examples.abort.main, context={"queue": name})
    with pytest.raises(Exception, match=f"{name}-x.*does not exist.*aloft create queue"):
        sdk.start(examples.abort.main, context={"queue": f"{name}-x"})


def test_what_waits_is_counted_by_its_queue(aloft, sdk, examples, name):
    aloft("create", "queue", name, "--run-concurrency", "0", "--depth", "2")
    runs = [sdk.start(examples.abort.main, context={"queue": name}) for _ in range(2)]
    try:
        (row,) = aloft("get", "queue", name).rows()
        assert (row["WAITING"], row["RUNNING"], row["RUNS"]) == ("2", "0", "0")
        with pytest.raises(Exception, match=f"queue {name} holds 2 actions"):
            sdk.start(examples.abort.main, context={"queue": name})
        # A change of the limit lets them go on.
        aloft("update", "queue", name, "--run-concurrency", "1")
        eventually(lambda: show(aloft, name)["running_runs"] == 1, "one of them to start", about=lambda: aloft("get", "queue").out)
        assert show(aloft, name)["waiting_actions"] >= 1, "the other waits on"
    finally:
        for run in runs:
            run.abort()
    eventually(
        lambda: show(aloft, name)["waiting_actions"] + show(aloft, name)["running_actions"] == 0, "the queue to be empty"
    )


# Lists


def test_tables_and_documents_say_the_same(aloft, name):
    aloft("create", "queue", name, "--max-resources", "memory=1Gi", "--max-resources", "gpu=2", "--run-concurrency", "3")
    table = aloft("get", "queue")
    assert table.out.splitlines()[0].split() == HEADER
    row = {row["NAME"]: row for row in table.rows()}[name]
    assert list(row.values()) == [
        name, "active", "medium", "round-robin", "0", "0", "0", "3", "-", "10000", "memory=1Gi,gpu=2",
    ]  # fmt: skip
    assert table.rows() == sorted(table.rows(), key=lambda row: row["NAME"])
    starts = {line.index("active") for line in table.out.splitlines()[1:] if "active" in line}
    assert starts == {table.out.splitlines()[0].index("STATE")}, f"columns are aligned:\n{table.out}"
    assert aloft("get", "queues", name).rows() == [row]

    documents = {document["name"]: document for document in aloft("get", "queue", "-o", "json").json()}
    assert documents[name] == show(aloft, name)
    lines = aloft("get", "queue", name, "-o", "yaml").out.splitlines()
    assert lines[:3] == ["org: local", f"name: {name}", "state: active"]
    assert 'max_resources:\n  memory: "1Gi"\n  gpu: "2"' in "\n".join(lines)
    assert f"  name: {name}" in aloft("get", "queue", "-o", "yaml").out.splitlines()


def test_lists_are_filtered_by_state(aloft, name):
    active, drained, deleted = (f"{name}-{state}" for state in ("active", "drained", "deleted"))
    for queue in (active, drained, deleted):
        aloft("create", "queue", queue)
    aloft("update", "queue", drained, "--state", "draining")
    aloft("delete", "queue", deleted)

    def listed(*words: str) -> set[str]:
        return {row["NAME"] for row in aloft("get", "queue", *words).rows()} & {active, drained, deleted}

    assert listed() == {active, drained}
    assert listed("--state", "active") == {active}
    assert listed("--state", "drained") == {drained}
    assert listed("--state", "draining") == set()
    assert listed("--state", "active", "--state", "drained", "--deleted") == {active, drained, deleted}


def test_pages_cover_every_queue_once(server, aloft, name):
    made = [f"{name}-{number}" for number in range(5)]
    for queue in made:
        aloft("create", "queue", queue)
    names, token = [], ""
    while True:
        page = wire.unary(server, f"{QUEUES}/ListQueues", {"limit": 2, "token": token})
        assert len(page["queues"]) <= 2
        names += [queue["id"]["name"] for queue in page["queues"]]
        # Created between two pages.
        aloft("create", "queue", f"{name}-a{len(names)}")
        if not (token := page.get("token", "")):
            break
    assert names == sorted(set(names))
    assert {"default", *made} <= set(names)
    with pytest.raises(wire.Failed) as raised:
        wire.unary(server, f"{QUEUES}/ListQueues", {"token": "../x"})
    assert (raised.value.code, "token" in raised.value.message) == ("invalid_argument", True)


# Limits of projects


@pytest.fixture
def project(server) -> str:
    project = f"p-{uuid.uuid4().hex[:12]}"
    wire.unary(server, "flyteidl2.project.ProjectService/CreateProject", {"project": {"id": project, "name": project}})
    return project


def test_limits_of_a_project(aloft, project):
    assert aloft("get", "limits", project).rows() == []
    said = aloft("update", "limits", project, "--run-concurrency", "7", "--depth", "0")
    assert said.out == f"Updated the limits of project {project}.\n"
    said = aloft("update", "limits", project, "--domain", "production", "--action-concurrency", "3")
    assert said.out == f"Updated the limits of domain production of project {project}.\n"
    assert aloft("get", "limits", project).rows() == [
        {"PROJECT": project, "DOMAIN": "(all)", "MAX-RUNS": "7", "MAX-ACTIONS": "-", "DEPTH": "0"},
        {"PROJECT": project, "DOMAIN": "production", "MAX-RUNS": "-", "MAX-ACTIONS": "3", "DEPTH": "-"},
    ]
    assert len([row for row in aloft("get", "limits").rows() if row["PROJECT"] == project]) == 2
    whole, _ = aloft("get", "limits", project, "-o", "json").json()
    assert whole.pop("updated_at").endswith("Z")
    assert whole == {
        "org": "local",
        "project": project,
        "domain": None,
        "run_concurrency": 7,
        "action_concurrency": None,
        "depth": 0,
        "generation": 1,
        "updated_by": "anonymous",
    }
    part = aloft("get", "limits", project, "--domain", "production", "-o", "json").json()
    assert (part["domain"], part["action_concurrency"]) == ("production", 3)
    nothing = aloft("get", "limits", project, "--domain", "staging", "-o", "yaml").out
    assert "generation: 0\n" in nothing
    assert "depth: null\n" in nothing

    assert "so already" in aloft("update", "limits", project, "--depth", "0").out
    aloft("update", "limits", project, "--run-concurrency", "none", "--depth", "none")
    assert [row["DOMAIN"] for row in aloft("get", "limits", project).rows()] == ["production"]


def test_limits_of_what_is_not_there(aloft, project):
    refused(aloft, "get", "limits", "nothere", says=("nothere", "does not exist", "flyte create project"))
    refused(aloft, "update", "limits", "nothere", "--depth", "1", says=("nothere", "does not exist"))
    refused(aloft, "update", "limits", project, "--domain", "moon", "--depth", "1", says=("domain moon does not exist", "staging"))
    refused(aloft, "update", "limits", "a/b", "--depth", "1", says=("project", "letters, digits"))


# What is wrong


def test_what_is_not_there(aloft, name):
    for words in (
        ["get", "queue", name],
        ["update", "queue", name, "--depth", "1"],
        ["update", "queue", name, "--state", "active"],
        ["delete", "queue", name],
        ["undelete", "queue", name],
    ):
        refused(aloft, *words, says=(f"queue {name} does not exist", f"aloft create queue {name}"))


@pytest.mark.parametrize("bad", ["a b", "../x", ".hidden", "ü", "x" * 64, "", "a/b", "a\nb"])
def test_bad_names(aloft, bad):
    for words in (["create", "queue", bad], ["get", "queue", bad], ["delete", "queue", bad]):
        refused(aloft, *words, says=("id.name: ",))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--depth", "-1"], "--depth"),
        (["--depth", "4294967296"], "4294967295"),
        (["--run-concurrency", "many"], "none"),
        (["--action-concurrency", "1.5"], "--action-concurrency"),
        (["--max-resources", "memory"], "memory=8Gi"),
        (["--max-resources", "disk=5Gi"], "memory=8Gi"),
        (["--max-resources", "memory=much"], "memory=8Gi"),
        (["--max-resources", "gpu=0.5"], "whole number"),
        (["--priority", "urgent"], "low, medium, high"),
        (["--fairness", "lifo"], "fifo, round-robin"),
        (["--state", "drained"], "active, draining"),
        ([], "--run-concurrency"),
        (["--colour", "red"], "--colour"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_bad_arguments(aloft, name, words, says):
    aloft("create", "queue", name)
    said = aloft("update", "queue", name, *words, code=USAGE)
    assert says in said.err, said.err
    assert show(aloft, name)["generation"] == 1


def test_every_command_explains_itself(command):
    for words in (
        ["create", "queue"], ["get", "queue"], ["update", "queue"], ["delete", "queue"], ["undelete", "queue"],
        ["get", "limits"], ["update", "limits"],
    ):  # fmt: skip
        text = command(*words, "--help").out
        assert f"Example:\n  aloft {' '.join(words)}" in text or f"\n  aloft {' '.join(words)}" in text, text
        assert "--endpoint" in text


def test_over_the_wire_what_is_wrong_is_named(server, name):
    def fails(method: str, request: dict) -> tuple[str, str]:
        with pytest.raises(wire.Failed) as raised:
            wire.unary(server, method, request)
        return raised.value.code, wire.harmless(raised.value.message)

    queue = {"id": {"name": name}}
    assert fails(f"{QUEUES}/GetQueue", {}) == ("invalid_argument", "id: is required")
    assert fails(f"{QUEUES}/GetQueue", {"id": {"name": name, "org": "a b"}})[0] == "invalid_argument"
    assert fails(f"{QUEUES}/GetQueue", {"id": {"name": name, "org": "other"}})[0] == "not_found"
    wire.unary(server, f"{QUEUES}/CreateQueue", queue)
    assert fails(f"{QUEUES}/UpdateQueue", queue) == ("invalid_argument", "spec: is required")
    assert fails(f"{QUEUES}/UpdateQueue", queue | {"spec": {"priority": 9}})[1].startswith("spec.priority: 9 ")
    assert fails(f"{QUEUES}/UpdateQueue", queue | {"spec": {"fairness": -1}})[1].startswith("spec.fairness: -1 ")
    assert fails(f"{QUEUES}/UpdateQueueState", queue)[1].startswith("state: ")
    assert fails(f"{QUEUES}/UpdateQueueState", queue | {"state": "QUEUE_STATE_DRAINED"})[0] == "invalid_argument"
    assert fails(f"{QUEUES}/ListQueues", {"states": [0]})[1].startswith("states: ")
    assert fails(f"{LIMITS}/GetProjectLimits", {}) == ("invalid_argument", "place: is required")
    assert fails(f"{LIMITS}/UpdateProjectLimits", {"place": {"project": PROJECT}}) == ("invalid_argument", "spec: is required")
    assert fails(f"{LIMITS}/ListProjectLimits", {"token": "x"})[1].startswith("token: ")

    # Somebody else was first.
    for method, rest in {
        "UpdateQueue": {"spec": {"depth": 1}}, "UpdateQueueState": {"state": 2}, "DeleteQueue": {}, "UndeleteQueue": {},
    }.items():  # fmt: skip
        code, message = fails(f"{QUEUES}/{method}", queue | rest | {"expectedGeneration": 7})
        assert code == "aborted"
        assert "expected_generation" in message
        assert "generation 1, not 7" in message
    assert fails(
        f"{LIMITS}/UpdateProjectLimits", {"place": {"project": PROJECT}, "spec": {}, "expectedGeneration": "99"}
    )[0] == "aborted"  # fmt: skip
    answer = wire.unary(server, f"{QUEUES}/UpdateQueue", queue | {"spec": {"depth": 1}, "expectedGeneration": "1"})
    assert answer["queue"]["generation"] == "2"


def test_changes_at_the_same_time_are_all_made(aloft, name):
    aloft("create", "queue", name)
    flags = {"--depth": "5", "--run-concurrency": "6", "--action-concurrency": "7"}
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda flag: aloft("update", "queue", name, flag, flags[flag]), flags))
    shown = show(aloft, name)
    assert (shown["depth"], shown["run_concurrency"], shown["action_concurrency"]) == (5, 6, 7)
    assert shown["generation"] == 4


# The wire


@pytest.mark.parametrize("protocol", ["connect", "connect-get", "grpc", "grpc-web"])
def test_our_own_package_speaks_every_protocol(server, protocol):
    request = wire.bytes_field(1, wire.bytes_field(2, "default"))
    method = f"{QUEUES}/GetQueue"
    answer = {
        "connect": lambda: wire.unary(server, method, request),
        "connect-get": lambda: wire.get(server, method, request),
        "grpc": lambda: wire.grpc(server, method, request)[0],
        "grpc-web": lambda: wire.grpc_web(server, method, request)[0],
    }[protocol]()
    (queue,) = [value for number, value in wire.fields(answer) if number == 1]
    (identity,) = [value for number, value in wire.fields(queue) if number == 1]
    assert wire.fields(identity) == [(1, b"local"), (2, b"default")]


def test_reflection_describes_our_own_package(server):
    reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    (answer,) = wire.grpc(server, reflection, wire.bytes_field(4, f"{QUEUES}.CreateQueue"))
    (found,) = [value for number, value in wire.fields(answer) if number == 4]
    assert b"aloft/v1/queue.proto" in wire.fields(found)[0][1]


# Which server


def test_the_server_is_found(command, spawn, tmp_path):
    data = tmp_path / "data"
    server = spawn(data, tmp_path / "server.log")
    try:
        nowhere = "http://localhost:1"
        command("get", "queue", "--endpoint", server.endpoint, ALOFT_ENDPOINT=nowhere)
        command("get", "queue", "--endpoint", server.authority)
        command("get", "queue", "--data-dir", data, ALOFT_ENDPOINT=nowhere)
        command("get", "queue", ALOFT_ENDPOINT=server.endpoint, ALOFT_DATA_DIR="/nowhere")
        command("get", "queue", ALOFT_DATA_DIR=str(data))
        # The usual place.
        usual = tmp_path / "home/.local/share/aloft"
        usual.mkdir(parents=True)
        (usual / "dev").symlink_to(data)
        command("get", "queue", HOME=str(tmp_path / "home"))
        command("get", "queue", XDG_DATA_HOME=str(tmp_path / "home/.local/share"))
        # Another organisation has queues of its own.
        command("create", "queue", "theirs", "--endpoint", server.endpoint, "--org", "other")
        assert "theirs" not in command("get", "queue", "--data-dir", data).out
        assert "theirs" in command("get", "queue", "--data-dir", data, "--org", "other").out
    finally:
        assert server.stop() == 0
    # It has stopped.
    said = command("get", "queue", "--data-dir", data, code=UNREACHABLE)
    assert f"`aloft dev --data-dir {data}`" in said.err
    # A restart finds what was there.
    server = spawn(data, tmp_path / "again.log")
    try:
        assert "theirs" in command("get", "queue", "--data-dir", data, "--org", "other").out
    finally:
        assert server.stop() == 0


def test_no_server(command, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    said = command("get", "queue", "--endpoint", endpoint, code=UNREACHABLE)
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert endpoint in said.err
    assert "nothing listens there" in said.err
    assert "`aloft dev`" in said.err
    # As a server that was killed leaves it.
    (tmp_path / "endpoint").write_text(endpoint)
    said = command("create", "queue", "x", "--data-dir", tmp_path, code=UNREACHABLE)
    assert endpoint in said.err
    assert f"`aloft dev --data-dir {tmp_path}`" in said.err
    said = command("get", "queue", "--endpoint", "http://no-such-host.invalid:1", code=UNREACHABLE)
    assert "no-such-host.invalid" in said.err


@pytest.mark.parametrize("endpoint", ["https://localhost:1", "ftp://x", "http://", "a b", "http://localhost:1/path"])
def test_bad_endpoints(command, endpoint):
    said = command("get", "queue", "--endpoint", endpoint, code=1)
    assert f"--endpoint {endpoint}: " in said.err
    assert "http://localhost:30080" in said.err


def test_a_server_that_is_no_aloft(command, tmp_path):
    import http.server
    import threading

    class Page(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<html>nothing here</html>")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{other.server_port}"
        said = command("get", "queue", "--endpoint", endpoint, code=1)
        other.shutdown()
    assert endpoint in said.err
    assert "is it an Aloft of this version?" in said.err
