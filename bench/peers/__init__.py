"""Peers of Aloft, measured beside it: bench/README.md says what each of their workloads does and does not do.

Each is installed into the cache by its version, listens on loopback only, is given a database of its own on the same Postgres
where it uses one, and is ended by its process. What cannot be installed or measured says why in the table.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("ALOFT_CACHE") or Path.home() / ".cache/aloft") / "peers"
NODE = "24.21.0"
# No peer reports to its makers.
ENVIRONMENT = dict(os.environ, DO_NOT_TRACK="1", SCARF_ANALYTICS="false", RESTATE_DISABLE_TELEMETRY="true")
INSTALLING, MEASURING = 900, 600
# What one round of a peer or of Aloft found: single numbers, and milliseconds of single requests.
Found = dict[str, float | list[float]]


class Unavailable(Exception):
    """Why a peer cannot be installed or measured."""


@dataclass
class Round:
    """Where and how long a round is measured: a directory, a Postgres, seconds of load, requests at light load."""

    home: Path
    socket: Path
    port: int
    seconds: int
    requests: int

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """The address of an empty database, which is removed afterwards."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
        yield f"postgresql://aloft@/{name}?host={self.socket}&port={self.port}"
        self.sql(f"DROP DATABASE {name} WITH (FORCE)", "CHECKPOINT")

    def sql(self, *statements: str) -> None:
        options = [part for statement in statements for part in ("-c", statement)]
        run(["psql", "-q", "-h", self.socket, "-p", str(self.port), "-U", "aloft", "-d", "postgres", *options])


def run(command: list[str | Path], limit: int = MEASURING, **options) -> str:
    """What a command says; its last words, if it fails."""
    options.setdefault("env", ENVIRONMENT)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        words = " ".join((done.stderr + done.stdout).split())
        raise Unavailable(f"{Path(command[0]).name} failed: {words[-300:]}")
    return done.stdout


def ask(command: list[str | Path]) -> dict:
    """The JSON in the last line of what a command says."""
    return json.loads(run(command).strip().splitlines()[-1])


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


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
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


# The peers


def node() -> Path:
    """A Node of its own, since peers want a newer one than distributions have; and the directory of its packages."""
    kind = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
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

    def measure(self, round: Round) -> Found:
        found: Found = {}
        for mode in ("batched", "unbatched", "sustained"):
            with round.database("graphile") as url:
                found[mode] = ask([*self.command, mode, url, str(round.seconds)])["rate"]
        with round.database("graphile") as url:
            found["latency"] = ask([*self.command, "latency", url, str(round.requests)])["ms"]
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

    def measure(self, round: Round) -> Found:
        found: Found = {}
        home = round.home / "restate"
        home.mkdir()
        fabric, ingress, admin, service = free_ports(4)
        environment = {
            "RESTATE_BASE_DIR": str(home), "RESTATE_LISTEN_MODE": "tcp", "RESTATE_BIND_IP": "127.0.0.1",
            "RESTATE_BIND_PORT": str(fabric), "RESTATE_ADVERTISED_HOST": "127.0.0.1",
            "RESTATE_INGRESS__BIND_PORT": str(ingress), "RESTATE_ADMIN__BIND_PORT": str(admin),
        }  # fmt: skip
        command, log = [self.server, "--no-logo", "--log-filter", "warn"], round.home / "restate.log"
        noop = f"http://127.0.0.1:{ingress}/bench/noop"
        serve, quiet = [self.node, self.script, "serve", str(service)], {"RESTATE_LOGGING": "ERROR"}
        with running(serve, round.home / "restate-service.log", quiet):
            began = time.perf_counter()
            with running(command, log, environment) as server:
                answered(server, "GET", ingress, "/restate/health")
                found["start"] = (time.perf_counter() - began) * 1000
                deployment = json.dumps({"uri": f"http://127.0.0.1:{service}"}).encode()
                answered(server, "POST", admin, "/deployments", deployment)
                answered(server, "POST", ingress, "/bench/noop")
                found["memory idle"] = resident(server)
                found["latency"] = ask([self.node, self.script, "latency", noop, str(round.requests)])["ms"]
                found["accepted"] = ask([self.node, self.script, "latency", f"{noop}/send", str(round.requests)])["ms"]
                found["rate"] = ask([self.node, self.script, "rate", noop, str(round.seconds)])["rate"]
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

    def measure(self, round: Round) -> Found:
        found: Found = {}
        with round.database("dbos") as url:
            ask([*self.command, "start", url, "0"])
            began = time.perf_counter()
            with subprocess.Popen([*self.command, "start", url, "0"], stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
                process.stdout.readline()
                found["start"] = (time.perf_counter() - began) * 1000
            light = ask([*self.command, "latency", url, str(round.requests)])
            found["accepted"], found["latency"] = light["durable"], light["ended"]
            for mode in ("direct", "queue"):
                found[mode] = ask([*self.command, mode, url, str(round.seconds)])["rate"]
        return found
