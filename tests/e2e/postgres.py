"""A Postgres for tests that stop, kill or share one."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import urllib.parse
from pathlib import Path

from harness import REPOSITORY, eventually


class Postgres:
    """A server with a directory of its own. It listens on a socket there and nowhere else."""

    def __init__(self):
        # The path of a socket has little room.
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.start()

    def start(self) -> None:
        script = REPOSITORY / "tools" / "postgres.sh"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([script, self.directory], stdout=log, stderr=log, start_new_session=True)
        eventually(self.ready, "Postgres to start", about=lambda: (self.directory / "log").read_text()[-2000:])

    @property
    def url(self) -> str:
        return f"postgres://aloft@{urllib.parse.quote(str(self.directory), safe='')}/aloft"

    def ready(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
        # Its lock file may be that of the one before, which was killed.
        asked = ["psql", "-qh", str(self.directory), "-U", "aloft", "aloft", "-c", "SELECT 1"]
        return subprocess.run(asked, capture_output=True).returncode == 0

    def stop(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(60)
        # What is left of a killed one would be in the way of the next.
        eventually(lambda: not subprocess.run(["pgrep", "-f", f"{self.directory}/?data"], capture_output=True).stdout, "its end")
