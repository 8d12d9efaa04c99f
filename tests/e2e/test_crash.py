"""`kill -9` of the server at twenty random moments of a run of two hundred actions.

    pytest tests/e2e/test_crash.py -s        # prints the seed and what happened
    ALOFT_CRASH_SEED=7 pytest ...            # the same moments again, as far as a machine repeats itself

What must hold afterwards, whenever the server was killed:

- the run succeeded, with the right output, and holds the actions it should;
- every action reached one terminal phase, once;
- no attempt began twice, and nothing began again after its result was durable. What ran again for another reason is
  counted and printed;
- no watch, across all reconnects, saw an action go back.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from connectrpc.errors import ConnectError
from flyteidl2.common import identifier_pb2, list_pb2
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.workflow import run_service_pb2
from flyteidl2.workflow.run_service_connect import RunServiceClientSync
from harness import DOMAIN, PROJECT, Cli, Server, eventually, tail, write_config

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="that server is not ours to kill")

WORKFLOWS = Path(__file__).parent / "workflows"
KILLS = int(os.environ.get("ALOFT_CRASH_KILLS", "20"))
TIMEOUT = float(os.environ.get("ALOFT_CRASH_TIMEOUT", "300"))
TERMINAL = {"succeeded", "failed", "aborted", "timed_out"}
ORDER = ["unspecified", "queued", "waiting_for_resources", "initializing", "running", *sorted(TERMINAL)]


def phase_name(number: int) -> str:
    return ActionPhase.Name(number).removeprefix("ACTION_PHASE_").lower()


def rank(phase: str) -> int:
    return ORDER.index("succeeded") if phase in TERMINAL else ORDER.index(phase)


@dataclass(frozen=True)
class Mark:
    """A line that a task wrote."""

    what: str
    name: str
    action: str
    attempt: int
    at: int

    @classmethod
    def parse(cls, line: str) -> Mark:
        what, name, action, attempt, at = line.split()
        return cls(what, name, action, int(attempt), int(at))


def read_marks(directory: Path) -> list[Mark]:
    path = directory / "marks"
    return [Mark.parse(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Watcher:
    """Watches a run over and over until told to stop, and remembers every step back it sees."""

    endpoint: str
    run: identifier_pb2.RunIdentifier
    regressions: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    seen: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    updates: Counter[str] = field(default_factory=Counter)
    connects: Counter[str] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for watch in (self.actions, self.details):
            threading.Thread(target=self.again_and_again, args=(watch,), daemon=True).start()

    def again_and_again(self, watch) -> None:
        name = watch.__name__
        while not self.stop.is_set():
            try:
                # A new client each time: what a connection to a dead server does is not the question here.
                with RunServiceClientSync(self.endpoint) as client:
                    self.connects[name] += 1
                    watch(client)
            except ConnectError as error:
                if error.code.name not in ("UNAVAILABLE", "CANCELED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"):
                    self.unexpected.append(f"{name}: {error.code.name}: {error.message}")
            except Exception as error:
                # A torn connection comes as whatever the transport makes of it.
                self.updates[f"{name}: {type(error).__name__}"] += 1
            self.stop.wait(0.05)

    def actions(self, client: RunServiceClientSync) -> None:
        for answer in client.watch_actions(run_service_pb2.WatchActionsRequest(run_id=self.run)):
            for enriched in answer.enriched_actions:
                status = enriched.action.status
                self.saw("actions", enriched.action.id.name, status.attempts, phase_name(status.phase))
            if self.stop.is_set():
                return

    def details(self, client: RunServiceClientSync) -> None:
        action_id = identifier_pb2.ActionIdentifier(run=self.run, name="a0")
        for answer in client.watch_action_details(run_service_pb2.WatchActionDetailsRequest(action_id=action_id)):
            status = answer.details.status
            self.saw("details", "a0", status.attempts, phase_name(status.phase))
            if self.stop.is_set():
                return

    def saw(self, watch: str, action: str, attempt: int, phase: str) -> None:
        self.updates[watch] += 1
        before = self.seen.get((watch, action))
        self.seen[watch, action] = (attempt, phase)
        if before is None or before == (attempt, phase):
            return
        was, was_phase = before
        over = was_phase in TERMINAL
        if attempt < was or (attempt == was and (over or rank(phase) < rank(was_phase))) or was_phase == "succeeded":
            self.regressions.append(f"{watch}: {action} went from {was_phase} ({was}) to {phase} ({attempt})")


def every_action(endpoint: str, run: identifier_pb2.RunIdentifier):
    """Each action's details, as the server tells them in the end."""
    with RunServiceClientSync(endpoint) as client:
        token = ""
        while True:
            request = list_pb2.ListRequest(limit=100, token=token)
            page = client.list_actions(run_service_pb2.ListActionsRequest(run_id=run, request=request))
            for action in page.actions:
                request = run_service_pb2.GetActionDetailsRequest(action_id=action.id)
                yield client.get_action_details(request).details
            if not (token := page.token):
                return


def durable_results(data: Path, run: str) -> dict[tuple[str, int], int]:
    """When each attempt's outputs.pb was written, by action and attempt."""
    found = {}
    for path in (data / "objects").rglob("outputs.pb"):
        if match := re.search(rf"/{run}/([^/]+)/(\d+)/outputs\.pb$", str(path)):
            found[match[1], int(match[2])] = path.stat().st_mtime_ns
    return found


def test_twenty_kills(spawn, tmp_path, capsys):
    seed = int(os.environ.get("ALOFT_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
    with capsys.disabled():
        print(f"\nALOFT_CRASH_SEED={seed}")
        kill_and_judge(random.Random(seed), spawn, tmp_path, print)
    shutil.rmtree(tmp_path, ignore_errors=True)


def kill_and_judge(dice: random.Random, spawn, tmp_path: Path, say) -> None:
    sys.path.insert(0, str(WORKFLOWS))
    import crash

    data, log, marks = tmp_path / "data", tmp_path / "server.log", tmp_path / "marks"
    marks.mkdir()
    began = time.monotonic()
    server: Server = spawn(data, log)
    endpoint = server.endpoint
    cli = Cli(Path(sys.executable).parent / "flyte", write_config(tmp_path / "config.yaml", server.authority), tmp_path)
    name = cli("run", "crash.py", "main", "--marks", str(marks), cwd=WORKFLOWS).run_name
    run = identifier_pb2.RunIdentifier(org="", project=PROJECT, domain=DOMAIN, name=name)
    watcher = Watcher(endpoint, run)
    watcher.start()
    say(f"run {name}: {crash.ACTIONS} actions")

    # Moments are numbers of marks, so that they fall into the run on machines of any speed; the pause after each
    # lets them fall between marks too. When two are close, the second comes while the server still recovers.
    work = 2 * crash.ACTIONS
    moments = sorted((dice.randrange(int(work * 0.97)), dice.uniform(0, 0.25)) for _ in range(KILLS))
    downs = []
    try:
        for number, (moment, pause) in enumerate(moments, 1):
            eventually(
                lambda: len(read_marks(marks)) >= moment,
                f"{moment} marks before kill {number}",
                max(1.0, began + TIMEOUT - time.monotonic()),
                lambda: tail(log),
            )
            time.sleep(pause)
            assert server.process is not None and server.process.poll() is None, f"it died by itself\n{tail(log)}"
            server.process.kill()
            server.process.wait()
            down = time.monotonic()
            marked = len(read_marks(marks))
            server = spawn(data, log)
            assert server.endpoint == endpoint
            downs.append(time.monotonic() - down)
            say(f"  kill {number:2} at {down - began:5.1f} s, {marked:3} marks, up again after {downs[-1] * 1000:.0f} ms")
        with RunServiceClientSync(endpoint) as client:

            def over():
                request = run_service_pb2.GetRunDetailsRequest(run_id=run)
                phase = phase_name(client.get_run_details(request).details.action.status.phase)
                return phase if phase in TERMINAL else None

            left = max(1.0, began + TIMEOUT - time.monotonic())
            phase = eventually(over, "the run to end", left, lambda: tail(log))
        took = time.monotonic() - began
        details = list(every_action(endpoint, run))
        result = cli("get", "io", name).stdout
        watcher.stop.set()
    finally:
        code = server.stop()
    assert code == 0

    # The run
    troubles = [f"{d.id.name}: {d.error_info.code}: {d.error_info.message}" for d in details if d.HasField("error_info")]
    assert phase == "succeeded", "\n".join([f"the run {phase}", *troubles, tail(log)])
    assert re.search(rf"\bo0={crash.EXPECTED}\b", result), result
    assert len(details) == crash.ACTIONS

    # One terminal phase each
    for action in details:
        assert phase_name(action.status.phase) == "succeeded", action
        for attempt in action.attempts:
            ends = [phase_name(t.phase) for t in attempt.phase_transitions if phase_name(t.phase) in TERMINAL]
            assert len(ends) <= 1, f"{action.id.name}, attempt {attempt.attempt}: {ends}"
        succeeded = [attempt.attempt for attempt in action.attempts if phase_name(attempt.phase) == "succeeded"]
        kind = action.metadata.WhichOneof("spec")
        assert kind == "trace" or succeeded == [action.status.attempts], f"{action.id.name}: {succeeded}"

    # Nothing ran twice unseen
    results = durable_results(data, name)
    begins: dict[str, list[Mark]] = defaultdict(list)
    ends: dict[str, list[Mark]] = defaultdict(list)
    for mark in read_marks(marks):
        (begins if mark.what == "begin" else ends)[mark.name].append(mark)
    assert len(begins) == len(ends) == crash.ACTIONS
    again = {what: found for what, found in begins.items() if len(found) > 1}
    for what, found in again.items():
        assert len({mark.attempt for mark in found}) == len(found), f"{what}: one attempt began twice: {found}"
        # A trace has no outputs.pb; it may run again only in another attempt of its parent, which is judged itself.
        for earlier, later in zip(found, found[1:], strict=False):
            durable = results.get((earlier.action, earlier.attempt))
            assert what.startswith("note-of-") or durable is None or durable > later.at, (
                f"{what} had a result and ran again: {earlier} {later}"
            )

    # Nothing went back
    assert not watcher.regressions, "\n".join(watcher.regressions)
    assert not watcher.unexpected, "\n".join(watcher.unexpected)
    reattempted = {d.id.name: d.status.attempts for d in details if d.status.attempts > 1}
    assert "panicked at" not in log.read_text(errors="replace")
    found_again = Counter(re.findall(r"found again: (\w+)", log.read_text(errors="replace")))
    downs.sort()
    say(f"{took:.0f} s, {KILLS} kills; start to healthy: median {downs[len(downs) // 2] * 1000:.0f} ms, "
        f"longest {downs[-1] * 1000:.0f} ms")  # fmt: skip
    say(f"found again: {dict(found_again)}; begun more than once: {len(again)} {again or ''}".rstrip())
    say(f"more than one attempt: {reattempted or 0}")
    say(f"watches: {dict(watcher.connects)} connections, {dict(watcher.updates)} updates")
