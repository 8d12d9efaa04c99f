"""What many observers saw of a busy run, and whether all of it can be true.

A history is plain data: streams, paged lists and the views of the end, each with what it showed of which action and when.
`check` returns what contradicts itself, by the name of the rule:

order     no stream shows an action going back, or changing once it has ended
fresh     nothing shows less than somebody had seen before it was asked
loss      a stream that was open at the end has shown every action's end
ending    a stream over something that ends, ends, and without an error
agreement all views of the end say the same
pages     a paged list has every row that was there when it began, and none twice
children  the counts of children never shrink, and in the end are those of the children
groups    the totals of a task never shrink, and in the end are those of its runs
events    a stream of cluster events has each event once, in order
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

QUEUED, WAITING, INITIALIZING, RUNNING, SUCCEEDED, FAILED, ABORTED, TIMED_OUT, PAUSED, RECOVERED = range(1, 11)
RANK = {QUEUED: 0, WAITING: 1, PAUSED: 1, INITIALIZING: 2, RUNNING: 3}
ENDED = {SUCCEEDED, FAILED, ABORTED, TIMED_OUT, RECOVERED}


@dataclass(frozen=True)
class Seen:
    """An action as some view showed it. `None` is what the view does not say."""

    action: str
    phase: int
    at: float
    attempts: int | None = None
    start: int | None = None
    end: int | None = None
    error: str | None = None
    tries: tuple | None = None

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    def back_from(self, before: Seen) -> bool:
        """Whether this is less than what was seen before."""
        if before.ended:
            return bool(self.differs(before))
        if None in (self.attempts, before.attempts):
            # Without numbers of attempts a new one looks like a step back.
            return False
        rank = 4 if self.ended else RANK[self.phase]
        return (self.attempts, rank) < (before.attempts, RANK[before.phase])

    def differs(self, other: Seen) -> list[str]:
        """The fields that both say, and not alike."""
        fields = ("phase", "attempts", "start", "end", "error", "tries")
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in fields)
        return [f"{name}: {a!r} and {b!r}" for name, a, b in pairs if None not in (a, b) and a != b]

    def __str__(self) -> str:
        return f"{self.action} phase {self.phase} attempts {self.attempts} end {self.end} at {self.at:.3f}"


@dataclass
class Stream:
    """One stream as it came."""

    name: str
    asked: float
    seen: list[Seen] = field(default_factory=list)
    # Whether it shows every action of the run, these, or nothing that counts.
    covers: set[str] | None = None
    must_end: bool = True
    ended: bool = False
    error: str = ""
    # Whether what it showed last of an action is how that ended: not so of a stream with a filter.
    conclusive: bool = True
    # Of WatchActions: (action, counts of children by phase).
    counts: list[tuple[str, dict[int, int]]] = field(default_factory=list)


@dataclass
class Reading:
    """One list, read page by page: when each page was asked for, and its rows."""

    name: str
    pages: list[tuple[float, list[Seen]]] = field(default_factory=list)
    # Only rows in this phase, which must be one that nothing leaves.
    phase: int | None = None
    # The actions it is a list of; None is all.
    covers: set[str] | None = None


@dataclass
class Group:
    """A message about one task of WatchGroups."""

    total: int
    phases: dict[int, int]
    recent: list[tuple[str, int]]


@dataclass
class Events:
    """The cluster events of one attempt: as they came, and as the details have them in the end."""

    name: str
    came: list[tuple]
    final: list[tuple]


@dataclass
class History:
    streams: list[Stream] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    # View -> action -> as it is in the end: views of everything, and views of a part.
    final: dict[str, dict[str, Seen]] = field(default_factory=dict)
    parts: dict[str, dict[str, Seen]] = field(default_factory=dict)
    # Action -> its parent.
    parents: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[Group]] = field(default_factory=dict)
    # Task -> run -> phase in the end.
    runs: dict[str, dict[str, int]] = field(default_factory=dict)
    events: list[Events] = field(default_factory=list)

    def truth(self) -> dict[str, Seen]:
        """The first view of the end; `agreement` says whether the others are like it."""
        return next(iter(self.final.values()), {})


def check(history: History) -> list[str]:
    rules = (order, fresh, loss, ending, agreement, pages, children, groups, events)
    return [f"{rule.__name__}: {trouble}" for rule in rules for trouble in rule(history)]


def sequences(history: History) -> Iterator[tuple[str, Iterable[Seen]]]:
    for stream in history.streams:
        yield stream.name, stream.seen
    for name in {reading.name for reading in history.readings}:
        # One reader reads the same list again and again: that is a sequence too.
        yield name, [s for r in history.readings if r.name == name for _, rows in r.pages for s in rows]


def order(history: History) -> Iterator[str]:
    for name, seen in sequences(history):
        last: dict[str, Seen] = {}
        for now in seen:
            before = last.get(now.action)
            if before and now.back_from(before):
                yield f"{name}: {before}, then {now}"
            last[now.action] = now


def fresh(history: History) -> Iterator[str]:
    everything = sorted((s for _, seen in sequences(history) for s in seen), key=lambda s: s.at)
    asked: list[tuple[float, str, list[Seen]]] = []
    for stream in history.streams:
        first: dict[str, Seen] = {}
        for now in stream.seen:
            first.setdefault(now.action, now)
        asked.append((stream.asked, stream.name, list(first.values())))
    asked += [(at, reading.name, rows) for reading in history.readings for at, rows in reading.pages]
    asked.sort(key=lambda a: a[0])
    known: dict[str, Seen] = {}
    place = 0
    for at, name, rows in asked:
        while place < len(everything) and everything[place].at < at:
            now = everything[place]
            place += 1
            before = known.get(now.action)
            if before is None or not now.back_from(before):
                known[now.action] = now
        for now in rows:
            before = known.get(now.action)
            if before and now.back_from(before):
                yield f"{name} asked at {at:.3f}: {before}, but {now}"


def loss(history: History) -> Iterator[str]:
    truth = history.truth()
    for stream in history.streams:
        last = {seen.action: seen for seen in stream.seen}
        for action in truth.keys() if stream.covers is None else stream.covers:
            if action not in last:
                yield f"{stream.name}: {action} was never shown"
            elif last[action].phase != truth[action].phase:
                yield f"{stream.name}: {action} was last shown in phase {last[action].phase}, it is {truth[action].phase}"


def ending(history: History) -> Iterator[str]:
    for stream in history.streams:
        if stream.error:
            yield f"{stream.name}: {stream.error}"
        elif stream.must_end and not stream.ended:
            yield f"{stream.name}: still open"
        elif stream.ended and not stream.must_end:
            yield f"{stream.name}: ended, though what it watches goes on"


def agreement(history: History) -> Iterator[str]:
    truth = history.truth()
    for name, view in history.final.items():
        for action in truth.keys() - view.keys():
            yield f"{name}: has no {action}"
    # What a stream showed last of what has ended is a view of the end as well.
    last = {s.name: {seen.action: seen for seen in s.seen} for s in history.streams if s.conclusive}
    for name, view in (*history.final.items(), *history.parts.items(), *last.items()):
        for action, seen in view.items():
            if action not in truth:
                yield f"{name}: has {action}, which others have not"
            else:
                for difference in seen.differs(truth[action]):
                    yield f"{name}: {action}: {difference}"


def pages(history: History) -> Iterator[str]:
    everything = sorted((s for _, seen in sequences(history) for s in seen), key=lambda s: s.at)
    for reading in history.readings:
        rows = [seen for _, page in reading.pages for seen in page]
        for action, count in Counter(seen.action for seen in rows).items():
            if count > 1:
                yield f"{reading.name}: {action} came {count} times"
        began = reading.pages[0][0]
        had = {s.action for s in rows}
        missed = set()
        for seen in everything:
            if seen.at >= began:
                break
            wanted = reading.phase in (None, seen.phase) and (reading.covers is None or seen.action in reading.covers)
            if wanted and seen.action not in had:
                missed.add(seen.action)
        if missed:
            yield f"{reading.name}: {sorted(missed)} were there and did not come"
        wrong = [seen for seen in rows if reading.phase not in (None, seen.phase)]
        if wrong:
            yield f"{reading.name}: {wrong[0]} does not meet the filter"


def children(history: History) -> Iterator[str]:
    expected: dict[str, Counter[int]] = defaultdict(Counter)
    for action, seen in history.truth().items():
        if parent := history.parents.get(action):
            expected[parent][seen.phase] += 1
    for stream in history.streams:
        last: dict[str, dict[int, int]] = {}
        for action, counts in stream.counts:
            if sum(counts.values()) < sum(last.get(action, {}).values()):
                yield f"{stream.name}: {action} had {last[action]}, then {counts}"
            last[action] = counts
        for action, counts in last.items():
            if dict(expected[action]) != counts:
                yield f"{stream.name}: {action} has {dict(expected[action])}, last shown {counts}"


def groups(history: History) -> Iterator[str]:
    for name, messages in history.groups.items():
        before = 0
        for message in messages:
            if message.total < before:
                yield f"{name}: {before} runs, then {message.total}"
            before = message.total
            if sum(message.phases.values()) != message.total:
                yield f"{name}: {message.phases} is not {message.total} in all"
    for task, runs in history.runs.items():
        for name, messages in history.groups.items():
            if not name.endswith(f"/{task}"):
                continue
            last = messages[-1]
            if last.phases != dict(Counter(runs.values())):
                yield f"{name}: last {last.phases}, the runs are {dict(Counter(runs.values()))}"
            for run, phase in last.recent:
                if runs.get(run) != phase:
                    yield f"{name}: run {run} last in phase {phase}, it is {runs.get(run)}"


def events(history: History) -> Iterator[str]:
    for stream in history.events:
        if stream.came != stream.final:
            yield f"{stream.name}: came as {stream.came}, there are {stream.final}"
