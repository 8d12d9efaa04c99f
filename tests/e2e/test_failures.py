"""Runs that end badly: what failed, why, and what the SDK makes of it."""

from __future__ import annotations

import flyte.errors
import pytest
from flyteidl2.workflow.run_definition_pb2 import ErrorInfo


def statuses(sdk, run):
    return {action.what: action.phase for action in sdk.actions(run.name)}


def test_an_exception_fails_the_run(sdk, examples):
    run = sdk.fail(examples.failing.main)

    error = sdk.action(run.name, "a0").error_info
    assert error.code == "OutOfHay"
    assert error.message == "only 999 straws left"
    assert error.kind == ErrorInfo.KIND_USER
    with pytest.raises(flyte.errors.RuntimeUserError, match="only 999 straws left") as raised:
        run.raise_for_status()
    assert raised.value.code == "OutOfHay"
    # The child that did its part keeps its success.
    assert statuses(sdk, run) == {"failing.main": "failed", "failing.load": "succeeded"}
    assert any("loaded 999 straws" in line for line in sdk.log_lines(run.name))


def test_a_childs_error_passes_through(sdk, examples):
    run = sdk.fail(examples.failing.passed_on)

    error = sdk.action(run.name, "a0").error_info
    assert (error.code, error.message, error.kind) == ("ValueError", "1001 straws are too many", ErrorInfo.KIND_USER)
    first = run.first_failure()
    assert first.task_name == "failing.load"
    assert first.error_message == "1001 straws are too many"


def test_a_process_that_dies_says_so(sdk, examples):
    run = sdk.fail(examples.failing.crash, code=42)

    error = sdk.action(run.name, "a0").error_info
    assert error.code
    assert "42" in error.message, error.message
    with pytest.raises(flyte.errors.BaseRuntimeError):
        run.raise_for_status()
    assert any("goodbye" in line for line in sdk.log_lines(run.name))


def sleepers(sdk, run):
    """The two sleepers by name, once both are running."""

    phases = sdk.until(run.name, lambda found: list(found.values()) == ["running"] * 3, "both sleepers to run")
    return {sdk.inputs(run.name, name)["sleeper"]: name for name in phases if name != "a0"}


def test_aborting_a_run_ends_all_of_it(sdk, examples):
    run = sdk.start(examples.abort.main)
    names = sleepers(sdk, run)

    run.abort(reason="school starts")
    sdk.finish(run, timeout=30)

    assert sdk.action(run.name, "a0").abort_info.reason == "school starts"
    with pytest.raises(flyte.errors.ActionAbortedError, match="school starts"):
        run.raise_for_status()
    phases = sdk.until(run.name, lambda found: set(found.values()) == {"aborted"}, "all of it to be aborted", 30)
    assert set(phases) == {"a0", *names.values()}
    # Aborting what has ended changes nothing.
    run.abort(reason="again")
    assert sdk.action(run.name, "a0").abort_info.reason == "school starts"


def test_aborting_one_action_leaves_the_others_alone(sdk, examples):
    import flyte.remote

    run = sdk.start(examples.abort.main)
    names = sleepers(sdk, run)

    flyte.remote.Action.get(run_name=run.name, name=names["Ada"]).abort(reason="Ada first")
    assert sdk.phases(run.name) == {"a0": "running", names["Ada"]: "aborted", names["Bob"]: "running"}
    assert sdk.action(run.name, names["Ada"]).abort_info.reason == "Ada first"

    flyte.remote.Action.get(run_name=run.name, name=names["Bob"]).abort(reason="then Bob")
    sdk.finish(run, timeout=60)
    assert run.outputs().o0 == ["Ada was woken", "Bob was woken"]
