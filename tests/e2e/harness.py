"""What the tests stand on: a server to talk to, the SDK in this process, the CLI in others.

Everything here goes through the official SDK and CLI as they are installed; the only thing this
file knows about Aloft is how to start it, where it says it listens, and how to stop it.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
PROJECT, DOMAIN = "flytesnacks", "development"

# Two busy cores can make a run of a dozen actions slow; nothing waits longer than it has to.
RUN_TIMEOUT = float(os.environ.get("ALOFT_E2E_RUN_TIMEOUT", "120"))
CLI_TIMEOUT = float(os.environ.get("ALOFT_E2E_CLI_TIMEOUT", "90"))
START_TIMEOUT = 30.0
STOP_TIMEOUT = 30.0
LOG_TAIL_LINES = 80

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\]8;[^\x1b]*\x1b\\")


PADDING = re.compile(r"([─ ])\1{99,}")


def plain(text: str) -> str:
    """The text without colours and links, and with the frames of error boxes cut to size."""
    return PADDING.sub(r"\1\1\1", ANSI.sub("", text))


def eventually(
    condition: Callable[[], Any], what: str, timeout: float = RUN_TIMEOUT, about: Callable[[], str] = lambda: ""
) -> Any:
    """Ask until the answer is true, and return it.

    `what` completes "timed out waiting for"; `about` then says how things stand.
    """
    deadline = time.monotonic() + timeout
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"timed out after {timeout:.0f} s waiting for {what}\n{about()}")
        time.sleep(0.1)


def within(timeout: float, call: Callable[[], Any]) -> tuple[bool, Any]:
    """Run a blocking SDK call; `(False, None)` if it is not back in time.

    The thread is a daemon, because there is no way to stop a call that hangs.
    """
    outcome: dict[str, Any] = {}

    def body() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        return False, None
    if "error" in outcome:
        raise outcome["error"]
    return True, outcome["value"]


# The server


def schema_for(data_dir: Path) -> str | None:
    """The address of a schema for the server of a data directory, if the tests run on Postgres: ALOFT_E2E_POSTGRES is the
    directory of one that tools/postgres.sh runs."""
    if not (socket := os.environ.get("ALOFT_E2E_POSTGRES")):
        return None
    schema = "s" + hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    sql = f"SET client_min_messages = warning; CREATE SCHEMA IF NOT EXISTS {schema}"
    subprocess.run(["psql", "-qh", socket, "-U", "aloft", "aloft", "-c", sql], check=True)
    return f"postgres://aloft@{urllib.parse.quote(socket, safe='')}/aloft?options=-c%20search_path%3D{schema}"


class Server:
    """One `aloft dev`, or one that somebody else started (then there is no log and no stopping)."""

    def __init__(self, endpoint: str, log: Path | None = None, process: subprocess.Popen | None = None):
        self.endpoint = endpoint
        self.authority = endpoint.split("://", 1)[-1].rstrip("/")
        self.log = log
        self.process = process

    @classmethod
    def start(cls, binary: Path, data_dir: Path, log: Path, python: str, env: dict[str, str]) -> Server:
        """Start a server on a free port and return once it says it is healthy."""
        endpoint_file = data_dir / "endpoint"
        endpoint_file.unlink(missing_ok=True)
        command = [str(binary), "dev", "--data-dir", str(data_dir), "--port", "0", "--python", python]
        if url := schema_for(data_dir):
            command += ["--set", f"database.url={url}"]
        with log.open("ab") as sink:
            # A session of its own, so that Ctrl-C on pytest leaves the stopping to us.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if endpoint_file.exists() and (endpoint := endpoint_file.read_text().strip()):
                server = cls(endpoint, log, process)
                if server.healthy():
                    return server
            time.sleep(0.02)
        state = f"exited with {process.poll()}" if process.poll() is not None else "is still starting"
        process.kill()
        process.wait()
        pytest.fail(f"{shlex.join(command)}: not healthy after {START_TIMEOUT:.0f} s, {state}\n{tail(log)}")

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint.rstrip('/')}/healthz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> int:
        """Interrupt the server, as Ctrl-C does, and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"the server did not stop within {STOP_TIMEOUT:.0f} s of SIGINT\n{tail(self.log)}")

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log and self.log.exists() else 0

    def log_since(self, offset: int) -> str:
        if not self.log or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")


def tail(log: Path | None) -> str:
    if log is None or not log.exists():
        return "(the server's log is not ours to read)"
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"--- end of {log} ---", *lines])


def write_config(path: Path, authority: str, project: str = PROJECT) -> Path:
    """A client configuration as a person would write it for this server."""
    path.write_text(
        f"admin:\n  endpoint: dns:///{authority}\n  insecure: true\n"
        f"task:\n  project: {project}\n  domain: {DOMAIN}\n"
        "image:\n  builder: remote\n"
    )
    return path


# The command line


@dataclass
class Output:
    """What a CLI command printed, without colours, and how it ended."""

    command: str
    code: int
    stdout: str
    stderr: str
    raw: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr

    def json(self) -> Any:
        """The one JSON document that `-of json-raw` prints; status lines around it are skipped."""
        return self.json_documents()[0]

    def json_documents(self) -> list[Any]:
        documents = []
        for line in self.stdout.splitlines():
            if line.startswith(("[", "{")):
                documents.append(json.loads(line))
        assert documents, f"{self.command}: no JSON in {self.text!r}"
        return documents

    def python(self) -> Any:
        """The details commands print Python literals, whatever `-of` says."""
        start = self.stdout.index("[")
        return ast.literal_eval(self.stdout[start:].strip())

    @property
    def run_name(self) -> str:
        match = re.search(r"Created Run: (\S+)", self.stdout)
        assert match, f"{self.command}: no run was created: {self.text}"
        return match[1]


@functools.cache
def preloaded() -> Path:
    """What client.c is compiled to, which says what it is for."""
    made = Path(tempfile.mkdtemp(prefix="aloft-e2e-client-")) / "client.so"
    source = Path(__file__).with_name("client.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(made), str(source)], check=True)
    return made


class Cli:
    """The `flyte` command, with a home and a configuration of its own."""

    def __init__(self, executable: Path, config: Path, home: Path, describe: Callable[[str], str] = lambda run: ""):
        self.executable = executable
        self.config = config
        self.describe = describe
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("FLYTE", "UCTL", "_U_", "_F_"))}
        self.env |= {
            "LD_PRELOAD": str(preloaded()),
            "HOME": str(home),
            "DO_NOT_TRACK": "1",
            "PYTHONUNBUFFERED": "1",
            # Plain output, on lines as long as they need to be.
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "1000000",
            "LINES": "1000",
        }

    def command(self, *args: str, of: str | None) -> list[str]:
        output = ["-of", of] if of else []
        return [str(self.executable), "-c", str(self.config), *output, *args]

    def __call__(
        self,
        *args: str,
        of: str | None = "json-raw",
        code: int | None = 0,
        timeout: float = CLI_TIMEOUT,
        cwd: Path = EXAMPLES,
    ) -> Output:
        """Run a command to its end; `code=None` accepts any exit code."""
        command = self.command(*args, of=of)
        try:
            done = subprocess.run(
                command,
                cwd=cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as expired:
            printed = plain("".join(part.decode(errors="replace") for part in (expired.stdout, expired.stderr) if part))
            run = re.search(r"Created Run: (\S+)", printed)
            about = self.describe(run[1]) if run else ""
            pytest.fail(f"{shlex.join(command)}: not done after {timeout:.0f} s\n{printed}\n{about}")
        output = Output(shlex.join(command), done.returncode, plain(done.stdout), plain(done.stderr), done.stdout)
        if code is not None:
            assert output.code == code, f"{output.command}: exit code {output.code}\n{output.text}"
        return output

    def succeeded(self, run: str) -> str:
        """Wait until a followed run has succeeded; its log may end a moment before it does."""

        def over() -> bool:
            (details,) = self("get", "run", run).python()
            return details["action"]["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"

        eventually(over, f"run {run} to succeed", 30, lambda: self.describe(run))
        return run

    def follow(self, *args: str, cwd: Path = EXAMPLES) -> Follower:
        """Start a command whose output is read while it runs."""
        return Follower(self.command(*args, of=None), self.env, cwd)


class Follower:
    """A running command, read line by line with a deadline."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path):
        self.command = shlex.join(command)
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, needle: str, timeout: float = CLI_TIMEOUT) -> str:
        """The first line that holds `needle`."""

        def found() -> str | None:
            return next((line for line in list(self.lines) if needle in line), None)

        deadline = time.monotonic() + timeout
        while not (line := found()):
            if time.monotonic() > deadline or not (self.reader.is_alive() or found()):
                pytest.fail(f"{self.command}: {needle!r} never came; printed:\n" + "\n".join(self.lines))
            time.sleep(0.05)
        return line

    def finish(self, timeout: float = CLI_TIMEOUT) -> list[str]:
        """Wait for the command to end by itself; return all its lines."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"{self.command}: still running after {timeout:.0f} s; printed:\n" + "\n".join(self.lines))
        self.reader.join(10)
        return self.lines

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


# The SDK


@dataclass(frozen=True)
class ActionView:
    """The parts of an action that tests look at, as lists report them."""

    name: str
    parent: str
    kind: str
    what: str
    phase: str
    attempts: int
    group: str

    @classmethod
    def of(cls, pb2: Any) -> ActionView:
        from flyteidl2.common.phase_pb2 import ActionPhase

        metadata, status = pb2.metadata, pb2.status
        kind = metadata.WhichOneof("spec") or "?"
        what = {"task": metadata.task.id.name, "trace": metadata.trace.name}.get(kind, "?")
        phase = ActionPhase.Name(status.phase).removeprefix("ACTION_PHASE_").lower()
        return cls(pb2.id.name, metadata.parent, kind, what, phase, status.attempts, metadata.group)


class Sdk:
    """The SDK, initialised against the server, with the examples as its source root."""

    def __init__(self, server: Server):
        self.server = server

    def start(self, task: Any, *, context: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Submit a run; `context` is what `flyte.with_runcontext` takes."""
        import flyte

        return flyte.with_runcontext(mode="remote", **(context or {})).run(task, **inputs)

    def finish(self, run: Any, timeout: float = RUN_TIMEOUT) -> Any:
        """Wait for the run to end, however it ends."""
        done, _ = within(timeout, lambda: run.wait(quiet=True))
        if not done:
            pytest.fail(f"run {run.name} is not done after {timeout:.0f} s\n{self.describe(run.name)}")
        assert run.done(), f"the watch ended, but not the run\n{self.describe(run.name)}"
        return run

    def succeed(self, task: Any, *, context: dict[str, Any] | None = None, **inputs: Any) -> Any:
        """Run a task to success; return the finished run."""
        run = self.finish(self.start(task, context=context, **inputs))
        phase = ActionView.of(run.pb2.action).phase
        if phase != "succeeded":
            pytest.fail(f"run {run.name} ended {phase}\n{self.describe(run.name)}")
        return run

    def fail(self, task: Any, **inputs: Any) -> Any:
        """Run a task to failure; return the finished run."""
        run = self.finish(self.start(task, **inputs))
        phase = ActionView.of(run.pb2.action).phase
        assert phase == "failed", f"run {run.name} ended {phase}\n{self.describe(run.name)}"
        return run

    def actions(self, run_name: str) -> list[ActionView]:
        import flyte.remote

        return [ActionView.of(action.pb2) for action in flyte.remote.Action.listall(for_run_name=run_name)]

    def phases(self, run_name: str) -> dict[str, str]:
        """The phase of each action by name."""
        return {action.name: action.phase for action in self.actions(run_name)}

    def until(
        self, run_name: str, condition: Callable[[dict[str, str]], bool], what: str, timeout: float = RUN_TIMEOUT
    ):
        """Wait until the phases of a run's actions are as they should be; return them."""

        def phases() -> dict[str, str] | None:
            return found if condition(found := self.phases(run_name)) else None

        return eventually(phases, what, timeout, lambda: self.describe(run_name))

    def action(self, run_name: str, name: str) -> Any:
        """An action's details."""
        import flyte.remote

        return flyte.remote.ActionDetails.get(run_name=run_name, name=name)

    def inputs(self, run_name: str, name: str) -> dict[str, Any]:
        return dict(asyncio.run(self.action(run_name, name).inputs()))

    def log_lines(self, run_name: str, name: str = "a0", attempt: int | None = None) -> list[str]:
        """The log of an attempt, line by line, as the SDK hands it out."""
        import flyte.remote

        action = flyte.remote.Action.get(run_name=run_name, name=name)
        done, text = within(CLI_TIMEOUT, lambda: "".join(line[1:] for line in action.get_logs(attempt=attempt)))
        if not done:
            pytest.fail(f"the log of {run_name}/{name} did not end\n{self.describe(run_name)}")
        return text.splitlines()

    def describe(self, run_name: str) -> str:
        """The run's tree of actions, its errors and the end of the server's log, for a failure's sake."""
        try:
            done, tree = within(20, lambda: "\n".join(self._tree(run_name)))
        except Exception as error:
            done, tree = True, f"(no tree: {error!r})"
        tree = tree if done else "(no tree: the server does not answer)"
        return f"--- run {run_name} ---\n{tree}\n{tail(self.server.log)}"

    def _tree(self, run_name: str) -> Iterator[str]:
        actions = self.actions(run_name)
        known = {action.name for action in actions}

        def below(parent: str, indent: str) -> Iterator[str]:
            for action in actions:
                if (action.parent if action.parent in known else "") != parent:
                    continue
                group = f" in {action.group}" if action.group else ""
                yield f"{indent}{action.what} {action.name}: {action.phase}, attempt {action.attempts}{group}"
                if error := self.action(run_name, action.name).error_info:
                    yield f"{indent}  {error.code}: {error.message.strip()}"
                yield from below(action.name, indent + "  ")

        return below("", "")
