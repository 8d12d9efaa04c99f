"""`make demo`: a real workflow on a fresh Aloft, driven by the official SDK, from the first byte to a clean stop.

usage: demo.py ALOFT [--whom NAME]

Starts `ALOFT dev` in a temporary directory on a free port, with this interpreter for the tasks; runs `main` of
examples/hello.py as any script of a user would; shows what happens while it happens; prints what came out of it, and
stops the server. Exits with 0 only if all of that worked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
START_TIMEOUT, RUN_TIMEOUT, STOP_TIMEOUT = 30.0, 180.0, 20.0
LOG_TAIL = 40
# Phases in the order in which an action goes through them, and how they look.
PHASES = {
    "queued": "dim",
    "waiting_for_resources": "dim",
    "initializing": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "aborted": "magenta",
    "timed_out": "bold red",
}


class Failure(Exception):
    """The demo did not work, and why."""


class Server:
    """`aloft dev`, with a data directory and a configuration of its own below `home`."""

    def __init__(self, binary: Path, home: Path):
        self.log = home / "server.log"
        self.config = home / "config.yaml"
        self.data = home / "data"
        self.began = time.monotonic()
        command = [str(binary), "dev", "--data-dir", str(self.data), "--port", "0", "--python", sys.executable]
        command += ["--write-config", str(self.config)]
        with self.log.open("wb") as sink:
            # A session of its own: Ctrl-C here is ours to handle.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )

    def wait(self) -> float:
        """Wait until it listens; return the seconds that took."""
        endpoint = self.data / "endpoint"
        while time.monotonic() < self.began + START_TIMEOUT:
            if (code := self.process.poll()) is not None:
                raise Failure(f"the server ended with code {code} while it started")
            if endpoint.exists() and (url := endpoint.read_text().strip()):
                self.url = url
                return time.monotonic() - self.began
            time.sleep(0.005)
        raise Failure(f"the server did not listen within {START_TIMEOUT:.0f} s")

    def stop(self) -> float:
        """Stop it as Ctrl-C does; return the seconds that took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            code = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise Failure(f"the server did not stop within {STOP_TIMEOUT:.0f} s of SIGINT") from None
        if code != 0:
            raise Failure(f"the server stopped with code {code}")
        return time.monotonic() - began

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_TAIL:])


class View:
    """A run's actions as a tree, each with a bar that says when it ran."""

    def __init__(self, run: Any, width: int):
        self.run = run
        self.bar = max(12, min(40, width - 56))
        self.actions: list[Any] = []
        self.labels: dict[str, str] = {}

    def refresh(self) -> None:
        import flyte.remote

        self.actions = [action.pb2 for action in flyte.remote.Action.listall(for_run_name=self.run.name)]
        for action in self.actions:
            if action.id.name not in self.labels:
                self.labels[action.id.name] = self.label(action)

    def label(self, action: Any) -> str:
        """What it runs, and with what, as far as that is short."""
        import flyte.remote

        kind = action.metadata.WhichOneof("spec")
        if kind != "task":
            return action.metadata.trace.name
        details = flyte.remote.ActionDetails.get(run_name=self.run.name, name=action.id.name)
        inputs = asyncio.run(details.inputs())
        what = action.metadata.task.id.name.rsplit(".", 1)[-1]
        # In the order of the function's own parameters.
        names = [variable.key for variable in details.pb2.task.task_template.interface.inputs.variables]
        values = [str(inputs[name]) for name in names if name in inputs]
        return f"{what}({', '.join(value for value in values if len(value) <= 12)})"

    @staticmethod
    def phase(action: Any) -> str:
        from flyteidl2.common.phase_pb2 import ActionPhase

        return ActionPhase.Name(action.status.phase).removeprefix("ACTION_PHASE_").lower()

    @staticmethod
    def times(action: Any) -> tuple[float, float]:
        status = action.status
        begin = status.start_time.ToDatetime(timezone.utc).timestamp()
        end = status.end_time.ToDatetime(timezone.utc) if status.HasField("end_time") else datetime.now(timezone.utc)
        return begin, max(begin, end.timestamp())

    def counts(self) -> str:
        found = Counter(map(self.phase, self.actions))
        return ", ".join(f"{found[phase]} {phase.replace('_', ' ')}" for phase in PHASES if found[phase])

    def tree(self) -> Iterator[tuple[str, Any]]:
        """Every action after its parent, with the branches that lead to it."""
        names = {action.id.name for action in self.actions}

        def below(parent: str, lead: str, root: bool) -> Iterator[tuple[str, Any]]:
            here = [a for a in self.actions if (a.metadata.parent if a.metadata.parent in names else "") == parent]
            here.sort(key=lambda a: (a.status.start_time.ToNanoseconds(), a.id.name))
            for n, action in enumerate(here):
                last = n == len(here) - 1
                yield lead + ("" if root else "└─ " if last else "├─ "), action
                yield from below(action.id.name, lead + ("" if root else "   " if last else "│  "), False)

        return below("", "", True)

    def table(self) -> Any:
        """The tree as a table."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        times = [self.times(action) for action in self.actions] or [(0.0, 1.0)]
        first, last = min(begin for begin, _ in times), max(end for _, end in times)
        scale = self.bar / max(last - first, 0.001)
        until = f" {last - first:.1f} s"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), header_style="dim")
        table.add_column("action", no_wrap=True)
        table.add_column("phase", no_wrap=True)
        table.add_column("try", justify="right", no_wrap=True)
        table.add_column("took", justify="right", no_wrap=True)
        table.add_column(f"0 s {'─' * (self.bar - 4 - len(until))}{until}", no_wrap=True)
        for lead, action in self.tree():
            phase, attempts = self.phase(action), action.status.attempts
            is_task = action.metadata.WhichOneof("spec") == "task"
            style = PHASES.get(phase, "")
            begin, end = self.times(action)
            at = min(self.bar - 1, int((begin - first) * scale))
            wide = max(1, min(self.bar - at, round((end - begin) * scale)))
            table.add_row(
                Text(lead, "dim") + Text(self.labels[action.id.name], "bold" if is_task else "italic"),
                Text(phase.replace("_", " "), style),
                Text(str(attempts) if is_task else "", "bold yellow" if attempts > 1 else "dim"),
                f"{end - begin:.2f} s",
                Text(" " * at + "━" * wide, style),
            )
        return table


def follow(console: Any, run: Any) -> View:
    """Show the run until it has ended; the last view of it."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    view = View(run, console.width)
    over: dict[str, Any] = {}

    def wait() -> None:
        try:
            run.wait(quiet=True)
            over["done"] = True
        except BaseException as error:
            over["error"] = error

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    began, said = time.monotonic(), ""

    def show() -> Any:
        line = Text.assemble((f"{time.monotonic() - began:5.1f} s  ", "dim"), view.counts())
        return Group(view.table(), line)

    live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
    if live:
        live.start()
    try:
        while waiter.is_alive():
            if time.monotonic() > began + RUN_TIMEOUT:
                raise Failure(f"the run is not over after {RUN_TIMEOUT:.0f} s: {view.counts()}")
            view.refresh()
            if live:
                live.update(show(), refresh=True)
            elif (counts := view.counts()) != said:
                said = counts
                console.print(f"  {time.monotonic() - began:5.1f} s  {counts}", highlight=False)
            waiter.join(0.1)
    finally:
        if live:
            live.stop()
    if "error" in over:
        raise over["error"]
    view.refresh()
    return view


def errors_of(run: Any, view: View) -> Iterator[str]:
    import flyte.remote

    for action in view.actions:
        error = flyte.remote.ActionDetails.get(run_name=run.name, name=action.id.name).error_info
        if error and View.phase(action) != "succeeded":
            yield f"{action.id.name}: {error.code}: {error.message.strip()}"


def demo(console: Any, server: Server, whom: str) -> None:
    took = server.wait()
    console.print(f"[bold]Aloft[/] listens on [cyan]{server.url}[/] [dim]{took * 1000:.0f} ms after it was started[/]")
    import flyte

    sys.path.insert(0, str(EXAMPLES))
    import hello

    # From here on, what any script of a user does.
    flyte.init_from_config(server.config, root_dir=EXAMPLES)
    began = time.monotonic()
    run = flyte.run(hello.main, whom=whom)
    console.print(f"Run [bold]{run.name}[/] of examples/hello.py [dim]bundled and sent in {time.monotonic() - began:.2f} s[/]")
    console.print(f"[cyan]{run.url}[/]\n", soft_wrap=True)
    try:
        view = follow(console, run)
    except BaseException:
        # Tasks outlive their server on purpose, so they are stopped before it is.
        stop_tasks(run, server)
        raise
    console.print(view.table())
    console.print()
    if (phase := View.phase(run.action.pb2)) != "succeeded":
        raise Failure("\n".join([f"the run {phase}", *errors_of(run, view)]))
    (board,) = run.outputs()
    console.print(board, markup=False, highlight=False)
    console.print()


def stop_tasks(run: Any, server: Server) -> None:
    try:
        run.abort(reason="the demo ends")
        deadline = time.monotonic() + 10
        while any((server.data / "attempts" / ".live").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
    except Exception as error:
        print(f"the run could not be aborted: {error}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run examples/hello.py on a fresh Aloft.")
    parser.add_argument("aloft", type=Path, help="the binary")
    parser.add_argument("--whom", default="world", help="whom to greet")
    arguments = parser.parse_args()

    home = Path(tempfile.mkdtemp(prefix="aloft-demo-"))
    # The SDK remembers what it has uploaded, for a day and for every server: not for this one.
    for name in [name for name in os.environ if name.startswith(("FLYTE", "UCTL", "_U_", "_F_"))]:
        del os.environ[name]
    os.environ.update(HOME=str(home), DO_NOT_TRACK="1")
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=96)
    began = time.monotonic()
    server = Server(arguments.aloft.resolve(), home)
    failure: BaseException | None = None
    try:
        demo(console, server, arguments.whom)
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    try:
        took = server.stop()
    except Failure as error:
        failure = failure or error
    if failure is None:
        shutil.rmtree(home, ignore_errors=True)
        console.print(f"Aloft stopped cleanly [dim]in {took * 1000:.0f} ms; all in {time.monotonic() - began:.1f} s[/]")
        console.print("[dim]Now yours:[/] aloft dev --write-config [dim]and then[/] "
                      "flyte run --follow examples/hello.py main", soft_wrap=True)  # fmt: skip
        return 0
    if isinstance(failure, KeyboardInterrupt):
        console.print("interrupted")
        shutil.rmtree(home, ignore_errors=True)
        return 130
    what = str(failure) if isinstance(failure, Failure) else f"{type(failure).__name__}: {failure}"
    console.print(f"[bold red]The demo failed:[/] {what}", markup=True)
    console.print(f"[dim]--- the end of {server.log} ---[/]")
    console.print(server.tail(), markup=False, highlight=False)
    return 1


if __name__ == "__main__":
    sys.exit(main())
