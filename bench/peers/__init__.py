"""Peers of Aloft, measured beside it: bench/README.md says what each of their workloads does and does not do.

Each is installed into the cache by its version, listens on loopback only, is given a database of its own on the same Postgres
where it uses one, and is ended by its process. What cannot be installed or measured says why in the table.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import string
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("ALOFT_CACHE") or Path.home() / ".cache/aloft") / "peers"
NODE = "24.21.0"
# No peer reports to its makers.
ENVIRONMENT = dict(os.environ, DO_NOT_TRACK="1", SCARF_ANALYTICS="false", RESTATE_DISABLE_TELEMETRY="true", NODE_ENV="production")
INSTALLING, BUILDING, MEASURING = 900, 3600, 600
# What one round of a peer or of Aloft found: single numbers, and milliseconds of single requests.
Found = dict[str, float | list[float]]


class Unavailable(Exception):
    """Why a peer cannot be installed or measured."""


@dataclass
class Setting:
    """Where and how long is measured: a directory, a Postgres by its socket and process, seconds of load, requests at light load."""

    home: Path
    socket: Path
    postgres: int
    seconds: int
    requests: int

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """The address of an empty database, which is removed afterwards."""
        self.sql(f"CREATE DATABASE {name}")
        try:
            yield f"postgresql://aloft@/{name}?host={self.socket}"
        finally:
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")

    def sql(self, statement: str) -> None:
        run(["psql", "-q", "-h", self.socket, "-U", "aloft", "-d", "postgres", "-c", statement])


def run(command: list[str | Path], limit: int = MEASURING, place: Path | None = None) -> str:
    """What a command says; an error with its last words, if it fails."""
    try:
        process = subprocess.Popen(
            command, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise Unavailable(str(error)) from None
    try:
        said, complained = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{Path(command[0]).name} did not end in {limit} s") from None
    finally:
        # Nothing that it started is left behind: its session is its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        # Addresses say nothing about the reason.
        words = " ".join(word for word in (complained + said).split() if "://" not in word)
        raise Unavailable(f"{Path(command[0]).name} failed: {words[-300:]}")
    return said


def ask(command: list[str | Path]) -> dict:
    """The JSON in the last line of what a command says."""
    said = run(command)
    try:
        return json.loads(said.strip().splitlines()[-1])
    except (ValueError, LookupError):
        raise Unavailable(f"{Path(command[1]).name} did not say what it found: {said[-300:]!r}") from None


@contextlib.contextmanager
def running(command: list[str | Path], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A process, ended afterwards however that goes."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
            env={**ENVIRONMENT, **(environment or {})},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int, among: range | None = None) -> list[int]:
    """Ports that nobody listens on: any, or the first of some."""
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        wanted = iter(among) if among else itertools.repeat(0)
        while len(listeners) < count:
            try:
                listeners.append(stack.enter_context(socket.create_server(("127.0.0.1", next(wanted)))))
            except OSError:
                if not among:
                    raise
            except StopIteration:
                raise Unavailable(f"fewer than {count} ports are free from {among[0]} to {among[-1]}") from None
        return [listener.getsockname()[1] for listener in listeners]


def answered(process: subprocess.Popen, method: str, port: int, path: str, body: bytes = b"", limit: float = 60) -> None:
    """Wait until a request has been answered with success."""
    ends = time.monotonic() + limit
    answer = "no answer"
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
            connection.request(method, path, body, {"content-type": "application/json"} if body else {})
            response = connection.getresponse()
            answer = f"{response.status} {response.read()[:300]!r}"
            connection.close()
            if response.status < 300:
                return
        time.sleep(0.0005)
    raise Unavailable(f"{method} {path}: {answer}")


def resident(process: subprocess.Popen) -> float:
    """MB that a process has in memory."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmRSS:"))


def cpu_seconds(pid: int, *, children: bool = False) -> float:
    """Of a process; with its children, those that have ended too, for Postgres is a process for each connection."""

    def fields(stat: Path) -> list[str]:
        try:
            return stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return []

    own = fields(Path(f"/proc/{pid}/stat"))
    ticks = sum(map(int, own[11 : 15 if children else 13]))
    if children:
        others = (fields(stat) for stat in Path("/proc").glob("[0-9]*/stat"))
        ticks += sum(int(other[11]) + int(other[12]) for other in others if other[1:2] == [str(pid)])
    return ticks / os.sysconf("SC_CLK_TCK")


# The peers


def node() -> Path:
    """A Node of its own, since peers want a newer one than distributions have; and the directory of its packages."""
    kind = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    npm = ["npm", "install", "--loglevel=error", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
    place = CACHE / f"node-{NODE}"
    binary = place / f"node_modules/node-linux-{kind}/bin/node"
    if not binary.exists():
        place.mkdir(parents=True, exist_ok=True)
        run([*npm, "--prefix", place, f"node-linux-{kind}@{NODE}"], INSTALLING)
    packages = CACHE / "npm"
    wanted = (HERE / "package.json").read_text()
    stamp = packages / "installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(packages, ignore_errors=True)
        packages.mkdir(parents=True)
        shutil.copy(HERE / "package.json", packages)
        run([*npm, "--prefix", packages], INSTALLING)
        stamp.write_text(wanted)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, packages)
    return binary


class Graphile:
    """graphile-worker: jobs in Postgres, worked off by Node."""

    name = "graphile-worker 0.18.0"

    def __init__(self) -> None:
        self.command = [node(), CACHE / "npm/graphile.mjs"]

    def measure(self, setting: Setting) -> Found:
        found: Found = {}
        for mode in ("batched", "unbatched", "one-by-one", "by-hundreds"):
            with setting.database("graphile") as url:
                found[mode] = ask([*self.command, mode, url, str(setting.seconds)])["rate"]
        with setting.database("graphile") as url:
            found["latency"] = ask([*self.command, "latency", url, str(setting.requests)])["ms"]
        return found


class Restate:
    """Restate: one server with a log of its own on the same disk, and a service in Node."""

    name = "Restate 1.7.12"

    def __init__(self) -> None:
        self.node = node()
        self.script = CACHE / "npm/restate.mjs"
        servers = (CACHE / "npm/node_modules/@restatedev").glob("restate-server-linux-*/bin/restate-server")
        if not (server := next(servers, None)):
            raise Unavailable("there is no server for this machine in @restatedev/restate-server")
        self.server = server

    def measure(self, setting: Setting) -> Found:
        found: Found = {}
        home = setting.home / "restate"
        home.mkdir()
        fabric, ingress, admin, service = free_ports(4)
        environment = {
            "RESTATE_BASE_DIR": str(home), "RESTATE_LISTEN_MODE": "tcp", "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_BIND_PORT": str(fabric), "RESTATE_ADVERTISED_HOST": "127.0.0.1",
            "RESTATE_INGRESS__BIND_PORT": str(ingress), "RESTATE_ADMIN__BIND_PORT": str(admin),
        }  # fmt: skip
        command, log = [self.server, "--no-logo", "--log-filter", "warn"], setting.home / "restate.log"
        noop = f"http://127.0.0.1:{ingress}/bench/noop"
        serve, quiet = [self.node, self.script, "serve", str(service)], {"RESTATE_LOGGING": "ERROR"}
        with running(serve, setting.home / "restate-service.log", quiet):
            began = time.perf_counter()
            with running(command, log, environment) as server:
                answered(server, "GET", ingress, "/restate/health")
                found["start"] = (time.perf_counter() - began) * 1000
                deployment = json.dumps({"uri": f"http://127.0.0.1:{service}"}).encode()
                answered(server, "POST", admin, "/deployments", deployment)
                answered(server, "POST", ingress, "/bench/noop")
                found["memory idle"] = resident(server)
                found["latency"] = ask([self.node, self.script, "latency", noop, str(setting.requests)])["ms"]
                found["accepted"] = ask([self.node, self.script, "latency", f"{noop}/send", str(setting.requests)])["ms"]
                found["rate"] = ask([self.node, self.script, "rate", noop, str(setting.seconds)])["rate"]
                found["memory loaded"] = resident(server)
                began = time.perf_counter()
                server.kill()
                server.wait()
            with running(command, log, environment) as server:
                answered(server, "GET", ingress, "/restate/health")
                found["killed, health"] = (time.perf_counter() - began) * 1000
                answered(server, "POST", ingress, "/bench/noop")
                found["killed, invocation"] = (time.perf_counter() - began) * 1000
        shutil.rmtree(home)
        return found


class Dbos:
    """DBOS: workflows in Postgres, carried out by Python."""

    name = "DBOS 3.4.0"

    def __init__(self) -> None:
        run([HERE.parent.parent / "tools/venv.sh", CACHE / "dbos", HERE / "requirements.txt"], INSTALLING)
        self.command = [CACHE / "dbos/bin/python", HERE / "dbos_noop.py"]

    def measure(self, setting: Setting) -> Found:
        found: Found = {}
        with setting.database("dbos") as url:
            ask([*self.command, "start", url, "0"])
            began = time.perf_counter()
            with subprocess.Popen([*self.command, "start", url, "0"], stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
                said = process.stdout.readline()
                found["start"] = (time.perf_counter() - began) * 1000
            if b"ready" not in said:
                raise Unavailable(f"dbos_noop.py start ended with {process.returncode} and said {said!r}")
            light = ask([*self.command, "latency", url, str(setting.requests)])
            found["accepted"], found["latency"] = light["durable"], light["ended"]
            for mode in ("direct", "queue"):
                found[mode] = ask([*self.command, mode, url, str(setting.seconds)])["rate"]
        return found


class Temporal:
    """Temporal: its server with all its services in one process and its stores in Postgres, clients and worker in Go."""

    name = "Temporal 1.32.1"
    # A shard writes one transaction at a time, so there are as many as clients; 16 were as good on two cores, 4 not better.
    SHARDS = 64
    # Its tables keep ports as signed numbers of 16 bits, and those beyond are what free ones are taken from.
    PORTS = range(17230, 17430)

    def __init__(self) -> None:
        if not shutil.which("go"):
            raise Unavailable("its server has to be built, and there is no Go")
        place = CACHE / "temporal"
        place.mkdir(parents=True, exist_ok=True)
        parts = ["go.temporal.io/server/cmd/server", "go.temporal.io/server/cmd/tools/sql", "."]
        run(["go", "build", "-buildvcs=false", "-o", f"{place}/", *parts], BUILDING, HERE / "temporal")
        self.server, self.tables, self.driver = place / "server", place / "sql", place / "temporal"

    def measure(self, setting: Setting) -> Found:
        home = setting.home / "temporal"
        home.mkdir()
        with setting.database("temporal"), setting.database("temporal_visibility"):
            for database, schema in (("temporal", "temporal"), ("temporal_visibility", "visibility")):
                tool = [self.tables, "--pl", "postgres12_pgx", "--ca", f"host={setting.socket}", "-p", "5432", "-u", "aloft"]
                run([*tool, "--db", database, "setup-schema", "-v", "0.0"])
                run([*tool, "--db", database, "update-schema", "--schema-name", f"postgresql/v12/{schema}"])
            found = self.with_tables(setting, home)
        shutil.rmtree(home)
        return found

    def with_tables(self, setting: Setting, home: Path) -> Found:
        found: Found = {}
        names = ("frontend", "history", "matching", "worker")
        ports = dict(zip((*names, *(f"{name}_membership" for name in names), "http"), free_ports(9, self.PORTS), strict=True))
        about = {"socket": setting.socket, "limits": HERE / "temporal/limits.yaml", "shards": self.SHARDS, **ports}
        written = string.Template((HERE / "temporal/server.yaml").read_text()).substitute(about)
        (home / "server.yaml").write_text(written)
        command = [self.server, "--config-file", home / "server.yaml", "--allow-no-auth", "start"]
        log = setting.home / "temporal.log"
        http, spaces, address = ports["http"], "/api/v1/namespaces", f"127.0.0.1:{ports['frontend']}"
        # Nobody works on this queue: what is measured is that it is accepted.
        nobody = json.dumps({
            "workflowType": {"name": "noop"}, "taskQueue": {"name": "nobody"},
            "workflowIdConflictPolicy": "WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING",
        }).encode()  # fmt: skip
        began = time.perf_counter()
        with running(command, log) as server:
            answered(server, "GET", http, spaces)
            found["start"] = (time.perf_counter() - began) * 1000
            bench = {"namespace": "bench", "workflowExecutionRetentionPeriod": "86400s"}
            answered(server, "POST", http, spaces, json.dumps(bench).encode())
            answered(server, "POST", http, f"{spaces}/bench/workflows/first", nobody)
            found["memory idle"] = resident(server)
            found.update(ask([self.driver, "latency", address, str(setting.requests)]))
            eager = ask([self.driver, "-eager", "latency", address, str(setting.requests)])
            found["eager workflow"] = eager["workflow"]
            for options, mode in (([], "workflows"), (["-eager"], "workflows"), ([], "activities"), ([], "local")):
                found.update(self.loaded(setting, server, [*options, mode], address))
            found["memory loaded"] = resident(server)
            began = time.perf_counter()
            server.kill()
            server.wait()
        with running(command, log) as server:
            answered(server, "GET", http, spaces)
            found["killed, rpc"] = (time.perf_counter() - began) * 1000
            answered(server, "POST", http, f"{spaces}/bench/workflows/second", nobody)
            found["killed, create"] = (time.perf_counter() - began) * 1000
        return found

    def loaded(self, setting: Setting, server: subprocess.Popen, mode: list[str], address: str) -> Found:
        """The rate of a load, and the seconds of CPU that a thousand took, warming up included."""

        def used() -> dict[str, float]:
            return {"server": cpu_seconds(server.pid), "database": cpu_seconds(setting.postgres, children=True)}

        before = used()
        done = ask([self.driver, *mode, address, str(setting.seconds)])
        each = {whose: (now - before[whose]) / done["ended"] * 1000 for whose, now in used().items()}
        name = " ".join(mode).lstrip("-")
        of_whom = {f"{name}, {whose} cpu": value for whose, value in each.items()}
        return {name: done["rate"], f"{name}, cpu": sum(each.values()), **of_whom}


# Beside Aloft

PEERS = (Graphile, Restate, Dbos, Temporal)
# What of a peer stands beside what of Aloft, in which unit. Of rates more is better, of everything else less.
COMPARED = {
    Graphile: (
        ("preloaded jobs, batched", "batched", "noop", "/s"),
        ("preloaded jobs, unbatched", "unbatched", "noop", "/s"),
        ("jobs added and ended", "one-by-one", "noop", "/s"),
        ("jobs added by hundreds and ended", "by-hundreds", "noop", "/s"),
        ("job added to its code", "latency", "handed", "ms"),
    ),
    Restate: (
        ("invocations, 200 clients", "rate", "noop", "/s"),
        ("invocations, 200 clients", "rate", "submit", "/s"),
        ("invocation accepted", "accepted", "create", "ms"),
        ("invocation to its answer", "latency", "handed", "ms"),
        ("start to first answer", "start", "start", "ms"),
        ("kill -9 to first answer", "killed, health", "killed, rpc", "ms"),
        ("kill -9 to first invocation", "killed, invocation", "killed, create", "ms"),
        ("memory after start", "memory idle", "memory idle", "MB"),
        ("memory after load", "memory loaded", "memory loaded", "MB"),
    ),
    Dbos: (
        ("workflows started and ended", "direct", "submit", "/s"),
        ("workflows through a queue", "queue", "noop", "/s"),
        ("workflow started", "accepted", "create", "ms"),
        ("workflow to its result", "latency", "handed", "ms"),
        ("start to first result", "start", "start", "ms"),
    ),
    Temporal: (
        ("workflows started and ended", "workflows", "submit", "/s"),
        ("CPU for 1,000 of them", "workflows, cpu", "submit, cpu", "s"),
        ("the same, started eagerly", "eager workflows", "submit", "/s"),
        ("CPU for 1,000 of them", "eager workflows, cpu", "submit, cpu", "s"),
        ("no-op activities", "activities", "noop", "/s"),
        ("CPU for 1,000 of them", "activities, cpu", "noop, cpu", "s"),
        ("local activities", "local", "noop", "/s"),
        ("CPU for 1,000 of them", "local, cpu", "noop, cpu", "s"),
        ("workflow accepted", "accepted", "create", "ms"),
        ("workflow to its code", "workflow", "handed", "ms"),
        ("workflow to its code, eagerly", "eager workflow", "handed", "ms"),
        ("activity to its code", "activity", "handed", "ms"),
        ("start to first answer", "start", "start", "ms"),
        ("kill -9 to first answer", "killed, rpc", "killed, rpc", "ms"),
        ("kill -9 to first workflow", "killed, create", "killed, create", "ms"),
        ("memory after start", "memory idle", "memory idle", "MB"),
        ("memory after load", "memory loaded", "memory loaded", "MB"),
    ),
}
OF_ALOFT = {
    "noop": "no-op actions", "submit": "run submissions", "handed": "Enqueue to the worker", "create": "CreateRun",
    "start": "start to first RPC", "killed, rpc": "kill -9 to first RPC", "killed, create": "kill -9 to first CreateRun",
    "memory idle": "memory after start", "memory loaded": "memory after load",
    "noop, cpu": "CPU for 1,000 actions", "submit, cpu": "CPU for 1,000 runs",
}  # fmt: skip
NOT_MEASURED = {
    "Hatchet": "not measured: its source cannot be had from the Go module registry, see bench/README.md",
}


@dataclass
class Comparison:
    """Every round of Aloft and of its peers, by name; and why some are missing."""

    rounds: list[dict[str, Found]]
    missing: dict[str, str]

    def raw(self) -> dict:
        rounds = {
            str(number): {
                name: {key: [round(v, 3) for v in value] if isinstance(value, list) else round(value, 3)
                       for key, value in found.items()}
                for name, found in all_found.items()
            }
            for number, all_found in enumerate(self.rounds, 1)
        }  # fmt: skip
        return {"rounds": rounds, "missing": self.missing}

    def of(self, name: str, key: str, quantile: float | None) -> list[float]:
        """A figure of every round that has it."""
        values = [found[name][key] for found in self.rounds if key in found.get(name, {})]
        if quantile is None:
            return values
        return [sorted(v)[min(len(v) - 1, int(quantile * len(v)))] for v in values]

    def table(self) -> str:
        rows = [("peer", "figure", "median (min to max)", "of Aloft", "median (min to max)", "Aloft ahead")]
        for peer, compared in COMPARED.items():
            for label, key, of_aloft, unit in compared:
                lists = any(isinstance(found.get(peer.name, {}).get(key), list) for found in self.rounds)
                for quantile in (0.5, 0.99) if lists else (None,):
                    theirs, ours = self.of(peer.name, key, quantile), self.of("Aloft", of_aloft, quantile)
                    if theirs and ours:
                        better, worse = (ours, theirs) if unit == "/s" else (theirs, ours)
                        # Who ended nothing in its time has no ratio.
                        below = statistics.median(worse)
                        ahead = f"{statistics.median(better) / below:.2f} x" if below else "-"
                        name = label if quantile is None else f"{label}, p{quantile * 100:.0f}"
                        rows.append((peer.name, name, shown(theirs, unit), OF_ALOFT[of_aloft], shown(ours, unit), ahead))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{name}: {reason}" for name, reason in self.missing.items())])


def shown(values: list[float], unit: str) -> str:
    places = 2 if unit == "s" else 1
    middle, least, most = (f"{value:.{places}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} {unit} ({least} to {most})"


def compare(setting: Setting, rounds: int, aloft: Callable[[], Found]) -> Comparison:
    """Install what can be, and measure Aloft and its peers in turns, every other round the other way round."""
    comparison = Comparison([], dict(NOT_MEASURED))
    sides: dict[str, Callable[[], Found]] = {"Aloft": aloft}
    for peer in PEERS:
        try:
            installed = peer()
            sides[peer.name] = lambda installed=installed: installed.measure(setting)
        except Unavailable as reason:
            comparison.missing[peer.name] = f"not installed: {reason}"
    for number in range(rounds):
        found: dict[str, Found] = {}
        comparison.rounds.append(found)
        for name in list(sides)[:: -1 if number % 2 else 1]:
            print(f"round {number + 1} of {rounds}: {name}", flush=True)
            try:
                # Nobody writes what the one before left to be written.
                setting.sql("CHECKPOINT")
                found[name] = sides[name]()
            except (Unavailable, OSError) as reason:
                if name == "Aloft":
                    raise
                comparison.missing[name] = f"not measured from round {number + 1} on: {reason}"
                del sides[name]
    return comparison
