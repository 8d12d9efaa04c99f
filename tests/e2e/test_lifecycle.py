"""Starting, stopping and starting again."""

from __future__ import annotations

import os

import pytest
from harness import Cli, write_config

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="that server is not ours to stop")


def test_a_restart_keeps_everything(spawn, cli, tmp_path):
    data, log = tmp_path / "data", tmp_path / "server.log"

    first = spawn(data, log)
    here = Cli(cli.executable, write_config(tmp_path / "config.yaml", first.authority), tmp_path)
    try:
        run = here("run", "--follow", "nested.py", "main", "--numbers", "[3, 1, 2]").run_name
        here.succeeded(run)
        here("deploy", "--version", "v1", "nested.py", "env")
    finally:
        code = first.stop()
    assert code == 0

    second = spawn(data, log)
    try:
        # Tasks that outlive a restart must find the server where it was.
        assert second.endpoint == first.endpoint
        (listed,) = here("get", "run").json()
        assert listed["action"]["id"]["run"]["name"] == run
        assert listed["action"]["status"]["phase"] == "ACTION_PHASE_SUCCEEDED"
        assert len(here("get", "action", run).json()) == 4
        assert "o0=[1, 2, 3]" in here("get", "io", run).stdout
        here("get", "logs", run, of=None)
        again = here("run", "--follow", "deployed-task", "nested.main", "--numbers", "[6, 5, 4]").run_name
        here.succeeded(again)
        assert "o0=[4, 5, 6]" in here("get", "io", again).stdout
    finally:
        code = second.stop()
    assert code == 0
