"""Aloft on a real Postgres, which goes away and comes back while runs go on.

The whole suite runs on Postgres too: `tools/postgres.sh DIR` in one terminal, `ALOFT_E2E_POSTGRES=DIR make test-e2e` in another.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import wire
from harness import DOMAIN, PROJECT, Cli, eventually, write_config
from postgres import Postgres

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="the database of that server is not ours")

WORKFLOWS = Path(__file__).parent / "workflows"
RUNS = "flyteidl2.workflow.RunService"


@pytest.fixture
def postgres(monkeypatch):
    server = Postgres()
    monkeypatch.setenv("ALOFT_E2E_POSTGRES", str(server.directory))
    yield server
    if server.process.poll() is None:
        server.stop(signal.SIGINT)
    shutil.rmtree(server.directory, ignore_errors=True)


@pytest.fixture
def aloft(postgres, spawn, tmp_path):
    server = spawn(tmp_path / "data", tmp_path / "server.log")
    yield server
    assert server.stop() == 0
    assert "panicked at" not in (tmp_path / "server.log").read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["restarted", "killed"])
def test_a_run_outlives_its_database(how, postgres, aloft, cli, tmp_path):
    here = Cli(cli.executable, write_config(tmp_path / "config.yaml", aloft.authority), tmp_path)
    run = here("run", "steady.py", "main", "--rounds", "10", cwd=WORKFLOWS).run_name
    scope = {"org": "", "project": PROJECT, "domain": DOMAIN}

    def actions() -> list[dict]:
        request = {"runId": {**scope, "name": run}, "request": {"limit": 100}}
        return wire.unary(aloft, f"{RUNS}/ListActions", request).get("actions", [])

    eventually(lambda: len(actions()) > 9, "the run to be in the middle")
    postgres.stop(how)
    with pytest.raises(wire.Failed) as refused:
        wire.unary(aloft, f"{RUNS}/ListRuns", {"projectId": {"name": PROJECT, "domain": DOMAIN}, "request": {"limit": 10}})
    assert refused.value.code == "unavailable" and "database is unavailable" in refused.value.message
    # Long enough for everything that works in the background to have failed.
    time.sleep(2)
    postgres.start()

    def ended() -> dict | None:
        details = wire.unary(aloft, f"{RUNS}/GetRunDetails", {"runId": {**scope, "name": run}})["details"]["action"]
        return details if "endTime" in details["status"] else None

    details = eventually(ended, "the run to end")
    assert details["status"]["phase"] == "ACTION_PHASE_SUCCEEDED", details
    names = [a["id"]["name"] for a in actions()]
    assert len(names) == len(set(names)) == 41
    assert {a["status"]["phase"] for a in actions()} == {"ACTION_PHASE_SUCCEEDED"}
    assert "o0=1560" in here("get", "io", run).text


def test_what_was_acknowledged_is_there_when_both_were_killed(postgres, spawn, cli, tmp_path):
    first = spawn(tmp_path / "data", tmp_path / "server.log")
    here = Cli(cli.executable, write_config(tmp_path / "config.yaml", first.authority), tmp_path)
    runs = [here("run", "steady.py", "main", "--rounds", "2", cwd=WORKFLOWS).run_name for _ in range(2)]
    first.process.kill()
    postgres.stop(signal.SIGKILL)
    first.process.wait()
    postgres.start()
    second = spawn(tmp_path / "data", tmp_path / "server.log")
    try:
        for run in runs:

            def phase() -> str:
                id = {"org": "", "project": PROJECT, "domain": DOMAIN, "name": run}
                details = wire.unary(second, f"{RUNS}/GetRunDetails", {"runId": id})["details"]
                return details["action"]["status"]["phase"]

            eventually(lambda: phase() == "ACTION_PHASE_SUCCEEDED", f"run {run} to succeed")
    finally:
        assert second.stop() == 0
