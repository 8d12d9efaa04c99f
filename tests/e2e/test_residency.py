"""The control plane holds no users' data (design rule 7): a canary value is in the object store and nowhere else."""

from __future__ import annotations

import os
import uuid

import pytest
from harness import Cli, write_config

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="that server's data are not ours to read")


def holding(directory, needle: bytes) -> set[str]:
    """The files below `directory` that hold `needle`."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)) for path in files if needle in path.read_bytes()}


def test_values_stay_out_of_the_database_and_of_the_servers_log(spawn, cli, tmp_path):
    data, log = tmp_path / "data", tmp_path / "server.log"
    canary = f"canary{uuid.uuid4().hex}"
    server = spawn(data, log)
    here = Cli(cli.executable, write_config(tmp_path / "config.yaml", server.authority), tmp_path)
    try:
        run = here("run", "--follow", "hello.py", "main", "--whom", canary).run_name
        here.succeeded(run)
        assert canary in here("get", "io", run).stdout
        assert canary in here("get", "logs", run, of=None).stdout
        while_running = holding(data, canary.encode())
    finally:
        assert server.stop() == 0
    found = while_running | holding(data, canary.encode())
    assert found and all(name.startswith(("objects/", "attempts/")) for name in found), sorted(found)
    assert canary not in log.read_text()
