"""Tasks that Aloft does itself, without a process: `core-sleep` and `echo`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from harness import Cli, eventually, write_config

WORKFLOWS = Path(__file__).parent / "workflows"

ours = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="that server is not ours to kill")


def start(cli, task, *args):
    return cli("run", "inline.py", task, *args, cwd=WORKFLOWS).run_name


def ended(sdk, run, timeout=120):
    return eventually(lambda: sdk.action(run, "a0").done(), f"run {run} to end", timeout, lambda: sdk.describe(run))


def test_hundreds_sleep_at_once_and_an_abort_ends_them(cli, sdk):
    run = start(cli, "dormitory", "--beds", "300", "--seconds", "3600")
    sdk.until(run, lambda found: list(found.values()).count("running") == 301, "300 to sleep", 240)
    cli("abort", "run", run)
    sdk.until(run, lambda found: set(found.values()) == {"aborted"}, "all of them to be aborted", 60)


def test_who_sleeps_wakes(cli, sdk):
    run = start(cli, "dormitory", "--beds", "20", "--seconds", "1.5")
    ended(sdk, run)
    actions = sdk.actions(run)
    assert {action.phase for action in actions} == {"succeeded"}, sdk.describe(run)
    for action in actions:
        if action.name != "a0":
            assert sdk.action(run, action.name).pb2.status.duration_ms >= 1500


def test_an_echo_gives_its_inputs_back(cli, sdk):
    run = start(cli, "repeat", "--word", "ha")
    ended(sdk, run)
    assert 'o0="hahaha"' in cli("get", "io", run).stdout
    (parrot,) = [action.name for action in sdk.actions(run) if action.name != "a0"]
    assert sdk.inputs(run, parrot) == {"word": "ha", "times": 3}


def test_a_time_limit_wakes_a_sleeper(cli, sdk):
    run = start(cli, "oversleep")
    ended(sdk, run)
    assert 'o0="woken"' in cli("get", "io", run).stdout
    assert sorted(sdk.phases(run).values()) == ["succeeded", "timed_out"]


def test_a_sleeper_says_that_it_has_no_log(cli, sdk):
    run = start(cli, "nap", "--duration", "PT1S")
    ended(sdk, run)
    (line,) = sdk.log_lines(run)
    assert "without a process" in line


@ours
def test_a_restart_sleeps_for_the_rest_of_the_time(spawn, cli, tmp_path):
    data, log = tmp_path / "data", tmp_path / "server.log"
    first = spawn(data, log)
    here = Cli(cli.executable, write_config(tmp_path / "config.yaml", first.authority), tmp_path)
    try:
        run = start(here, "nap", "--duration", "PT20S")

        def attempt():
            (details,) = here("get", "run", run).python()
            return details["action"]["attempts"][0]

        eventually(lambda: attempt()["phase"] == "ACTION_PHASE_RUNNING", "it to sleep", 60)
        time.sleep(10)
    finally:
        first.process.kill()
        first.process.wait()
    second = spawn(data, log)
    try:
        eventually(lambda: attempt()["phase"] == "ACTION_PHASE_SUCCEEDED", "it to wake", 90)
        (details,) = here("get", "run", run).python()
        assert len(details["action"]["attempts"]) == 1
        slept = int(details["action"]["status"]["durationMs"]) / 1000
        assert 20 <= slept < 30, f"it slept {slept} s in all, of which 10 s before the restart"
    finally:
        assert second.stop() == 0
