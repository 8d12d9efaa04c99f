"""Every example runs through the SDK, and returns what it should.

Beyond the values, each test looks at the one thing its example is about: the number of actions,
their parents, phases, attempts, groups or reports, as the server's lists tell them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from harness import EXAMPLES


def tally(actions, *fields):
    """How often each combination of `fields` occurs."""
    return Counter(tuple(getattr(action, field) for field in fields) for action in actions)


def test_hello(sdk, examples):
    run = sdk.succeed(examples.hello.main, whom="Aloft")

    rows = [f"{language:<10} {word}, Aloft!" for language, word in examples.hello.HELLOS.items()]
    rule = "+-" + "-" * 26 + "-+"
    assert run.outputs().o0.splitlines() == [rule, *(f"| {row:<26} |" for row in rows), rule]

    actions = sdk.actions(run.name)
    assert tally(actions, "kind", "what", "phase", "parent") == {
        ("task", "hello.main", "succeeded", ""): 1,
        ("task", "hello.greet", "succeeded", "a0"): 10,
        ("trace", "pin_up", "succeeded", "a0"): 1,
    }
    assert [action.name for action in actions if action.what == "hello.main"] == ["a0"]
    assert tally((a for a in actions if a.what == "hello.greet"), "attempts") == {(1,): 9, (2,): 1}

    (retried,) = [action for action in actions if action.attempts == 2]
    assert sdk.inputs(run.name, retried.name) == {"language": "Klingon", "whom": "Aloft"}
    attempts = sdk.action(run.name, retried.name).pb2.attempts
    assert [attempt.attempt for attempt in attempts] == [1, 2]
    assert attempts[0].error_info.code == "ConnectionError"
    assert "the Klingon hung up" in attempts[0].error_info.message
    assert not attempts[1].HasField("error_info")
    assert attempts[1].outputs.output_uri


def test_fan_out(sdk, examples):
    run = sdk.succeed(examples.fan_out.main, limit=5000, pieces=6)

    assert run.outputs().o0 == 669
    assert tally(sdk.actions(run.name), "what", "phase", "attempts") == {
        ("fan_out.main", "succeeded", 1): 1,
        ("fan_out.count_primes", "succeeded", 1): 6,
    }


def test_sync_map(sdk, examples):
    run = sdk.succeed(examples.sync_map.main)

    assert run.outputs().o0 == ["Chapter IV", "Chapter IX", "-", "Chapter XIV", "Chapter XXXIX"]
    assert tally(sdk.actions(run.name), "what", "phase", "group") == {
        ("sync_map.main", "succeeded", ""): 1,
        ("sync_map.to_roman", "succeeded", "sync_map.to_roman_chapters"): 4,
        ("sync_map.to_roman", "failed", "sync_map.to_roman_chapters"): 1,
    }


def test_nested_parents(sdk, examples):
    run = sdk.succeed(examples.nested.main, numbers=[31, 4, 15, 92, 65, 35, 89, 79])

    assert run.outputs().o0 == [4, 15, 31, 35, 65, 79, 89, 92]
    actions = {action.name: action for action in sdk.actions(run.name)}
    assert len(actions) == 8

    def depth(name: str) -> int:
        return 0 if name == "a0" else 1 + depth(actions[name].parent)

    assert Counter(depth(name) for name in actions) == {0: 1, 1: 1, 2: 2, 3: 4}


def test_files_and_dirs(sdk, examples):
    run = sdk.succeed(examples.files_and_dirs.main)

    counts, total, book = run.outputs()
    assert counts == {"spring.txt": 12, "noon.txt": 4, "night.txt": 9}
    assert total == 25
    assert book.path.startswith("s3://") and book.path.endswith("/book.txt")


def test_dataframes(sdk, examples):
    run = sdk.succeed(examples.dataframes.main)

    per_fruit, total = run.outputs()
    assert per_fruit == {"apple": 220.0, "pear": 100.0, "plum": 40.0}
    assert total == 360.0


def test_dataclasses_and_pydantic(sdk, examples):
    module = examples.dataclasses_and_pydantic
    run = sdk.succeed(module.main, table=3)

    bill = run.typed_outputs({"o0": module.Bill})["o0"]
    assert bill == module.Bill(
        table=3,
        lines=[
            module.Line(text="small: plain", cents=600),
            module.Line(text="large: basil, olives (well done)", cents=1070),
            module.Line(text="large: olives", cents=1020),
        ],
        total_cents=2690,
        by_size={"small": 1, "large": 2},
    )


def test_traces(sdk, examples):
    run = sdk.succeed(examples.traces.main, word="glider")

    assert run.outputs().o0 == ["G-L-I-D-E-R", "6", "3.0", "no: division by zero"]
    actions = sdk.actions(run.name)
    (survey,) = [action.name for action in actions if action.what == "traces.survey"]
    assert tally(actions, "kind", "what", "phase", "parent") == {
        ("task", "traces.main", "succeeded", ""): 1,
        ("task", "traces.survey", "succeeded", "a0"): 1,
        ("trace", "spell", "succeeded", "a0"): 1,
        ("trace", "divide", "succeeded", "a0"): 1,
        ("trace", "divide", "failed", "a0"): 1,
        ("trace", "measure", "succeeded", survey): 1,
    }


def test_retries(sdk, examples):
    run = sdk.succeed(examples.retries.main)

    assert run.outputs().o0 == ["done on attempt 2", "DryWell: the well is dry"]
    actions = sdk.actions(run.name)
    assert tally(actions, "what", "phase", "attempts") == {
        ("retries.main", "succeeded", 1): 1,
        ("retries.flaky", "succeeded", 3): 1,
        ("retries.hopeless", "failed", 1): 1,
    }
    flaky = next(action for action in actions if action.what == "retries.flaky")
    details = sdk.action(run.name, flaky.name)
    assert [attempt.error_info.message for attempt in details.pb2.attempts[:2]] == [
        "attempt 0 timed out",
        "attempt 1 timed out",
    ]
    # The pauses of 0.2 s and 0.4 s are part of the action's life.
    assert details.runtime.total_seconds() >= 0.6


def test_user_errors(sdk, examples):
    run = sdk.succeed(examples.user_errors.main)

    assert run.outputs().o0 == [
        "ValueError: door 1 is painted on the wall",
        "DoorLocked: door 2 is locked",
        "door 3 opens",
    ]
    actions = sdk.actions(run.name)
    assert tally(actions, "what", "phase") == {
        ("user_errors.main", "succeeded"): 1,
        ("user_errors.open_door", "succeeded"): 1,
        ("user_errors.open_door", "failed"): 2,
    }


def test_reports(sdk, examples):
    run = sdk.succeed(examples.reports.main, text="mississippi & missouri")

    assert run.outputs().o0 == 7
    page = run.get_report()
    assert "<h1>19 letters</h1><p><q>mississippi & missouri</q></p>" in page
    assert ">By letter</li>" in page
    assert "<tr><td>s</td><td>6</td>" in page
    assert page.count("<tr>") == 7


def test_groups(sdk, examples):
    run = sdk.succeed(examples.groups.main, rolls=3)

    assert run.outputs().o0 == {"d6": [6, 5, 4], "d20": [10, 9, 8]}
    assert tally(sdk.actions(run.name), "what", "group") == {
        ("groups.main", ""): 1,
        ("groups.roll", "roll-d6"): 3,
        ("groups.roll", "roll-d20"): 3,
    }


def test_environment_variables_of_the_environment(sdk, examples):
    run = sdk.succeed(examples.env_vars.main)

    assert run.outputs().o0 == {"here": {"COLOUR": "teal", "MOOD": "calm"}, "elsewhere": {}}


def test_environment_variables_of_the_run(sdk, examples):
    run = sdk.succeed(examples.env_vars.main, context={"env_vars": {"MOOD": "cheerful", "SEASON": "autumn"}})

    assert run.outputs().o0 == {
        "here": {"COLOUR": "teal", "MOOD": "cheerful", "SEASON": "autumn"},
        "elsewhere": {"MOOD": "cheerful", "SEASON": "autumn"},
    }


@pytest.mark.network
def test_images(sdk, examples):
    # The first run builds the image; the SDK waits for that before it submits.
    run = sdk.succeed(examples.images.main, text="hello")

    parent_has_cowsay, cow = run.outputs()
    assert not parent_has_cowsay
    assert cow.startswith("green acres\n")
    assert "| hello |" in cow and "(oo)" in cow


def test_logs(sdk, examples):
    run = sdk.succeed(examples.logs.main, lines=200)

    assert run.outputs().o0 == 200
    log = sdk.log_lines(run.name)
    printed = [line for line in log if "line 0" in line]
    colours = examples.logs.COLOURS
    assert printed == [f"\x1b[{colours[n % 6]}mline {n:04}\x1b[0m of 200" for n in range(200)]
    assert "that is all" in log


SUITES = ("test_examples.py", "test_failures.py", "test_run_contract.py")


def test_every_example_is_tested():
    """An example added later needs a test here or in another of these suites."""
    tests = "".join((Path(__file__).parent / name).read_text() for name in SUITES)
    for path in EXAMPLES.glob("*.py"):
        assert re.search(rf"\bexamples\.{path.stem}\b", tests), f"{path.name} is run by no test"
