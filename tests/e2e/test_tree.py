"""The tree of a run in windows: `aloft.v1.TreeService`."""

from __future__ import annotations

from pathlib import Path

import pytest
import wire

WORKFLOWS = Path(__file__).parent / "workflows"
TREE = "aloft.v1.TreeService"
BEDS = 25


def place(run, action=""):
    return {"project": "flytesnacks", "domain": "development", "run": run, "action": action}


def counts(found):
    """How many by phase, without the prefix that the phases have on the wire."""
    return {each["phase"].removeprefix("TREE_PHASE_").lower(): int(each["actions"]) for each in found}


def windows(server, method, what, **request):
    """All entries of a list, window after window."""
    token = ""
    while True:
        answer = wire.unary(server, f"{TREE}/{method}", {**request, "token": token})
        yield from answer.get(what, [])
        if not (token := answer.get("token", "")):
            return


@pytest.fixture(scope="module")
def asleep(server, cli, sdk):
    """A run whose children sleep until somebody ends them."""
    run = cli("run", "inline.py", "dormitory", "--beds", str(BEDS), "--seconds", "3600", cwd=WORKFLOWS).run_name
    sdk.until(run, lambda found: list(found.values()).count("running") == BEDS + 1, "all to sleep", 240)
    yield run
    cli("abort", "run", run)


def test_children_come_in_windows(server, sdk, asleep):
    wanted = {a.name for a in sdk.actions(asleep) if a.name != "a0"}
    for limit in (1, 7, BEDS, 1000):
        found = list(windows(server, "ListChildren", "actions", parent=place(asleep), limit=limit))
        names = [each["name"] for each in found]
        assert len(names) == len(wanted) and set(names) == wanted, f"windows of {limit}"
        assert {each["phase"] for each in found} == {"TREE_PHASE_RUNNING"}
        assert all(each["attempts"] == 1 and "startedAt" in each and "children" not in each for each in found)


def test_groups_say_how_many_are_in_each_phase(server, asleep):
    answer = wire.unary(server, f"{TREE}/ListGroups", {"parent": place(asleep)})
    assert counts(answer["counts"]) == {"running": BEDS}
    assert sum(counts(group["counts"])["running"] for group in answer["groups"]) == BEDS
    for group in answer["groups"]:
        name = group.get("name", "")
        members = list(windows(server, "ListChildren", "actions", parent=place(asleep), group=name, limit=10))
        assert len(members) == counts(group["counts"])["running"]
        assert {each.get("group", "") for each in members} == {name}


def test_a_sleeper_has_no_children(server, asleep):
    (first, *_) = windows(server, "ListChildren", "actions", parent=place(asleep), limit=1)
    answer = wire.unary(server, f"{TREE}/ListGroups", {"parent": place(asleep, first["name"])})
    assert answer == {}


def test_what_is_aborted_is_counted_so_at_once(server, cli, sdk):
    run = cli("run", "inline.py", "dormitory", "--beds", "5", "--seconds", "3600", cwd=WORKFLOWS).run_name
    sdk.until(run, lambda found: list(found.values()).count("running") == 6, "all to sleep", 240)
    cli("abort", "run", run)
    answer = wire.unary(server, f"{TREE}/ListGroups", {"parent": place(run)})
    assert counts(answer["counts"]) == {"aborted": 5}


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({}, "invalid_argument", "parent: is required"),
        ({"parent": place("a/b")}, "invalid_argument", "parent.run"),
        ({"parent": place("norun")}, "not_found", "norun"),
        ({"parent": place("norun"), "token": "%"}, "invalid_argument", "token"),
    ],
)
@pytest.mark.parametrize("method", ["ListGroups", "ListChildren"])
def test_what_is_wrong_is_said(server, method, request_, code, words):
    with pytest.raises(wire.Failed) as failed:
        wire.unary(server, f"{TREE}/{method}", request_)
    assert failed.value.code == code and words in failed.value.message
