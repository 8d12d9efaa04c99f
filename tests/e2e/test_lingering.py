"""A process that goes on after it has written how it ended: what it wrote stands, and nothing of it stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

import wire
from harness import RUN_TIMEOUT, eventually
from test_config import started  # noqa: F401  (a fixture)
from test_observability import flyte  # noqa: F401  (a fixture)

LINGERS = Path(__file__).parent / "workflows/lingers.py"
RUNS = "flyteidl2.workflow.RunService"


def ended(server, run: str) -> dict:
    """The details of a run's first action, once it has ended."""
    id = {"run": {"org": "local", "project": "flytesnacks", "domain": "development", "name": run}, "name": "a0"}

    def details() -> dict | None:
        found = wire.unary(server, f"{RUNS}/GetActionDetails", {"actionId": id})["details"]
        return found if "endTime" in found["status"] else None

    return eventually(details, f"run {run} to end", 60)


def nothing_of_it_lives(run: str) -> None:
    def quiet() -> bool:
        return not subprocess.run(["pgrep", "-f", f"attempts/.*{run}"], capture_output=True, text=True).stdout

    eventually(quiet, f"the processes of {run} to end", 30)


def test_what_a_lingering_task_wrote_stands(started, flyte):  # noqa: F811
    server = started("--set", "executor.linger=2s")
    cli = flyte(server)

    def run(*args: str) -> str:
        return cli("run", LINGERS.name, "main", *args, timeout=RUN_TIMEOUT, cwd=LINGERS.parent).run_name

    good, bad = run(), run("--fail")

    found = ended(server, good)
    assert found["status"]["phase"] == "ACTION_PHASE_SUCCEEDED" and len(found["attempts"]) == 1
    assert "o0=7" in cli("get", "io", good).text
    assert "wrote how it ended 2s ago" in cli("get", "logs", good, of=None).text
    nothing_of_it_lives(good)

    found = ended(server, bad)
    assert found["status"]["phase"] == "ACTION_PHASE_FAILED" and len(found["attempts"]) == 1
    assert "it went wrong before it hung" in found["errorInfo"]["message"]
    nothing_of_it_lives(bad)
