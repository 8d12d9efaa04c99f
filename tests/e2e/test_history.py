"""A busy run, watched by many from different moments on, with lists read all the while: nothing seen contradicts itself.

    pytest tests/e2e/test_history.py -s      # prints how much was seen
    ALOFT_HISTORY_SIZE=30 pytest ...         # a larger run

What must hold is in history.py; the tests at the end show that each rule can fail.
"""

from __future__ import annotations

import copy
import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace

import pytest
from connectrpc.errors import ConnectError
from flyteidl2.actions import actions_service_pb2
from flyteidl2.actions.actions_service_connect import ActionsServiceClientSync
from flyteidl2.common import identifier_pb2, list_pb2
from flyteidl2.workflow import run_service_pb2 as service
from flyteidl2.workflow.run_service_connect import RunServiceClientSync
from google.protobuf.timestamp_pb2 import Timestamp
from harness import DOMAIN, PROJECT, Server, eventually
from history import (
    ABORTED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Events,
    Group,
    History,
    Reading,
    Seen,
    Stream,
    check,
)
from test_crash import WORKFLOWS

SIZE = int(os.environ.get("ALOFT_HISTORY_SIZE", "10"))
TIMEOUT = float(os.environ.get("ALOFT_HISTORY_TIMEOUT", "300"))
RUN_OVER = 120.0


def nanos(at: Timestamp) -> int:
    return at.seconds * 10**9 + at.nanos


def of_action(action, at: float, **more) -> Seen:
    status = action.status
    end = nanos(status.end_time) if status.HasField("end_time") else 0
    return Seen(
        action.id.name, status.phase, at, attempts=status.attempts, start=nanos(status.start_time), end=end, **more
    )


def of_details(details, at: float) -> Seen:
    error = details.error_info.code if details.WhichOneof("result") == "error_info" else ""
    tries = tuple(
        (a.attempt, a.phase, a.error_info.code, tuple((t.phase, nanos(t.start_time)) for t in a.phase_transitions))
        for a in details.attempts
    )
    return of_action(details, at, error=error, tries=tries)


def of_event(event) -> tuple:
    return (nanos(event.occurred_at), event.reason, event.message, event.type, event.source_component, event.count)


class Observer:
    """Keeps streams open and lists read, each in a thread of its own, and remembers what came."""

    def __init__(self, endpoint: str, run: str):
        self.endpoint = endpoint
        self.run = identifier_pb2.RunIdentifier(project=PROJECT, domain=DOMAIN, name=run)
        self.project = identifier_pb2.ProjectIdentifier(name=PROJECT, domain=DOMAIN)
        self.history = History()
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []

    def action_id(self, name: str) -> identifier_pb2.ActionIdentifier:
        return identifier_pb2.ActionIdentifier(run=self.run, name=name)

    def watch(self, name: str, call, take, slow: float = 0, client=RunServiceClientSync, **about) -> Stream:
        """Follow a stream; `take(stream, message, at)` keeps what counts."""
        stream = Stream(f"{name} #{len(self.history.streams)}", time.monotonic(), **about)
        self.history.streams.append(stream)

        def follow() -> None:
            try:
                with client(self.endpoint) as c:
                    for message in call(c):
                        # What comes when the history is closed is not part of it.
                        if self.stop.is_set():
                            return
                        take(stream, message, time.monotonic())
                        time.sleep(slow)
                stream.ended = not self.stop.is_set()
            except ConnectError as error:
                if not self.stop.is_set():
                    stream.error = f"{error.code.name}: {error.message}"
            except Exception as error:
                if not self.stop.is_set():
                    stream.error = repr(error)

        self.spawn(follow)
        return stream

    def spawn(self, body) -> None:
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        self.threads.append(thread)

    # Streams

    def actions(self, slow: float = 0, filters=(), **about) -> Stream:
        def take(stream, message, at):
            for enriched in message.enriched_actions:
                action = enriched.action
                stream.seen.append(of_action(action, at))
                stream.counts.append((action.id.name, dict(enriched.children_phase_counts)))
                if action.metadata.parent:
                    self.history.parents[action.id.name] = action.metadata.parent

        request = service.WatchActionsRequest(run_id=self.run, filter=filters)
        return self.watch("WatchActions", lambda c: c.watch_actions(request), take, slow, **about)

    def details(self, action: str, slow: float = 0) -> Stream:
        def take(stream, message, at):
            stream.seen.append(of_details(message.details, at))

        request = service.WatchActionDetailsRequest(action_id=self.action_id(action))
        name = f"WatchActionDetails {action}"
        return self.watch(name, lambda c: c.watch_action_details(request), take, slow, covers={action})

    def run_details(self) -> Stream:
        def take(stream, message, at):
            stream.seen.append(of_details(message.details.action, at))

        request = service.WatchRunDetailsRequest(run_id=self.run)
        return self.watch("WatchRunDetails", lambda c: c.watch_run_details(request), take, covers={"a0"})

    def updates(self, parent: str, covers: set[str]) -> Stream:
        def take(stream, message, at):
            if message.HasField("action_update"):
                update = message.action_update
                error = update.error.code if update.HasField("error") else ""
                ended = update.phase in (FAILED, SUCCEEDED)
                stream.seen.append(Seen(update.action_id.name, update.phase, at, error=error if ended else None))

        request = actions_service_pb2.WatchForUpdatesRequest(parent_action_id=self.action_id(parent))
        return self.watch(
            f"WatchForUpdates {parent}",
            lambda c: c.watch_for_updates(request),
            take,
            client=ActionsServiceClientSync,
            covers=covers,
        )

    def runs(self, **target) -> Stream:
        def take(stream, message, at):
            for run in message.runs:
                if run.action.id.run.name == self.run.name:
                    stream.seen.append(of_action(run.action, at))

        request = service.WatchRunsRequest(**target)
        return self.watch("WatchRuns", lambda c: c.watch_runs(request), take, covers={"a0"}, must_end=False)

    def groups(self, since: Timestamp) -> Stream:
        def take(stream, message, at):
            for group in message.task_groups:
                name = f"{stream.name}/{group.task_name}"
                phases = {p.phase: p.count for p in group.phase_counts}
                recent = [(s.run_name, s.phase) for s in group.recent_statuses]
                self.history.groups.setdefault(name, []).append(Group(group.total_runs, phases, recent))

        request = service.WatchGroupsRequest(project_id=self.project, start_date=since)
        return self.watch("WatchGroups", lambda c: c.watch_groups(request), take, covers=set(), must_end=False)

    def cluster_events(self, action: str, attempt: int) -> None:
        events = Events(f"WatchClusterEvents {action}/{attempt}", [], [])
        self.history.events.append(events)

        def take(stream, message, at):
            events.came += [of_event(e) for e in message.cluster_events]

        request = service.WatchClusterEventsRequest(id=self.action_id(action), attempt=attempt)
        self.watch(events.name, lambda c: c.watch_cluster_events(request), take, covers=set())

    # Lists

    def read(self, name: str, asked: list_pb2.ListRequest, runs: bool = False, phase: int | None = None) -> None:
        """Read a list again and again, page by page."""

        def page(client, token: str):
            request = list_pb2.ListRequest()
            request.CopyFrom(asked)
            request.token = token
            if runs:
                answer = client.list_runs(service.ListRunsRequest(request=request, project_id=self.project))
                return [r.action for r in answer.runs if r.action.id.run.name == self.run.name], answer.token
            answer = client.list_actions(service.ListActionsRequest(request=request, run_id=self.run))
            return answer.actions, answer.token

        def body() -> None:
            with RunServiceClientSync(self.endpoint) as client:
                while not self.stop.is_set():
                    reading = Reading(name, phase=phase, covers={"a0"} if runs else None)
                    token = ""
                    while True:
                        at = time.monotonic()
                        rows, token = page(client, token)
                        reading.pages.append((at, [of_action(a, time.monotonic()) for a in rows]))
                        if not token or self.stop.is_set():
                            break
                    if not token:
                        self.history.readings.append(reading)
                    self.stop.wait(0.05)

        self.spawn(body)

    # The end

    def conclude(self, since: Timestamp) -> None:
        """Read every view once more, now that nothing changes."""
        history = self.history
        at = time.monotonic()
        with RunServiceClientSync(self.endpoint) as client:
            listed, token = {}, ""
            while True:
                request = list_pb2.ListRequest(limit=40, token=token)
                answer = client.list_actions(service.ListActionsRequest(run_id=self.run, request=request))
                for action in answer.actions:
                    listed[action.id.name] = of_action(action, at)
                    history.parents[action.id.name] = action.metadata.parent
                if not (token := answer.token):
                    break
            details, events = {}, {}
            for name in listed:
                request = service.GetActionDetailsRequest(action_id=self.action_id(name))
                found = client.get_action_details(request).details
                details[name] = of_details(found, at)
                for attempt in found.attempts:
                    events[name, attempt.attempt] = [of_event(e) for e in attempt.cluster_events]
            history.final = {"GetActionDetails": details, "ListActions": listed}
            for seen in history.events:
                name, attempt = seen.name.split(" ")[1].split("/")
                seen.final = events[name, int(attempt)]
            run = client.get_run_details(service.GetRunDetailsRequest(run_id=self.run)).details
            history.parts["GetRunDetails"] = {"a0": of_details(run.action, at)}
            after = list_pb2.Filter(
                function=list_pb2.Filter.GREATER_THAN_OR_EQUAL, field="created_at", values=[since.ToJsonString()]
            )
            request = list_pb2.ListRequest(limit=1000, filters=[after])
            for found in client.list_runs(service.ListRunsRequest(request=request, project_id=self.project)).runs:
                task = found.action.metadata.task.id.name
                history.runs.setdefault(task, {})[found.action.id.run.name] = found.action.status.phase
                if found.action.id.run.name == self.run.name:
                    history.parts["ListRuns"] = {"a0": of_action(found.action, at)}


@pytest.fixture
def busy(server, cli, tmp_path):
    """A busy run under way, and what its observers see of it until it is over."""
    since = Timestamp()
    since.GetCurrentTime()
    name = cli("run", "busy.py", "main", "--size", str(SIZE), cwd=WORKFLOWS, timeout=120).run_name
    observer = Observer(server.endpoint, name)
    yield observer, since
    observer.stop.set()


def by(key: str, ascending: bool = True) -> list_pb2.Sort:
    return list_pb2.Sort(key=key, direction=list_pb2.Sort.ASCENDING if ascending else list_pb2.Sort.DESCENDING)


def in_phase(phase: int) -> list_pb2.Filter:
    return list_pb2.Filter(function=list_pb2.Filter.VALUE_IN, field="PHASE", values=[str(phase)])


def test_nothing_seen_of_a_busy_run_contradicts_itself(server: Server, busy, capsys):
    observer, since = busy
    history = observer.history
    dice = random.Random(7)
    request = list_pb2.ListRequest
    observer.actions()
    # Slower than what is sent: the rest waits in between, and is read after the run.
    observer.actions(slow=0.05)
    observer.actions(filters=[in_phase(RUNNING)], covers=set(), conclusive=False)
    observer.details("a0")
    observer.run_details()
    observer.runs(project_id=observer.project)
    observer.runs(org="")
    observer.groups(since)
    observer.read("ListActions by updated_at", request(limit=7, sort_by_fields=[by("updated_at", False)]))
    observer.read("ListActions by phase", request(limit=11, sort_by_fields=[by("phase"), by("created_at")]))
    observer.read("ListActions failed", request(limit=5, filters=[in_phase(FAILED)]), phase=FAILED)
    observer.read("ListRuns by ended_at", request(limit=3, sort_by_fields=[by("ended_at", False)]), runs=True)

    def known() -> dict[str, tuple[str, str]]:
        """The actions so far: their task and parent."""
        with RunServiceClientSync(server.endpoint) as client:
            found = client.list_actions(
                service.ListActionsRequest(run_id=observer.run, request=list_pb2.ListRequest(limit=1000))
            ).actions
        return {a.id.name: (a.metadata.funtion_name, a.metadata.parent) for a in found}

    def of(kind: str) -> list[str]:
        return [name for name, (task, _) in known().items() if task == kind]

    eventually(lambda: len(of("branch")) == 3 and len(of("leaf")) > 10, "the run to spread", RUN_OVER)
    # Watchers that come in the middle.
    observer.actions()
    for parent in ["a0", *of("branch"), *of("broken_branch")]:
        observer.updates(parent, set())
    for name in dice.sample(sorted(known()), 12):
        observer.details(name, slow=dice.choice([0, 0.2]))
    for name in of("flaky")[:3]:
        observer.cluster_events(name, 1)
        observer.cluster_events(name, 2)
    observer.runs(
        task_id={"project": PROJECT, "domain": DOMAIN, "name": "busy.main"},
    )
    with RunServiceClientSync(server.endpoint) as client:
        eventually(lambda: len(of("sleeper")) == 4 + 6, "the sleepers to be there", RUN_OVER)
        sleepers = [name for name, (task, parent) in known().items() if task == "sleeper" and parent == "a0"]
        for name in sleepers:
            observer.details(name)
            client.abort_action(service.AbortActionRequest(action_id=observer.action_id(name), reason="up"))

        def over() -> bool:
            found = client.get_run_details(service.GetRunDetailsRequest(run_id=observer.run)).details
            return found.action.status.phase in (SUCCEEDED, FAILED)

        eventually(over, "the run to end", TIMEOUT)
    # A watcher that comes too late for everything but the end.
    observer.actions()
    observer.details("a0")
    ends = [s for s in history.streams if s.must_end]

    def late() -> list[str]:
        return [s.name for s in ends if not (s.ended or s.error)]

    eventually(lambda: not late(), "the streams to end", 120, lambda: ", ".join(late()))

    def told() -> bool:
        last = [s.seen[-1].phase for s in history.streams if s.name.startswith("WatchRuns") and s.seen]
        return all(phase in (SUCCEEDED, FAILED) for phase in last)

    eventually(told, "the watches over runs to hear of the end", 30)
    time.sleep(1)
    observer.conclude(since)
    observer.stop.set()
    truth = history.truth()
    for stream in history.streams:
        if stream.name.startswith("WatchForUpdates"):
            parent = stream.name.split(" ")[1]
            stream.covers = {name for name, above in history.parents.items() if above == parent}
    with capsys.disabled():
        phases = Counter(seen.phase for seen in truth.values())
        seen = sum(len(s.seen) for s in history.streams)
        rows = sum(len(r) for reading in history.readings for _, r in reading.pages)
        print(f"\n{len(truth)} actions {dict(phases)}; {len(history.streams)} streams showed {seen} states, "
              f"{len(history.readings)} lists {rows} rows")  # fmt: skip
    # It was as busy as it was meant to be.
    assert len(truth) > 7 * SIZE
    ended = {(history.final["GetActionDetails"][name].tries or ((),))[-1] and seen.phase for name, seen in truth.items()}
    assert {SUCCEEDED, FAILED, ABORTED} <= ended
    assert any(seen.attempts and seen.attempts > 1 for seen in truth.values())
    assert len(history.readings) > 20
    troubles = check(history)
    assert not troubles, f"{len(troubles)} contradictions\n" + "\n".join(troubles[:50])


# The rules can fail


def good() -> History:
    """A small history in which all is well."""
    seen = lambda action, phase, at, **more: Seen(action, phase, at, attempts=1, start=1, **more)  # noqa: E731
    end = {"end": 9, "error": ""}
    stream = Stream(
        "WatchActions #0",
        0.0,
        [
            seen("a0", QUEUED, 1.0, end=0),
            seen("a0", RUNNING, 2.0, end=0),
            seen("x", RUNNING, 3.0, end=0),
            seen("x", SUCCEEDED, 5.0, **end),
            seen("a0", SUCCEEDED, 6.0, **end),
        ],
        ended=True,
        counts=[("a0", {}), ("a0", {RUNNING: 1}), ("a0", {SUCCEEDED: 1})],
    )
    endless = Stream("WatchRuns #1", 0.0, [seen("a0", SUCCEEDED, 7.0, **end)], covers={"a0"}, must_end=False)
    reading = Reading("ListActions", [(4.0, [seen("x", RUNNING, 4.1)]), (5.5, [seen("a0", RUNNING, 5.6)])])
    final = {name: seen(name, SUCCEEDED, 9.0, **end) for name in ("a0", "x")}
    return History(
        streams=[stream, endless],
        readings=[reading],
        final={"GetActionDetails": final, "ListActions": dict(final)},
        parents={"x": "a0"},
        groups={"WatchGroups #2/busy.main": [Group(1, {RUNNING: 1}, [("r", RUNNING)]), Group(1, {SUCCEEDED: 1}, [("r", SUCCEEDED)])]},
        runs={"busy.main": {"r": SUCCEEDED}},
        events=[Events("WatchClusterEvents x/1", [(1, "Queued"), (2, "Started")], [(1, "Queued"), (2, "Started")])],
    )


def doctor(*path, to):
    """A change of one place of a history: attributes and indices, and what to make of what is there."""

    def change(history: History) -> None:
        *way, last = path
        at = history
        for step in way:
            at = getattr(at, step) if isinstance(step, str) and hasattr(at, step) else at[step]
        old = getattr(at, last) if isinstance(last, str) and hasattr(at, last) else at[last]
        new = to(old)
        if isinstance(last, str) and hasattr(at, last):
            setattr(at, last, new)
        else:
            at[last] = new

    return change


DOCTORED = {
    "order: a phase goes back": doctor("streams", 0, "seen", 2, to=lambda s: replace(s, action="a0", phase=QUEUED)),
    "order: an end changes": doctor("streams", 0, "seen", to=lambda seen: [*seen, replace(seen[3], phase=FAILED, at=7.0)]),
    "order: an end moves": doctor("streams", 0, "seen", to=lambda seen: [*seen, replace(seen[3], end=8, at=7.0)]),
    "order: a list goes back": doctor("readings", 0, "pages", 1, to=lambda p: (p[0], [replace(p[1][0], action="x", phase=QUEUED)])),
    "fresh: a list is behind a stream": doctor("readings", 0, "pages", 1, to=lambda p: (6.5, p[1])),
    "fresh: a stream begins behind": doctor("streams", 1, to=lambda s: replace(s, asked=6.5, seen=[replace(s.seen[0], phase=RUNNING, at=6.9), *s.seen])),
    "loss: an end is not told": doctor("streams", 0, "seen", to=lambda seen: seen[:-1]),
    "loss: an action is not told": doctor("streams", 0, "seen", to=lambda seen: [s for s in seen if s.action != "x"]),
    "ending: a stream stays open": doctor("streams", 0, "ended", to=lambda _: False),
    "ending: a stream breaks": doctor("streams", 1, "error", to=lambda _: "INTERNAL: no"),
    "ending: an endless stream ends": doctor("streams", 1, "ended", to=lambda _: True),
    "agreement: a view lacks an action": doctor("final", "ListActions", to=lambda view: {"a0": view["a0"]}),
    "agreement: a view has another end": doctor("final", "ListActions", "x", to=lambda s: replace(s, end=8)),
    "agreement: a view has another error": doctor("streams", 0, "seen", 3, to=lambda s: replace(s, error="E")),
    "agreement: a view has another attempt": doctor("final", "ListActions", "x", to=lambda s: replace(s, attempts=2)),
    "agreement: a view has an action of its own": doctor("final", "ListActions", to=lambda v: v | {"y": v["x"]}),
    "pages: a row comes twice": doctor("readings", 0, "pages", 1, to=lambda p: (p[0], [*p[1], replace(p[1][0])])),
    "pages: a row is skipped": doctor("readings", 0, "pages", 0, to=lambda p: (p[0], [])),
    "pages: a row does not meet the filter": doctor("readings", 0, "phase", to=lambda _: SUCCEEDED),
    "children: a count shrinks": doctor("streams", 0, "counts", 1, to=lambda c: ("a0", {RUNNING: 2})),
    "children: a count is wrong in the end": doctor("streams", 0, "counts", 2, to=lambda c: ("a0", {FAILED: 1})),
    "groups: a total shrinks": doctor("groups", "WatchGroups #2/busy.main", 0, to=lambda g: Group(2, {RUNNING: 2}, [])),
    "groups: a total is wrong in the end": doctor("runs", "busy.main", to=lambda runs: runs | {"s": FAILED}),
    "groups: a recent run is wrong": doctor("groups", "WatchGroups #2/busy.main", 1, to=lambda g: replace(g, recent=[("r", RUNNING)])),
    "groups: phases are not the total": doctor("groups", "WatchGroups #2/busy.main", 0, to=lambda g: replace(g, phases={})),
    "events: one is lost": doctor("events", 0, "came", to=lambda e: e[1:]),
    "events: one comes twice": doctor("events", 0, "came", to=lambda e: [*e, e[-1]]),
    "events: they are out of order": doctor("events", 0, "came", to=lambda e: e[::-1]),
}  # fmt: skip


def test_a_good_history_has_no_contradictions():
    assert check(good()) == []


@pytest.mark.parametrize("wrong", DOCTORED)
def test_a_doctored_history_is_found_out(wrong):
    history = copy.deepcopy(good())
    DOCTORED[wrong](history)
    rules = {trouble.split(":")[0] for trouble in check(history)}
    assert wrong.split(":")[0] in rules, check(history)
