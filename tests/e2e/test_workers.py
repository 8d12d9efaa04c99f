"""Workers of other processes: `aloft server` without one of its own, and `aloft operator` beside it.

What must hold, whatever happens to which of them: the run succeeds; no attempt begins twice; what a worker ran that was given
up is done by another as a system retry, and nothing of it is left where it ran.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from connectrpc.errors import ConnectError
from flyteidl2.common import identifier_pb2, list_pb2
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.workflow import run_service_pb2
from flyteidl2.workflow.run_service_connect import RunServiceClientSync
from harness import DOMAIN, PROJECT, START_TIMEOUT, STOP_TIMEOUT, Cli, Server, eventually, schema_for, tail, write_config

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="these tests start servers of their own")

PYTHON = os.environ.get("ALOFT_E2E_PYTHON", sys.executable)
WORKFLOWS = Path(__file__).parent / "workflows"
REFUSED = 20
TOKEN = "open-sesame-is-no-token"


@dataclass(frozen=True)
class Mark:
    """A line that a task wrote."""

    what: str
    name: str
    attempt: int
    pid: int
    where: str


def alive(pid: int) -> bool:
    """Whether a process lives; one that waits to be buried does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@dataclass
class Process:
    """An `aloft` that was started."""

    process: subprocess.Popen
    log: Path
    data: Path

    def kill(self) -> None:
        """As a crash of it alone: what it runs lives on."""
        self.process.kill()
        self.process.wait()

    def kill_all(self) -> None:
        """As a crash of its machine: it and all that it has started."""
        self.kill()
        mine = str(self.data).encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine in (path / "cmdline").read_bytes() or mine in os.readlink(path / "cwd").encode():
                    os.kill(int(path.name), signal.SIGKILL)

    def stop(self) -> str:
        """End it in order; what it said at the end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"it did not stop within {STOP_TIMEOUT:.0f} s\n{tail(self.log)}")
        log = self.log.read_text(errors="replace")
        assert code in (0, -signal.SIGKILL) and "panicked at" not in log, f"{code}\n{tail(self.log)}"
        return log.splitlines()[-1] if log else ""


class Fleet:
    """A server without a worker, and operators."""

    def __init__(self, binary: Path, directory: Path, lease: str):
        self.binary, self.directory, self.lease = binary, directory, lease
        self.data, self.marks = directory / "server", directory / "marks"
        self.token = directory / "token"
        self.token.write_text(TOKEN + "\n")
        self.marks.mkdir()
        self.operators: dict[str, Process] = {}
        self.server = self.start_server()
        self.endpoint = eventually(self._endpoint, "the server to listen", START_TIMEOUT, lambda: tail(self.server.log))
        config = write_config(directory / "config.yaml", self.endpoint.split("://")[1])
        self.cli = Cli(Path(sys.executable).parent / "flyte", config, directory)

    def _spawn(self, name: str, *arguments: str | Path) -> Process:
        log = self.directory / f"{name}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ALOFT_")}
        common = ["--data-dir", self.directory / name, "--debug-port", "0", "--log-format", "text", "--python", PYTHON]
        with log.open("ab") as sink:
            process = subprocess.Popen(
                [self.binary, *map(str, [*arguments, *common])],
                env=clean | {"HOME": str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        return Process(process, log, self.directory / name)

    def start_server(self) -> Process:
        (self.data / "endpoint").unlink(missing_ok=True)
        more = ["--set", f"database.url={url}"] if (url := schema_for(self.data)) else []
        lease = ["--set", f"worker.lease={self.lease}"]
        token = ["--worker-token-path", self.token]
        return self._spawn("server", "server", "--no-worker", "--port", "0", *token, *lease, *more)

    def _endpoint(self) -> str:
        path = self.data / "endpoint"
        assert self.server.process.poll() is None, tail(self.server.log)
        endpoint = path.read_text().strip() if path.exists() else ""
        return endpoint if endpoint and Server(endpoint).healthy() else ""

    def restart_server(self) -> None:
        self.server.kill()
        self.server = self.start_server()
        assert eventually(self._endpoint, "the server to listen", START_TIMEOUT) == self.endpoint

    def operator_arguments(self, token: Path) -> list[str | Path]:
        urls = ["--control-plane-url", self.endpoint, "--token-path", token]
        return [*urls, "--storage-path", self.data / "objects", "--master-key-path", self.data / "master.key"]

    def start_operator(self, name: str, *arguments: str) -> Process:
        self.operators[name] = self._spawn(name, "operator", *self.operator_arguments(self.token), *arguments)
        said = lambda: "works as" in self.operators[name].log.read_text()  # noqa: E731
        eventually(said, f"{name} to work", START_TIMEOUT, lambda: tail(self.operators[name].log))
        return self.operators[name]

    def workers(self) -> dict[str, tuple[str, int]]:
        """What `aloft get workers` shows: state and number of attempts by name."""
        done = subprocess.run(
            [self.binary, "get", "workers", "--endpoint", self.endpoint], capture_output=True, text=True, check=True
        )
        rows = [line.split() for line in done.stdout.splitlines()]
        assert rows[0] == ["NAME", "STATE", "HOLDS", "HOST", "VERSION", "HEARD-AT"]
        return {row[0]: (row[1], int(row[2])) for row in rows[1:]}

    def name_of(self, operator: str) -> str:
        return (self.directory / operator / "worker").read_text().strip()

    # Runs

    def run(self, count: int) -> str:
        arguments = ["run", "workers.py", "main", "--marks", str(self.marks), "--count", str(count)]
        return self.cli(*arguments, cwd=WORKFLOWS).run_name

    def read(self, what: str) -> list[Mark]:
        path = self.marks / "marks"
        lines = [line.split(" ", 4) for line in path.read_text().splitlines()] if path.exists() else []
        return [Mark(line[0], line[1], int(line[2]), int(line[3]), line[4]) for line in lines if line[0] == what]

    def begun(self, count: int) -> list[Mark]:
        return eventually(
            lambda: found if len(found := self.read("begin")) >= count else None,
            f"{count} beginnings",
            60,
            lambda: f"{self.read('begin')}\n{self.logs()}",
        )

    def go(self) -> None:
        (self.marks / "go").touch()

    def logs(self) -> str:
        return "\n".join(tail(p.log) for p in [self.server, *self.operators.values()])

    def finish(self, name: str) -> dict[str, int]:
        """Wait until the run succeeds; the number of attempts of each action."""
        run = identifier_pb2.RunIdentifier(org="", project=PROJECT, domain=DOMAIN, name=name)
        with RunServiceClientSync(self.endpoint) as client:

            def over() -> str:
                try:
                    details = client.get_run_details(run_service_pb2.GetRunDetailsRequest(run_id=run)).details
                except ConnectError:
                    return ""
                phase = ActionPhase.Name(details.action.status.phase).removeprefix("ACTION_PHASE_").lower()
                return phase if phase in ("succeeded", "failed", "aborted", "timed_out") else ""

            assert eventually(over, "the run to end", 60, self.logs) == "succeeded", self.logs()
            request = run_service_pb2.ListActionsRequest(run_id=run, request=list_pb2.ListRequest(limit=100))
            return {a.id.name: a.status.attempts for a in client.list_actions(request).actions}

    def close(self) -> None:
        for operator in self.operators.values():
            operator.stop()
            operator.kill_all()
        self.server.stop()


@pytest.fixture
def fleet(binary, tmp_path) -> Iterator[Fleet]:
    fleet = Fleet(binary, tmp_path, "3s")
    yield fleet
    fleet.close()


def begun_once(marks: list[Mark]) -> bool:
    return max(Counter((m.name, m.attempt) for m in marks).values()) == 1


def test_a_worker_without_the_token_is_told_what_to_do(fleet, binary, tmp_path):
    def refused(token: Path, **env: str) -> str:
        arguments = [*fleet.operator_arguments(token), "--data-dir", tmp_path / "refused", "--debug-port", "0"]
        done = subprocess.run(
            [binary, "operator", *map(str, arguments), "--log-format", "text"],
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == REFUSED, done.stderr
        assert TOKEN not in done.stderr + done.stdout
        return done.stderr

    wrong = tmp_path / "wrong"
    wrong.write_text("close-sesame")
    said = refused(wrong)
    assert fleet.endpoint in said and "is not the one of this server" in said and "worker.tokenPath" in said
    assert "close-sesame" not in said and fleet.workers() == {}
    # A token that changes in its file is the new one at the next connection.
    fleet.token.write_text("close-sesame")
    fleet.token = wrong
    fleet.start_operator("late")
    assert fleet.workers()[fleet.name_of("late")] == ("active", 0)


def test_two_operators_share_a_fan_out(fleet):
    one = fleet.start_operator("one", "--set", "worker.maxWaiting=1")
    fleet.start_operator("two", "--set", "worker.maxWaiting=1")
    count = 12
    name = fleet.run(count)
    fleet.begun(1 + 2)
    fleet.go()
    attempts = fleet.finish(name)
    assert set(attempts.values()) == {1} and len(attempts) == 1 + count
    marks = fleet.read("begin")
    assert begun_once(marks) and {f"/{o}/" in m.where for o in ("one", "two") for m in marks} == {True, False}
    by = Counter("one" if "/one/" in m.where else "two" for m in marks)
    assert len(by) == 2, by
    # The server shows the logs of what other workers on its machine have run.
    listed = fleet.cli("get", "logs", name, "a0").text
    assert "error" not in listed.lower(), listed
    action = next(a for a in attempts if a != "a0")
    assert "this is number" in fleet.cli("get", "logs", name, action).text
    # One that ends in order says so, and takes nothing more.
    assert one.stop() == "Stopped. Nothing is left running."
    assert fleet.workers()[fleet.name_of("one")][0] == "draining"


def test_a_killed_operator_finds_again_what_it_ran(fleet):
    operator = fleet.start_operator("one")
    name = fleet.run(3)
    before = fleet.begun(4)
    operator.kill()
    assert all(alive(m.pid) for m in before)
    fleet.start_operator("one")
    fleet.go()
    attempts = fleet.finish(name)
    assert set(attempts.values()) == {1}, attempts
    assert len(fleet.read("begin")) == 4, "nothing ran twice"
    assert "found again: Adopt" in operator.log.read_text()
    # Stopped in order, it leaves what runs running.
    (fleet.marks / "go").unlink()
    name = fleet.run(1)
    marks = fleet.begun(6)[4:]
    assert re.fullmatch(r"Stopped. 2 attempts keep running, and are found again at the next start\..*",
                        fleet.operators["one"].stop())  # fmt: skip
    assert all(alive(m.pid) for m in marks)
    fleet.start_operator("one")
    fleet.go()
    assert set(fleet.finish(name).values()) == {1}
    assert len(fleet.read("begin")) == 6


def test_a_dead_operators_work_goes_to_another(fleet):
    dead = fleet.start_operator("dead")
    name = fleet.run(2)
    fleet.begun(3)
    dead.kill_all()
    fleet.start_operator("other")
    fleet.go()
    attempts = fleet.finish(name)
    assert set(attempts.values()) == {2}, attempts
    marks = fleet.read("begin")
    assert begun_once(marks) and all(("/dead/" in m.where) == (m.attempt == 1) for m in marks)
    assert fleet.workers()[fleet.name_of("dead")] == ("lost", 0)
    assert "was not heard of for 3s" in fleet.server.log.read_text()


def test_an_operator_that_was_cut_off_kills_what_it_ran(fleet):
    cut = fleet.start_operator("cut")
    name = fleet.run(2)
    old = fleet.begun(3)
    cut.process.send_signal(signal.SIGSTOP)
    fleet.start_operator("other")
    again = [m for m in fleet.begun(6) if m.attempt == 2]
    assert len(again) == 3 and all("/other/" in m.where for m in again)
    assert all(alive(m.pid) for m in old), "nobody is there to end them"
    cut.process.send_signal(signal.SIGCONT)
    eventually(lambda: not any(alive(m.pid) for m in old), "the old processes to be killed", 30, fleet.logs)
    fleet.go()
    attempts = fleet.finish(name)
    assert set(attempts.values()) == {2}, attempts
    assert not any(m.attempt == 1 for m in fleet.read("end")), "nothing of the first attempts ended"
    # It is a worker like any other again.
    eventually(lambda: fleet.workers()[fleet.name_of("cut")] == ("active", 0), "it to be back", 30, fleet.logs)


def test_a_server_that_is_killed_disturbs_no_task(fleet):
    operator = fleet.start_operator("one")
    name = fleet.run(3)
    fleet.begun(4)
    fleet.restart_server()
    fleet.restart_server()
    fleet.go()
    attempts = fleet.finish(name)
    assert set(attempts.values()) == {1}, f"{attempts}\n{fleet.logs()}"
    assert len(fleet.read("begin")) == 4
    assert operator.process.poll() is None and "trying again" in operator.log.read_text()
