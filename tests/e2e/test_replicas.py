"""Several control planes over one Postgres, behind a balancer that knows nothing of them: any of them serves any request and any
watch, limits hold over all, and one that is killed or replaced disturbs no run.

Each has the worker of its own machine; what runs there waits while it is away. So a replica that was killed is started
again, as whatever supervises it would.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import wire
from balancer import Balancer
from harness import DOMAIN, PROJECT, Cli, Server, eventually, tail, write_config
from postgres import Postgres

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="the database of that server is not ours")

WORKFLOWS = Path(__file__).parent / "workflows"
PYTHON = os.environ.get("ALOFT_E2E_PYTHON", sys.executable)
RUNS = "flyteidl2.workflow.RunService"
PROJECTS = "flyteidl2.project.ProjectService"
SCOPE = {"org": "", "project": PROJECT, "domain": DOMAIN}


class Fleet:
    """Control planes that share a database, a directory of data and a master key."""

    def __init__(self, binary: Path, postgres: Postgres, directory: Path):
        self.binary, self.postgres, self.directory = binary, postgres, directory
        self.balancer = Balancer()
        self.authority = f"localhost:{self.balancer.port}"
        self.members: dict[int, Server] = {}

    def start(self, n: int) -> Server:
        """Starts member `n`, again or for the first time."""
        data, log = self.directory / f"data{n}", self.directory / f"server{n}.log"
        (data / "endpoint").unlink(missing_ok=True)
        sets = {
            "storage.path": self.directory / "objects",
            "masterKeyPath": self.directory / "master.key",
            "debug.port": 0,
            "logger.format": "text",
        }
        options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        command = [self.binary, "server", "--data-dir", data, "--port", "0", "--database-url", self.postgres.url]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ALOFT_")}
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [*map(str, command), "--python", PYTHON, "--public-url", f"http://{self.authority}", *options],
                env=clean | {"DO_NOT_TRACK": "1"},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

        def serving() -> Server | None:
            assert process.poll() is None, tail(log)
            endpoint = (data / "endpoint").read_text().strip() if (data / "endpoint").exists() else ""
            member = Server(endpoint, log, process)
            return member if endpoint and member.healthy() else None

        member = eventually(serving, f"member {n} to serve", 30, lambda: tail(log))
        self.members[n] = member
        self.balancer.behind[n] = int(member.authority.rsplit(":", 1)[1])
        return member

    def kill(self, n: int) -> None:
        """Ends member `n` without a word. The balancer finds out by itself."""
        self.members[n].process.kill()
        self.members.pop(n).process.wait()

    def replace(self, n: int) -> None:
        """Drains member `n` and starts it again, as a rolling upgrade does."""
        del self.balancer.behind[n]
        assert self.members.pop(n).stop() == 0
        self.start(n)

    def end(self) -> None:
        for member in self.members.values():
            assert member.stop() == 0
        for log in self.directory.glob("server*.log"):
            assert "panicked at" not in log.read_text(), tail(log)


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.stop(signal.SIGINT)
    shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(binary, postgres, tmp_path_factory):
    fleet = Fleet(binary, postgres, tmp_path_factory.mktemp("fleet"))
    with ThreadPoolExecutor() as pool:
        # At once: of several new members one makes the tables and the key.
        list(pool.map(fleet.start, range(3)))
    yield fleet
    fleet.end()


@pytest.fixture(scope="module")
def here(fleet, cli, tmp_path_factory):
    directory = tmp_path_factory.mktemp("client")
    return Cli(cli.executable, write_config(directory / "config.yaml", fleet.authority), directory)


def details(member: Server, run: str, action: str = "a0") -> dict[str, Any]:
    id = {"run": {**SCOPE, "name": run}, "name": action}
    return wire.unary(member, f"{RUNS}/GetActionDetails", {"actionId": id})["details"]


def actions(member: Server, run: str) -> list[dict[str, Any]]:
    asked = {"runId": {**SCOPE, "name": run}, "request": {"limit": 200}}
    return wire.unary(member, f"{RUNS}/ListActions", asked).get("actions", [])


def succeeded(fleet: Fleet, run: str) -> dict[str, Any]:
    """What is told of a run that has ended, which must be that it succeeded, by every member alike."""

    def ended() -> bool:
        return "endTime" in details(next(iter(fleet.members.values())), run)["status"]

    eventually(ended, f"run {run} to end", about=lambda: "\n".join(tail(m.log) for m in fleet.members.values()))
    told = [details(member, run) for member in fleet.members.values()]
    assert all(one == told[0] for one in told)
    assert told[0]["status"]["phase"] == "ACTION_PHASE_SUCCEEDED", told[0]
    return told[0]


def test_any_member_serves_any_request_and_any_watch(fleet, here):
    one, other, third = fleet.members.values()
    run = here("run", "steady.py", "main", "--rounds", "3", cwd=WORKFLOWS).run_name
    watched: list[dict[str, Any]] = []

    def watch() -> None:
        asked = {"runId": {**SCOPE, "name": run}}
        watched.extend(json.loads(message) for message in wire.stream(other, f"{RUNS}/WatchRunDetails", asked))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    succeeded(fleet, run)
    watcher.join(20)
    assert not watcher.is_alive(), "the watch ends with its run"
    assert watched[-1]["details"]["action"]["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"
    assert "o0=132" in here("get", "io", run).text
    listed = [
        wire.unary(m, f"{RUNS}/ListRuns", {"projectId": {"name": PROJECT, "domain": DOMAIN}, "request": {"limit": 5}})
        for m in (one, other, third)
    ]
    assert listed[0] == listed[1] == listed[2] and run in str(listed[0])
    # Work went to the workers of more than one of them, each under a name of its own.
    names = [(fleet.directory / f"data{n}" / "worker").read_text() for n in range(3)]
    assert len(set(names)) == 3


def test_an_abort_reaches_a_task_elsewhere(fleet, here):
    run = here("run", "steady.py", "main", "--rounds", "200", cwd=WORKFLOWS).run_name
    one, other, _ = fleet.members.values()
    eventually(lambda: len(actions(one, run)) > 5, "the run to be in the middle")
    wire.unary(other, f"{RUNS}/AbortRun", {"runId": {**SCOPE, "name": run}, "reason": "enough"})
    assert details(one, run)["status"]["phase"] == "ACTION_PHASE_ABORTED", "at once, wherever it is asked"

    def quiet() -> bool:
        # The tasks are killed too: what they were asked for last has come.
        command = subprocess.run(["pgrep", "-f", f"attempts/.*{run}"], capture_output=True, text=True)
        return not command.stdout

    eventually(quiet, "its processes to end", 60)


def test_runs_are_created_by_what_was_changed_elsewhere(fleet):
    members = list(fleet.members.values())
    name, settings = "changing", "flyteidl2.settings.SettingsService"
    wire.unary(members[0], f"{PROJECTS}/CreateProject", {"project": {"id": name, "name": name}})
    place = {"organization": "local", "name": name, "domain": DOMAIN}
    spec = {"taskTemplate": {"id": {"name": "a.b", "version": "1"}, "type": "python", "container": {}}}

    def spec_of_new_run(member: Server) -> dict[str, Any]:
        created = wire.unary(member, f"{RUNS}/CreateRun", {"projectId": place, "taskSpec": spec})
        run = created["run"]["action"]["id"]["run"]
        return wire.unary(member, f"{RUNS}/GetRunDetails", {"runId": run})["details"]["runSpec"]

    # Each change is made at one, and each other one, which has created runs before it, goes by it at once.
    for round, (one, *others) in enumerate([members, members[1:] + members[:1], members[2:] + members[:2]]):
        for member in members:
            spec_of_new_run(member)
        wire.unary(one, f"{PROJECTS}/UpdateProject", {"project": {"id": name, "state": "PROJECT_STATE_ARCHIVED"}})
        for member in others:
            with pytest.raises(wire.Failed, match=f"project {name} is archived") as refused:
                spec_of_new_run(member)
            assert refused.value.code == "failed_precondition"
        wire.unary(one, f"{PROJECTS}/UpdateProject", {"project": {"id": name, "state": "PROJECT_STATE_ACTIVE"}})
        at_once = {"state": "SETTING_STATE_VALUE", "intValue": str(round + 3)}
        edit = {"key": {"domain": DOMAIN, "project": name}, "settings": {"run": {"maxActionConcurrency": at_once}}}
        if round == 0:
            wire.unary(one, f"{settings}/CreateSettings", edit)
        else:
            wire.unary(one, f"{settings}/UpdateSettings", edit | {"version": round})
        for member in others:
            assert spec_of_new_run(member)["maxActionConcurrency"] == round + 3


def test_limits_hold_over_all_members(fleet, here, binary):
    member = next(iter(fleet.members.values()))
    created = subprocess.run(
        [binary, "create", "queue", "narrow", "--action-concurrency", "2", "--endpoint", member.endpoint],
        capture_output=True,
        text=True,
    )
    assert created.returncode == 0, created.stderr
    asked = ("main", "--count", "8", "--seconds", "0.4", "--queue", "narrow")
    runs = [here("run", "concurrency.py", *asked).run_name for _ in range(2)]
    spans: list[tuple[str, int]] = []
    for run in runs:
        succeeded(fleet, run)
        for name in [action["id"]["name"] for action in actions(member, run)]:
            (attempt,) = details(member, run, name)["attempts"]
            times = {t["phase"]: (t["startTime"], t.get("endTime")) for t in attempt["phaseTransitions"]}
            if name != "a0":
                spans += [(times["ACTION_PHASE_RUNNING"][0], 1), (times["ACTION_PHASE_SUCCEEDED"][0], -1)]
    assert len(spans) == 2 * 2 * 8
    # An end and a start at one moment: the end came first.
    running = list(itertools.accumulate(change for _, change in sorted(spans)))
    assert max(running) <= 2, "more than the queue allows ran at a time"


def disturbed(fleet: Fleet, here: Cli, disturb: Callable[[], None]) -> None:
    """Runs go on and others begin while something is done to the members; each succeeds, and nothing is tried twice."""
    begun: list[str] = []
    stop = threading.Event()
    failures: list[str] = []

    def load() -> None:
        while not stop.is_set():
            said = here("run", "steady.py", "main", "--rounds", "2", cwd=WORKFLOWS, code=None)
            if said.code == 0:
                begun.append(said.run_name)
            else:
                failures.append(said.text)

    loads = [threading.Thread(target=load) for _ in range(2)]
    for one in loads:
        one.start()
    eventually(lambda: len(begun) >= 2, "the first runs to begin")
    disturb()
    stop.set()
    for one in loads:
        one.join()
    assert not failures, failures[0]
    member = next(iter(fleet.members.values()))
    for run in begun:
        succeeded(fleet, run)
        told = actions(member, run)
        assert len(told) == 9
        assert {a["status"].get("attempts") for a in told} == {1}, told


def test_a_killed_member_disturbs_no_run(fleet, here):
    def disturb() -> None:
        for n in (0, 1):
            fleet.kill(n)
            fleet.start(n)

    disturbed(fleet, here, disturb)


def test_a_rolling_upgrade_fails_no_run(fleet, here):
    def disturb() -> None:
        for n in range(3):
            fleet.replace(n)

    disturbed(fleet, here, disturb)
