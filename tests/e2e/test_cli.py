"""The `flyte` command line, as a person would use it."""

from __future__ import annotations

import re
import uuid

import pytest
from harness import ANSI, Cli, write_config


def unique(prefix: str) -> str:
    """A name that nothing else on a shared server has."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def hello(cli):
    """A finished run of hello.py, and what following it printed."""
    name = unique("hello")
    label = f"suite={name}"
    output = cli("run", "--follow", "--name", name, "--label", label, "hello.py", "main", "--whom", "CLI", of=None)
    assert output.run_name == name
    cli.succeeded(name)
    return output


@pytest.fixture(scope="module")
def doors(cli):
    """A finished run of user_errors.py, two of whose children failed."""
    return cli.succeeded(cli("run", "--follow", "user_errors.py", "main").run_name)


def retried_action(cli: Cli, run: str) -> str:
    """The one action of a run that took two attempts."""
    (name,) = [a["id"]["name"] for a in cli("get", "action", run).json() if a["status"].get("attempts") == 2]
    return name


# run --follow


def test_run_follow_prints_the_log_and_the_link(hello, server):
    assert "| Welsh      Helo, CLI!" in hello.stdout
    assert re.search(r"Scrolled \d+ lines of logs", hello.stdout)
    path = f"/v2/domain/development/project/flytesnacks/runs/{hello.run_name}"
    assert f"http://{server.authority}{path}" in hello.stdout


def test_run_refuses_a_name_that_is_taken(cli, hello):
    again = cli("run", "--name", hello.run_name, "hello.py", "main", code=None)
    assert again.code != 0
    assert "already" in again.text.lower()


# get run


def test_get_run_lists(cli, hello):
    # The server may hold many runs by now; the label picks ours.
    (run,) = cli("get", "run", "--with-label", f"suite={hello.run_name}").json()
    action = run["action"]
    assert action["id"]["run"]["name"] == hello.run_name
    assert action["id"]["name"] == "a0"
    assert action["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"
    assert action["metadata"]["task"]["id"]["name"] == "hello.main"


def test_get_run_filters(cli, hello, doors):
    def names(*flags: str) -> list[str]:
        return [run["action"]["id"]["run"]["name"] for run in cli("get", "run", "--limit", "1000", *flags).json()]

    assert {hello.run_name, doors} <= set(names())
    assert hello.run_name in names("--task-name", "hello.main")
    assert doors not in names("--task-name", "hello.main")
    assert hello.run_name in names("--in-phase", "succeeded")
    assert hello.run_name not in names("--in-phase", "failed")
    assert len(names("--in-phase", "succeeded")) >= 2
    assert len(cli("get", "run", "--limit", "1").json()) == 1


def test_get_run_shows_one(cli, hello):
    (details,) = cli("get", "run", hello.run_name).python()
    assert details["action"]["id"]["run"]["name"] == hello.run_name
    assert details["action"]["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"
    assert details["runSpec"]["labels"]["values"] == {"suite": hello.run_name}
    assert details["action"]["attempts"][0]["phase"] == "ACTION_PHASE_SUCCEEDED"


def test_get_run_of_an_unknown_name_fails(cli):
    missing = cli("get", "run", "no-such-run", code=None)
    assert missing.code != 0
    assert "not found" in missing.text.lower() or "not_found" in missing.text.lower()


# get action


def test_get_action_lists(cli, hello):
    actions = cli("get", "action", hello.run_name).json()
    assert len(actions) == 12
    assert actions[0]["id"]["name"] == "a0"
    assert {a["status"]["phase"] for a in actions} == {"ACTION_PHASE_SUCCEEDED"}
    assert {a["metadata"].get("parent", "") for a in actions} == {"", "a0"}


def test_get_action_filters_by_phase(cli, doors):
    assert len(cli("get", "action", doors, "--in-phase", "failed").json()) == 2
    assert len(cli("get", "action", doors, "--in-phase", "succeeded").json()) == 2


def test_get_action_shows_one(cli, doors):
    failed = cli("get", "action", doors, "--in-phase", "failed").json()
    errors = {}
    for action in failed:
        (details,) = cli("get", "action", doors, action["id"]["name"]).python()
        assert details["metadata"]["task"]["id"]["name"] == "user_errors.open_door"
        assert details["metadata"]["parent"] == "a0"
        errors[details["errorInfo"]["code"]] = (details["errorInfo"]["message"], details["errorInfo"]["kind"])
    assert errors == {
        "ValueError": ("door 1 is painted on the wall", "KIND_USER"),
        "DoorLocked": ("door 2 is locked", "KIND_USER"),
    }


# get io


def test_get_io(cli, hello):
    both = cli("get", "io", hello.run_name).stdout
    assert re.search(r"Inputs\s.*whom.*CLI.*Outputs\s.*o0=.*Helo, CLI!", both, re.DOTALL)
    assert "Helo, CLI!" not in cli("get", "io", hello.run_name, "--inputs-only").stdout
    assert "'whom'" not in cli("get", "io", hello.run_name, "--outputs-only").stdout


def test_get_io_of_an_action(cli, hello):
    output = cli("get", "io", hello.run_name, retried_action(cli, hello.run_name)).stdout
    assert "Klingon" in output
    assert 'o0="nuqneH, CLI!"' in output


# get logs


def test_get_logs_of_a_finished_run(cli):
    run = cli.succeeded(cli("run", "--follow", "logs.py", "main", "--lines", "60").run_name)
    output = cli("get", "logs", run, of=None)
    lines = [line.strip() for line in output.raw.splitlines()]
    numbers = [int(match[1]) for line in lines if (match := re.search(r"line (\d{4})", line))]
    assert numbers == list(range(60))
    assert "\x1b[31mline 0000\x1b[0m of 60" in lines
    assert "that is all" in lines


def test_get_logs_with_timestamps(cli, hello):
    output = cli("get", "logs", hello.run_name, "--show-ts", of=None).stdout
    stamps = re.findall(r"^\[(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*)\]", output, re.MULTILINE)
    assert len(stamps) >= 12
    assert stamps == sorted(stamps)


def test_get_logs_of_each_attempt(cli, hello):
    retried = retried_action(cli, hello.run_name)
    first = cli("get", "logs", hello.run_name, retried, "--attempt", "1", of=None).stdout
    assert "the Klingon hung up" in first
    assert "nuqneH, CLI!" not in first
    last = cli("get", "logs", hello.run_name, retried, of=None).stdout
    assert "Klingon: nuqneH, CLI!" in last
    assert "hung up" not in last


def test_get_logs_follows_a_running_action(cli, sdk):
    run = cli("run", "logs.py", "main", "--lines", "3000", "--pause", "0.2").run_name
    follower = cli.follow("get", "logs", run)
    try:
        first = follower.wait_for("line 0000")
        assert "\x1b[31mline 0000\x1b[0m of 3000" in first
        # The lines come as they are printed, ten minutes before the task would end.
        follower.wait_for("line 0003", timeout=20)
        assert sdk.phases(run) == {"a0": "running"}
        cli("abort", "run", run)
        lines = follower.finish(timeout=60)
    finally:
        follower.close()
    numbers = [int(match[1]) for line in lines if (match := re.search(r"line (\d{4})", ANSI.sub("", line)))]
    assert numbers == list(range(len(numbers)))


# abort


def test_abort_run(cli, sdk):
    run = cli("run", "abort.py", "main", "--seconds", "300").run_name
    sdk.until(run, lambda phases: list(phases.values()) == ["running"] * 3, "the sleepers to run")
    output = cli("abort", "run", run, "--reason", "enough")
    assert f"Run '{run}' has been aborted" in output.text
    sdk.until(run, lambda phases: set(phases.values()) == {"aborted"}, "all of it to be aborted", timeout=30)
    (details,) = cli("get", "run", run).python()
    assert details["action"]["abortInfo"]["reason"] == "enough"


def test_abort_action(cli, sdk):
    run = cli("run", "abort.py", "main", "--seconds", "300", "--sleepers", '["Zoe"]').run_name
    phases = sdk.until(run, lambda phases: list(phases.values()) == ["running"] * 2, "the sleeper to run")
    (child,) = set(phases) - {"a0"}
    output = cli("abort", "action", run, child, "--reason", "breakfast")
    assert f"Action '{child}' for run '{run}' has been aborted" in output.text
    sdk.until(run, lambda phases: phases == {"a0": "succeeded", child: "aborted"}, "the parent to go on", timeout=60)
    assert "Zoe was woken" in cli("get", "io", run, "--outputs-only").stdout
    (details,) = cli("get", "action", run, child).python()
    assert details["abortInfo"]["reason"] == "breakfast"


# deploy, get task, run deployed-task


@pytest.fixture(scope="module")
def deployed(cli):
    """The version under which fan_out.py is deployed."""
    version = unique("v")
    entities = cli("deploy", "--version", version, "fan_out.py", "env").json_documents()[-1]
    # The names come wrapped in links to the tasks' pages.
    names = sorted(re.sub(r"\[/?link[^]]*\]", "", entity["name"]) for entity in entities)
    assert names == ["fan_out.count_primes", "fan_out.main"]
    assert {entity["version"] for entity in entities} == {version}
    return version


def test_deploy_again_changes_nothing(cli, deployed):
    cli("deploy", "--version", deployed, "fan_out.py", "env")
    listed = cli("get", "task", "fan_out.main", "--limit", "1000").json()
    assert [task["taskId"]["version"] for task in listed].count(deployed) == 1


def test_get_task_lists(cli, deployed):
    names = {task["taskId"]["name"] for task in cli("get", "task", "--limit", "1000").json()}
    assert {"fan_out.main", "fan_out.count_primes"} <= names


def test_get_task_shows_one(cli, deployed):
    (task,) = cli("get", "task", "fan_out.main", deployed).python()
    assert task["taskId"]["name"] == "fan_out.main"
    assert task["taskId"]["version"] == deployed
    variables = task["spec"]["taskTemplate"]["interface"]["inputs"]["variables"]
    assert [variable["key"] for variable in variables] == ["limit", "pieces"]


@pytest.mark.parametrize("which", ["latest", "version"])
def test_run_a_deployed_task(cli, sdk, deployed, which):
    task = "fan_out.main" if which == "latest" else f"fan_out.main:{deployed}"
    run = cli("run", "--follow", "deployed-task", task, "--limit", "1000", "--pieces", "2").run_name
    cli.succeeded(run)
    assert len(sdk.actions(run)) == 3
    assert "o0=168" in cli("get", "io", run).stdout


def test_a_deployed_task_has_its_default_inputs(cli, deployed):
    run = cli("run", "--follow", "deployed-task", "fan_out.main", "--pieces", "1").run_name
    cli.succeeded(run)
    assert "o0=1229" in cli("get", "io", run).stdout


# projects


def test_projects(cli, tmp_path, server):
    project = unique("attic")
    create = ("create", "project", "--id", project)
    made = cli(*create, "--name", "The attic", "--description", "Old things", "--label", "team=mice")
    assert "created" in made.text

    listed = {p["id"]: p for p in cli("get", "project").json()}
    assert {"flytesnacks", project} <= set(listed)
    assert listed[project]["name"] == "The attic"

    shown = cli("get", "project", project).text
    assert "Old things" in shown and "team" in shown and "mice" in shown

    again = cli(*create, "--name", "Another", code=None)
    assert again.code != 0
    assert "already" in again.text.lower()

    # A run of the new project is seen there and nowhere else.
    run = cli("run", "--project", project, "--follow", "groups.py", "main", "--rolls", "1").run_name
    there = Cli(cli.executable, write_config(tmp_path / "attic.yaml", server.authority, project), tmp_path)
    there.succeeded(run)
    assert [r["action"]["id"]["run"]["name"] for r in there("get", "run").json()] == [run]
    assert "d20" in there("get", "io", run).stdout
    here = [r["action"]["id"]["run"]["name"] for r in cli("get", "run", "--limit", "1000").json()]
    assert run not in here


# whoami


def test_whoami(cli):
    output = cli("whoami", of=None)
    assert re.search(r'"(subject|name|preferredUsername)": "[^"]+"', output.stdout), output.text
