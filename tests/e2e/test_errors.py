"""Attempts that end badly: what each keeps, what the next one gets, and what people are told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path

import flyte.errors
import pytest
from flyteidl2.common.phase_pb2 import ActionPhase
from harness import Cli, eventually, write_config

WORKFLOWS = Path(__file__).parent / "workflows"

ours = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="the processes of that server are not ours")


@pytest.fixture
def start(cli):
    def start(file, task, *args):
        return cli("run", file, task, *args, cwd=WORKFLOWS).run_name

    return start


@pytest.fixture
def ended(sdk):
    """Wait until a run has ended; return the details of its root."""

    def ended(run, timeout=120):
        eventually(lambda: sdk.action(run, "a0").done(), f"run {run} to end", timeout, lambda: sdk.describe(run))
        return sdk.action(run, "a0")

    return ended


@pytest.fixture
def said(cli):
    """Wait until a run that is under way has written a line."""

    def said(run, text):
        follower = cli.follow("get", "logs", run, "a0")
        try:
            follower.wait_for(text)
        finally:
            follower.close()

    return said


def phases(attempt):
    return [ActionPhase.Name(t.phase).removeprefix("ACTION_PHASE_").lower() for t in attempt.phase_transitions]


def output(cli, run):
    return cli("get", "io", run, "--outputs-only").stdout.split("o0=", 1)[1].split(")")[0].strip('"')


def test_every_attempt_keeps_its_error_its_log_and_its_times(cli, sdk, start, ended):
    run = start("ends.py", "stumble")
    details = ended(run)
    first, second, third = details.pb2.attempts
    assert [a.attempt for a in (first, second, third)] == [1, 2, 3]
    assert [a.error_info.message for a in (first, second, third)] == ["stumbled on 0", "stumbled on 1", ""]
    assert [a.error_info.code for a in (first, second)] == ["ValueError"] * 2
    assert [phases(a)[-1] for a in (first, second, third)] == ["failed", "failed", "succeeded"]
    assert all("running" in phases(a) for a in (first, second, third))
    times = [t.start_time.ToNanoseconds() for a in (first, second, third) for t in a.phase_transitions]
    assert times == sorted(times)
    for number in range(3):
        lines = sdk.log_lines(run, attempt=number + 1)
        assert [line for line in lines if "attempt number" in line] == [f"this is attempt number {number}"]
        assert f"this is attempt number {number}" in cli("get", "logs", run, "a0", "--attempt", str(number + 1), of=None).text
    assert output(cli, run) == "2"


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_checkpoint_is_handed_on(cli, start, ended, how):
    run = start("ends.py", "climb", "--how", how)
    details = ended(run)
    assert output(cli, run) == "3"
    assert details.attempts == 2
    code = details.pb2.attempts[0].error_info.code
    assert code == {"raise": "ValueError", "kill": "Killed"}[how]


def test_an_attempt_that_saved_nothing_does_not_lose_what_was_saved_before(cli, start, ended):
    run = start("ends.py", "fall_twice")
    assert ended(run).attempts == 3
    assert output(cli, run) == "7"


def test_a_task_that_is_stopped_has_time_to_save(cli, sdk, start, ended):
    """Its time limit passes, and it takes two seconds to write its checkpoint. The next attempt waits for that."""
    run = start("ends.py", "interrupted")
    details = ended(run)
    assert output(cli, run) == "42"
    first, second = details.pb2.attempts
    assert phases(first)[-1] == "timed_out" and first.error_info.code == "MAX_RUNTIME_EXCEEDED"
    assert any("saved after it was stopped" in line for line in sdk.log_lines(run, attempt=1))
    ran = next(t for t in second.phase_transitions if t.phase == ActionPhase.ACTION_PHASE_RUNNING)
    assert ran.start_time.ToMilliseconds() - first.end_time.ToMilliseconds() >= 1500


@ours
def test_a_checkpoint_outlives_the_machine(spawn, cli, tmp_path):
    """Aloft, the task and its shim are killed at once: what a power cut leaves behind."""
    data, log = tmp_path / "data", tmp_path / "server.log"
    first = spawn(data, log)
    here = Cli(cli.executable, write_config(tmp_path / "config.yaml", first.authority), tmp_path)
    try:
        run = here("run", "ends.py", "climb", "--how", "stay", cwd=WORKFLOWS).run_name
        (attempt,) = [data / "attempts/local/flytesnacks/development" / run / "a0/1"]
        saved = lambda: (attempt / "log").exists() and "three steps are saved" in (attempt / "log").read_text()  # noqa: E731
        eventually(saved, "three steps to be saved", 60)
        shim = json.loads((attempt / "shim.json").read_text())
    finally:
        first.process.kill()
        for process in (shim["shim"], shim["task"]):
            # A task may already have followed its shim.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)
        first.process.wait()
    second = spawn(data, log)
    try:

        def action():
            (details,) = here("get", "run", run).python()
            return details["action"]

        eventually(lambda: action()["status"]["phase"] == "ACTION_PHASE_SUCCEEDED", "the run to succeed", 60)
        assert output(here, run) == "3"
        lost, _ = action()["attempts"]
        assert lost["errorInfo"]["code"] == "ProcessLost" and lost["errorInfo"]["kind"] == "KIND_SYSTEM"
    finally:
        assert second.stop() == 0


@ours
def test_an_abort_leaves_time_to_save(cli, sdk, start, said):
    run = start("ends.py", "interrupted")
    said(run, "ready to be stopped")
    cli("abort", "run", run)
    # Ended for everybody at once, whatever the process still does.
    assert sdk.phases(run) == {"a0": "aborted"}
    lines = sdk.log_lines(run)
    assert any("saved after it was stopped" in line for line in lines), lines


def test_a_task_that_cannot_be_loaded_says_that_it_never_ran(sdk, start, ended):
    details = ended(start("unloadable.py", "main"))
    error = details.error_info
    assert error.code == "ModuleNotFoundError"
    assert error.message.startswith("The task never ran: its code could not be loaded.")
    assert "with_pip_packages" in error.message and "a_package_that_nobody_has" in error.message
    assert details.attempts == 2


@ours
def test_a_code_bundle_that_is_gone_says_so(server, sdk, start, said, ended, tmp_path):
    run = start("ends.py", "waits_for", "--path", str(tmp_path / "go"))
    said(run, "waiting")
    args = list(sdk.action(run, "a0").pb2.task.task_template.container.args)
    bundle = args[args.index("--tgz") + 1].removeprefix("s3://")
    stored = server.log.parent / "data/objects" / bundle
    kept = stored.read_bytes()
    stored.unlink()
    try:
        (tmp_path / "go").touch()
        ended(run)
        (leaf,) = [name for name in sdk.phases(run) if name != "a0"]
        error = sdk.action(run, leaf).error_info
        assert error.message.startswith("The task never ran"), error
        assert "flyte delete local-cache" in error.message, error
    finally:
        # Other tests were told that it is there.
        stored.write_bytes(kept)


def test_a_kill_is_not_taken_for_want_of_memory(sdk, start, ended):
    run = start("ends.py", "killed")
    error = ended(run).error_info
    assert error.code == "Killed" and "SIGKILL" in error.message
    with pytest.raises(flyte.errors.RuntimeUserError) as raised:
        flyte.remote.Run.get(run).raise_for_status()
    assert not isinstance(raised.value, flyte.errors.OOMError)


@ours
def test_want_of_memory_is_the_sdks_own_error(cli, start, ended):
    for base, limit in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]:
        group = Path(base) / f"aloft-e2e-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(64 << 20))
            break
        except OSError:
            if group.exists():
                group.rmdir()
    else:
        pytest.skip("no control group can be made here")
    try:
        run = start("ends.py", "feeds", "--group", str(group))
        ended(run)
        assert output(cli, run) == "OOMKilled"
    finally:
        group.rmdir()
