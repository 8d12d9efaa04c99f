"""Runs that ended long ago are given up, and nothing else is.

Nobody waits ten minutes here: the database is told that some runs ended long ago, and the server that runs on it is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import wire
from harness import EXAMPLES, RUN_TIMEOUT, Cli, eventually, schema_for, tail, write_config
from test_config import started  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="these tests start servers of their own")

WORKFLOWS = Path(__file__).parent / "workflows"
RUNS = "flyteidl2.workflow.RunService"
RETENTION = ("--set", "retention.runs=1h", "--set", "retention.every=1s")


class Database:
    """The database of a server, looked at from the side."""

    def __init__(self, directory: Path):
        self.file = directory / "aloft.db"
        self.url = schema_for(directory)

    @property
    def arguments(self) -> list[str]:
        return ["--database-url", self.url] if self.url else []

    def execute(self, sql: str) -> list[tuple]:
        if self.url:
            schema = self.url.rsplit("%3D", 1)[1]
            command = ["psql", "-AtqF", "\t", "-h", os.environ["ALOFT_E2E_POSTGRES"], "-U", "aloft", "aloft"]
            done = subprocess.run(
                [*command, "-c", f"SET search_path = {schema}", "-c", sql], check=True, capture_output=True, text=True
            )
            return [tuple(line.split("\t")) for line in done.stdout.splitlines()]
        with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as db, db:
            return [tuple(map(str, row)) for row in db.execute(sql)]

    def age(self, *runs: str, hours: int) -> None:
        """Make runs as old as if everything had happened so many hours earlier."""
        micros, names = hours * 3_600_000_000, ", ".join(f"'{run}'" for run in runs)
        self.execute(
            f"UPDATE run_index SET created_at = created_at - {micros}, updated_at = updated_at - {micros}"
            f" WHERE name IN ({names})"
        )

    def count(self, table: str) -> int:
        return int(self.execute(f"SELECT count(*) FROM {table}")[0][0])


@pytest.fixture
def database(tmp_path) -> Database:
    return Database(tmp_path / "data")


@pytest.fixture
def flyte(tmp_path):
    def of(server) -> Cli:
        config = write_config(tmp_path / "config.yaml", server.authority)
        return Cli(Path(sys.executable).parent / "flyte", config, tmp_path)

    return of


def exists(server, run: str) -> bool:
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": run}
    try:
        wire.unary(server, f"{RUNS}/GetRunDetails", {"runId": run_id})
    except wire.Failed as error:
        assert error.code == "not_found", error
        return False
    return True


def listed(server) -> set[str]:
    runs = wire.unary(server, f"{RUNS}/ListRuns", {"org": "local"}).get("runs", [])
    return {run["action"]["id"]["run"]["name"] for run in runs}


def removed(server, kind: str) -> float:
    text = server.asked("/metrics")[1]
    line = next(line for line in text.splitlines() if line.startswith(f'aloft_retention_removed_total{{kind="{kind}"}}'))
    return float(line.rsplit(" ", 1)[1])


def test_old_runs_go_and_the_others_stay(started, database, flyte, tmp_path):  # noqa: F811
    server = started(*RETENTION, *database.arguments)
    cli = flyte(server)
    old = [cli("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT).run_name for _ in range(2)]
    young = cli("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT).run_name
    waiting = cli("run", str(EXAMPLES / "conditions.py"), "main", timeout=RUN_TIMEOUT).run_name
    actions, events = database.count("actions"), database.count("events")
    each = database.execute(
        f"SELECT count(*) FROM actions a JOIN runs r ON r.id = a.run_id WHERE r.name = '{old[0]}'"
    )
    database.age(*old, waiting, hours=2)
    eventually(lambda: not any(exists(server, run) for run in old), "the old runs to go", about=lambda: tail(server.log))
    assert listed(server) == {young, waiting}, "what runs or is young stays"

    # What is left of them is removed; nothing else is.
    eventually(lambda: database.count("pruning") == 0, "the rows to go", about=lambda: tail(server.log))
    orphans = "SELECT count(*) FROM {} WHERE run_id NOT IN (SELECT id FROM runs)"
    for table in ("actions", "events", "run_labels"):
        assert database.execute(orphans.format(table)) == [("0",)], table
    assert database.execute("SELECT count(*) FROM blobs WHERE run_id NOT IN (SELECT id FROM runs)") == [("0",)]
    assert int(each[0][0]) > 1
    assert database.count("actions") >= actions - 2 * int(each[0][0])
    assert removed(server, "runs") == 2
    assert removed(server, "actions") == 2 * int(each[0][0])
    assert removed(server, "events") >= events - database.count("events") - 50 > 0
    said = [json.loads(line) for line in server.log_since(0).splitlines()]
    assert any("gave up history" in record["message"] and record["runs"] >= 1 for record in said), tail(server.log)

    # What a person sees who asks for one that is gone.
    gone = cli("get", "run", old[0], code=None)
    assert gone.code != 0
    assert f"run {old[0]} does not exist in project flytesnacks" in gone.text, gone.text
    assert "runs of this project are kept for 1 hour after their end" in gone.text, gone.text
    shown = cli("get", "run")
    assert young in shown.text and old[0] not in shown.text
    assert "Traceback" not in gone.text, gone.text
    logs = cli("get", "logs", old[0], code=None)
    assert logs.code != 0 and "does not exist" in logs.text, logs.text

    # Its name is free.
    again = cli("run", "--follow", "--name", old[0], str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT)
    assert again.code == 0, again.text
    assert exists(server, old[0])
    assert server.stop() == 0


def test_a_run_that_is_recovered_stays_until_that_is_over(started, database, flyte):  # noqa: F811
    server = started(*RETENTION, *database.arguments)
    cli = flyte(server)
    source = cli("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT).run_name
    waiting = cli("run", str(EXAMPLES / "conditions.py"), "main", timeout=RUN_TIMEOUT).run_name
    related = f"UPDATE runs SET related_to = '{source}' WHERE name = '{waiting}'"
    database.execute(related)
    other = cli("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT).run_name
    database.age(source, other, hours=2)
    eventually(lambda: not exists(server, other), "another old run to go", about=lambda: tail(server.log))
    assert exists(server, source)
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": waiting}
    wire.unary(server, f"{RUNS}/AbortRun", {"runId": run_id})
    eventually(lambda: not exists(server, source), "the source to go", about=lambda: tail(server.log))
    assert exists(server, waiting)


def test_a_run_finds_nothing_of_an_earlier_one_of_its_name(started, database, flyte):  # noqa: F811
    server = started(*RETENTION, *database.arguments)
    cli = flyte(server)

    def run(*more: str, code: int | None = 0):
        command = ["run", "--follow", *more[:-1], "again.py", "main", "--word", more[-1]]
        return cli(*command, code=code, timeout=RUN_TIMEOUT, cwd=WORKFLOWS)

    def outputs(name: str) -> str:
        return cli("get", "io", name, "--outputs-only").text

    failed = run("--name", "again", "bad", code=None)
    assert "bad does not work" in failed.text, failed.text
    database.age("again", hours=2)
    eventually(lambda: not exists(server, "again"), "the first to go", about=lambda: tail(server.log))
    second = run("--name", "again", "second")
    assert "part of second" in outputs("again"), second.text
    logs = cli("get", "logs", "again").text
    assert "this is second" in logs and "this is bad" not in logs, logs

    # What the second had in the cache is not what the third of the name writes.
    database.age("again", hours=2)
    eventually(lambda: not exists(server, "again"), "the second to go", about=lambda: tail(server.log))
    run("--name", "again", "third")
    cached = run("second").run_name
    assert "part of second" in outputs(cached)
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": cached}
    found = wire.unary(server, f"{RUNS}/ListActions", {"runId": run_id})["actions"]
    assert "CACHE_HIT" in {action.get("status", {}).get("cacheStatus") for action in found}, found


def test_a_cached_result_outlives_the_run_that_computed_it(started, database, flyte):  # noqa: F811
    server = started(*RETENTION, *database.arguments)
    cli = flyte(server)
    first = cli("run", "--follow", str(EXAMPLES / "caching.py"), "main", timeout=RUN_TIMEOUT)
    database.age(first.run_name, hours=2)
    eventually(lambda: not exists(server, first.run_name), "the run to go", about=lambda: tail(server.log))
    second = cli("run", "--follow", str(EXAMPLES / "caching.py"), "main", timeout=RUN_TIMEOUT)
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": second.run_name}
    found = wire.unary(server, f"{RUNS}/ListActions", {"runId": run_id})["actions"]
    statuses = {action.get("status", {}).get("cacheStatus") for action in found}
    assert "CACHE_HIT" in statuses, found


def test_two_that_look_at_once_and_a_kill_do_no_harm(started, database, flyte, tmp_path):  # noqa: F811
    server = started(*RETENTION, *database.arguments)
    cli = flyte(server)
    runs = [cli("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT).run_name for _ in range(3)]
    database.age(*runs[:2], hours=2)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    again = started(*RETENTION, *database.arguments)
    others = [again]
    if database.url:
        others.append(started(*RETENTION, *database.arguments, data=tmp_path / "other"))
    eventually(lambda: listed(again) == {runs[2]}, "the old runs to go", about=lambda: tail(again.log))
    eventually(lambda: database.count("pruning") == 0, "the rows to go")
    assert all(listed(one) == {runs[2]} for one in others)
