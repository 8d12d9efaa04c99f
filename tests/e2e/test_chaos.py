"""Half a minute of `tests/chaos/chaos.py` on each store: an hour of it is `make chaos`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="this test kills servers of its own")

CHAOS = Path(__file__).parents[1] / "chaos" / "chaos.py"


@pytest.mark.parametrize("store", ["postgres", "sqlite"])
def test_kills_lose_nothing_and_repeat_nothing(binary, store):
    command = [sys.executable, CHAOS, binary, "--minutes", "0.5", "--store", store]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost, nothing done again" in done.stdout
    deaths = re.search(r"(\d+) deaths at failpoints", done.stdout)
    assert deaths and int(deaths[1]) > 0, "the binary has no failpoints: build it with --features failpoints"
