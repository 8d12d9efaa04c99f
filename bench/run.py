"""Measures Aloft on this machine: see README.md in this directory for what each figure includes.

usage: run.py ALOFT [--only SECTION,...] [--repeat N] [--fan-out N] [--cold-fan-outs N] [--short] [--output FILE]

Prints a table of medians with their spread, and writes every single measurement to bench/results/.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import http.client
import json
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flyteidl2.common import identifier_pb2
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.core import literals_pb2
from flyteidl2.dataproxy import dataproxy_service_pb2
from flyteidl2.project import project_service_pb2
from flyteidl2.task import common_pb2, task_definition_pb2, task_service_pb2
from flyteidl2.workflow import run_service_pb2
from flyteidl2.workflow.run_service_connect import RunServiceClientSync

import peers

HERE = Path(__file__).resolve().parent
PROJECT, DOMAIN, VERSION = "flytesnacks", "development", "bench"
SECTIONS = ("start", "create", "enqueue", "fan-out", "idle", "stress", "load", "peers")
RUN_TIMEOUT_MS = 300_000
STRESS_TIMEOUT_MS = 3_600_000
Nanoseconds = int


# The server


class Server:
    """An `aloft dev` with a data directory of its own."""

    def __init__(self, binary: Path, home: Path, *, cold: bool = False):
        self.binary, self.home, self.cold = binary, home, cold
        self.data = home / "data"
        self.port = free_port()
        self.process: subprocess.Popen | None = None
        home.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def start(self) -> float:
        """Start it; return the seconds from the start of the process to the answer of its first RPC."""
        command = [str(self.binary), "dev", "--data-dir", str(self.data), "--port", str(self.port)]
        command += ["--python", sys.executable, *(["--cold"] if self.cold else [])]
        request = project_service_pb2.ListProjectsRequest().SerializeToString()
        with (self.home / "server.log").open("ab") as sink:
            began = time.perf_counter()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
            )
        # Nothing is left behind by a measurement that fails. Does nothing to a process that has been waited for.
        atexit.register(self.process.kill)
        while True:
            try:
                with contextlib.closing(Connection(self.port)) as connection:
                    connection.call("flyteidl2.project.ProjectService/ListProjects", request)
                return time.perf_counter() - began
            except ConnectionRefusedError:
                if self.process.poll() is not None or time.perf_counter() - began > 30:
                    raise SystemExit(f"the server did not start: see {self.home / 'server.log'}") from None
                time.sleep(0.0005)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        if code := self.process.wait(30):
            raise SystemExit(f"the server stopped with code {code}: see {self.home / 'server.log'}")
        # What still runs was left running on purpose; these were ours.
        for path in (self.data / "attempts").rglob("shim.json"):
            with contextlib.suppress(ProcessLookupError, ValueError, OSError):
                os.kill(json.loads(path.read_text())["shim"]["pid"], signal.SIGTERM)

    def deploy(self) -> None:
        """Deploy tasks.py with the official CLI, in a home of its own: the SDK remembers what it has uploaded."""
        config = self.home / "config.yaml"
        config.write_text(
            f"admin:\n  endpoint: dns:///localhost:{self.port}\n  insecure: true\n"
            f"task:\n  project: {PROJECT}\n  domain: {DOMAIN}\nimage:\n  builder: remote\n"
        )
        flyte = Path(sys.executable).parent / "flyte"
        environment = dict(os.environ, HOME=str(self.home), DO_NOT_TRACK="1", NO_COLOR="1")
        command = [str(flyte), "-c", str(config), "deploy", "--version", VERSION, "--all", "tasks.py"]
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"cannot deploy: {done.stdout}{done.stderr}")

    # Of the process

    def memory(self) -> dict[str, float]:
        """MB of memory it holds: all of it, and its own share of it."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        values = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
        return {"rss": values["Rss"] / 1000, "pss": values["Pss"] / 1000}

    def cpu_seconds(self) -> float:
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(path.read_text().split()[0]) for path in threads) / 1e9


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Connection:
    """Connect unary calls in binary over one HTTP/1.1 connection that is kept alive."""

    HEADERS = {"content-type": "application/proto", "connect-protocol-version": "1"}

    def __init__(self, port: int):
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.http.connect()
        self.http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call(self, method: str, body: bytes) -> bytes:
        self.http.request("POST", f"/{method}", body, self.HEADERS)
        answer = self.http.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{method}: {answer.status} {content[:500]!r}")
        return content

    def close(self) -> None:
        self.http.close()


class Client:
    """What is done on a server with deployed tasks."""

    PLACE = identifier_pb2.ProjectIdentifier(name=PROJECT, domain=DOMAIN)

    def __init__(self, server: Server):
        self.server = server
        self.connection = Connection(server.port)
        self.specs: dict[str, task_definition_pb2.TaskSpec] = {}

    def spec(self, task: str, env: str = "bench") -> task_definition_pb2.TaskSpec:
        if task not in self.specs:
            name = task_definition_pb2.TaskIdentifier(
                project=PROJECT, domain=DOMAIN, name=f"{env}.{task}", version=VERSION
            )
            request = task_service_pb2.GetTaskDetailsRequest(task_id=name).SerializeToString()
            answer = self.connection.call("flyteidl2.task.TaskService/GetTaskDetails", request)
            self.specs[task] = task_service_pb2.GetTaskDetailsResponse.FromString(answer).details.spec
        return self.specs[task]

    def create_request(self, task: str, env: str = "bench", **inputs: int | float | str) -> bytes:
        """A CreateRun as the SDK sends it: with the whole specification, and inputs that were uploaded before."""
        spec = self.spec(task, env)
        literals = [common_pb2.NamedLiteral(name=name, value=literal(value)) for name, value in inputs.items()]
        upload = dataproxy_service_pb2.UploadInputsRequest(
            inputs=common_pb2.Inputs(literals=literals), task_spec=spec, project_id=self.PLACE
        )
        answer = self.connection.call("flyteidl2.dataproxy.DataProxyService/UploadInputs", upload.SerializeToString())
        offloaded = dataproxy_service_pb2.UploadInputsResponse.FromString(answer).offloaded_input_data
        return run_service_pb2.CreateRunRequest(
            project_id=self.PLACE, task_spec=spec, offloaded_input_data=offloaded
        ).SerializeToString()

    def create(self, request: bytes) -> identifier_pb2.RunIdentifier:
        answer = self.connection.call("flyteidl2.workflow.RunService/CreateRun", request)
        return run_service_pb2.CreateRunResponse.FromString(answer).run.action.id.run

    def wait(self, run: identifier_pb2.RunIdentifier, timeout_ms: int = RUN_TIMEOUT_MS) -> None:
        """Wait until the run has succeeded."""
        with RunServiceClientSync(self.server.url, timeout_ms=timeout_ms) as client:
            for answer in client.watch_run_details(run_service_pb2.WatchRunDetailsRequest(run_id=run)):
                phase = answer.details.action.status.phase
                if phase == ActionPhase.ACTION_PHASE_SUCCEEDED:
                    return
                if phase > ActionPhase.ACTION_PHASE_SUCCEEDED:
                    raise SystemExit(f"run {run.name} ended {ActionPhase.Name(phase)}: see {self.server.home}")
        raise SystemExit(f"run {run.name} did not end: see {self.server.home}")

    def run(self, task: str, **inputs: int | float | str) -> float:
        """Run a task; return the seconds from sending CreateRun to hearing of its success."""
        request = self.create_request(task, **inputs)
        began = time.perf_counter()
        self.wait(self.create(request))
        return time.perf_counter() - began


def literal(value: int | float | str) -> literals_pb2.Literal:
    name = {int: "integer", float: "float_value", str: "string_value"}[type(value)]
    primitive = literals_pb2.Primitive(**{name: value})
    return literals_pb2.Literal(scalar=literals_pb2.Scalar(primitive=primitive))


# The report


@dataclass
class Report:
    """Every measurement, by name; and how the machine was meanwhile."""

    raw: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    goals: dict[str, str] = field(default_factory=dict)
    load: dict[str, list[float]] = field(default_factory=dict)
    under_load: dict[str, dict] = field(default_factory=dict)
    peers: dict = field(default_factory=dict)

    def add(self, name: str, unit: str, *values: float, goal: str = "") -> None:
        self.raw.setdefault(name, []).extend(values)
        self.units[name] = unit
        self.goals[name] = goal or self.goals.get(name, "")

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        before = os.getloadavg()[0]
        began = time.monotonic()
        print(f"{name} ...", end="", flush=True)
        yield
        self.load[name] = [round(before, 2), round(os.getloadavg()[0], 2)]
        print(f" {time.monotonic() - began:.0f} s, load {before:.1f} to {os.getloadavg()[0]:.1f}")

    def table(self) -> str:
        header = ("", "median", "min", "p10", "p90", "p99", "max", "n", "goal")
        rows = [header]
        for name, values in self.raw.items():
            values, unit = sorted(values), self.units[name]
            shown = [statistics.median(values), values[0], *(quantile(values, q) for q in (0.1, 0.9, 0.99)), values[-1]]
            rows.append((name, *(f"{v:.1f} {unit}" for v in shown), str(len(values)), self.goals[name]))
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = []
        for row in rows:
            cells = [cell.ljust(width) if i in (0, 8) else cell.rjust(width) for i, (cell, width) in
                     enumerate(zip(row, widths, strict=True))]  # fmt: skip
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def save(self, path: Path, binary: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": machine(),
            "aloft": version(binary),
            "load_before_and_after": self.load,
            "measurements": {
                name: {"unit": self.units[name], "values": [round(v, 4) for v in values]}
                for name, values in self.raw.items()
            },
            "under_load": self.under_load,
            "peers": self.peers,
        }
        # One line per measurement keeps the file readable and its changes small.
        text = json.dumps(content, indent=1)
        text = "".join(part if i % 2 == 0 else "[" + "".join(part.split()) + "]" for i, part in enumerate(split_lists(text)))
        path.write_text(text + "\n")


def split_lists(text: str) -> list[str]:
    """The text before, in and after each innermost list of numbers, alternately."""
    parts, rest = [], text
    while "[" in rest:
        before, rest = rest.split("[", 1)
        inside, rest = rest.split("]", 1)
        parts += [before, inside]
    return [*parts, rest]


def quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def machine() -> dict[str, object]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1000
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mb": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "scheduling": {os.SCHED_OTHER: "normal", os.SCHED_RR: "real time"}.get(os.sched_getscheduler(0), "other"),
    }


def version(binary: Path) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True).stdout.strip()
    return f"{said} {commit.stdout.strip()}".strip()


# What is measured


def measure_start(binary: Path, home: Path, repeat: int, report: Report) -> None:
    """Process start to first RPC, with a fresh data directory and with one that was used."""
    for number in range(2 * repeat):
        fresh = Server(binary, home / f"start-{number}")
        took = fresh.start()
        fresh.stop()
        report.add("start to first RPC, fresh directory", "ms", took * 1000, goal="< 300, aim 150")
        took = fresh.start()
        fresh.stop()
        report.add("start to first RPC, used directory", "ms", took * 1000, goal="< 300, aim 150")


def fdatasync(home: Path, count: int) -> list[float]:
    """Milliseconds that the disk takes to keep 4 KiB."""
    block, found = os.urandom(4096), []
    fd = os.open(home / "disk", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, block)
        os.fsync(fd)
        for _ in range(count):
            began = time.perf_counter()
            os.pwrite(fd, block, 0)
            os.fdatasync(fd)
            found.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(fd)
    return found


def create_many(port: int, request: bytes, count: int) -> list[float]:
    """Milliseconds of each of `count` CreateRuns over one connection."""
    connection, found = Connection(port), []
    for _ in range(count):
        began = time.perf_counter()
        connection.call("flyteidl2.workflow.RunService/CreateRun", request)
        found.append((time.perf_counter() - began) * 1000)
    connection.close()
    return found


def measure_create(binary: Path, home: Path, repeat: int, report: Report) -> None:
    """CreateRun acknowledged, while nothing of it can start."""
    server = Server(binary, home / "create")
    server.start()
    server.deploy()
    client = Client(server)
    client.create(client.create_request("block", env="blocking", seconds=600.0))
    request = client.create_request("noop", number=1)
    create_many(server.port, request, 20)
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        pool.map(time.sleep, [0.2] * 8)
        for _ in range(repeat):
            report.add("fdatasync of 4 KiB", "ms", *fdatasync(home, 60))
            report.add("CreateRun, 1 client", "ms", *create_many(server.port, request, 60))
            began = time.perf_counter()
            found = pool.starmap(create_many, [(server.port, request, 30)] * 8)
            took = time.perf_counter() - began
            report.add("CreateRun, 8 clients", "ms", *(ms for each in found for ms in each))
            report.add("CreateRun, 8 clients, rate", "/s", 240 / took)
    server.stop()


@contextlib.contextmanager
def warm_and_cold(binary: Path, home: Path) -> Iterator[dict[str, Client]]:
    servers = {"warm": Server(binary, home / "warm"), "cold": Server(binary, home / "cold", cold=True)}
    clients = {}
    for name, server in servers.items():
        server.start()
        server.deploy()
        clients[name] = Client(server)
        # Until the caches of files are filled and the zygote has imported the SDK.
        clients[name].run("fan_out", count=4)
    yield clients
    for server in servers.values():
        server.stop()


def measure_enqueue(clients: dict[str, Client], home: Path, repeat: int, report: Report) -> None:
    """From asking for an action to the first line of its code."""
    goals = {"warm": "< 100, aim 40", "cold": ""}
    for number in range(repeat):
        for name, client in clients.items():
            path = home / f"{name}-{number}"
            client.run("one_by_one", count=10 if name == "warm" else 4, path=str(path))
            for arrived, returned in json.loads(path.read_text()):
                report.add(f"child enqueued to its code, {name}", "ms", arrived / 1e6, goal=goals[name])
                report.add(f"child enqueued to its result, {name}", "ms", returned / 1e6)
            for i in range(5 if name == "warm" else 2):
                path = home / f"{name}-{number}-{i}"
                request = client.create_request("stamp", path=str(path))
                sent = time.time_ns()
                client.wait(client.create(request))
                took = (int(path.read_text()) - sent) / 1e6
                report.add(f"CreateRun sent to its code, {name}", "ms", took, goal=goals[name])


def measure_fan_out(clients: dict[str, Client], repeat: int, colds: int, count: int, report: Report) -> None:
    for number in range(repeat):
        for name, client in clients.items():
            if name == "cold" and number >= colds:
                continue
            report.add(f"fan-out of {count} no-ops, {name}", "s", client.run("fan_out", count=count))


def measure_idle(binary: Path, home: Path, count: int, report: Report) -> None:
    """Memory after the start and after a fan-out, and the CPU that doing nothing takes."""
    for number in range(2):
        server = Server(binary, home / f"idle-{number}")
        server.start()
        time.sleep(5)
        for kind, value in server.memory().items():
            report.add(f"memory after start, {kind.upper()}", "MB", value, goal="< 40" if kind == "rss" else "")
        before = server.cpu_seconds()
        time.sleep(10)
        report.add("idle CPU", "%", (server.cpu_seconds() - before) * 10, goal="< 1")
        server.deploy()
        client = Client(server)
        client.run("fan_out", count=count)
        time.sleep(5)
        for kind, value in server.memory().items():
            report.add(f"memory after a fan-out, {kind.upper()}", "MB", value, goal="< 40" if kind == "rss" else "")
        server.stop()


def measure_stress(binary: Path, home: Path, short: bool, report: Report) -> None:
    """Parents of thousands of children that sleep, each with the official SDK, with its own limits and with none."""
    for parents, children in ((10, 1000),) if short else ((10, 1000), (20, 5000)):
        for kind, seconds in (("limited", 20.0), ("unlocked", 60.0)):
            server = Server(binary, home / f"stress-{kind}-{parents}")
            server.start()
            server.deploy()
            client = Client(server)
            client.wait(client.create(client.create_request(f"hold_{kind}", env=kind, count=1, seconds=0.1)))
            request = client.create_request(f"hold_{kind}", env=kind, count=children, seconds=seconds)
            cpu, began, most = server.cpu_seconds(), time.perf_counter(), [0.0]
            over = threading.Event()

            def look(server: Server = server, most: list[float] = most, over: threading.Event = over) -> None:
                while not over.wait(0.5):
                    most[0] = max(most[0], server.memory()["rss"])

            looking = threading.Thread(target=look)
            looking.start()
            try:
                for run in [client.create(request) for _ in range(parents)]:
                    client.wait(run, STRESS_TIMEOUT_MS)
            finally:
                over.set()
                looking.join()
            name = f"{parents} SDKs of {children} children of {seconds:.0f} s, {kind}"
            report.add(name, "s", time.perf_counter() - began)
            report.add(f"{name}: CPU of the server", "s", server.cpu_seconds() - cpu)
            report.add(f"{name}: its memory at most", "MB", most[0])
            server.stop()


@contextlib.contextmanager
def postgres(home: Path) -> Iterator[tuple[str, int]]:
    """A Postgres of its own, as a small server would have it: its address and its process."""
    directory = home / "postgres"
    # For root it runs as another user, who has to get there.
    home.chmod(0o755)
    settings = ["shared_buffers=1GB", "max_wal_size=4GB", "checkpoint_timeout=15min", "max_connections=200"]
    with (home / "postgres.log").open("wb") as sink:
        process = subprocess.Popen([HERE.parent / "tools/postgres.sh", directory, *settings], stdout=sink, stderr=sink)
    try:
        began = time.monotonic()
        while not (directory / ".s.PGSQL.5432").exists():
            if process.poll() is not None or time.monotonic() - began > 60:
                raise SystemExit(f"Postgres did not start: see {home / 'postgres.log'}")
            time.sleep(0.1)
        time.sleep(1)
        yield f"postgres:///aloft?host={directory}&user=aloft", process.pid
    finally:
        process.terminate()
        process.wait(60)


def load(binary: Path, home: Path, store: str, *options: str) -> dict[str, dict]:
    """The rows of `aloft-load measure`, by name."""
    program, output = binary.with_name("aloft-load"), home / "load.json"
    if not program.exists():
        raise SystemExit(f"{program} is missing: build it with `cargo build --release -p aloft-load`")
    common = ["--aloft", binary, "--python", sys.executable, "--dir", home, "--output", output]
    if subprocess.run([program, "measure", store, *common, *options], check=False).returncode:
        raise SystemExit(f"{program} failed on {store}")
    return {row.pop("name"): row for row in json.loads(output.read_text())["rows"]}


def measure_load(binary: Path, home: Path, short: bool, report: Report) -> None:
    """The control plane under load, on each engine, without Python: see the crate aloft-load."""
    with postgres(home) as (url, pid):
        for name, store, options in (("sqlite", "sqlite", []), ("postgres", url, ["--postgres-pid", str(pid)])):
            print(flush=True)
            rows = load(binary, home, store, *options, *(["--short"] if short else []))
            for row in rows.values():
                row["raw"] = [round(value, 4) for value in row.get("raw", [])]
            report.under_load[name] = rows


def beside_peers(binary: Path, home: Path, url: str, pid: int, seconds: int, short: bool) -> peers.Found:
    """What of Aloft stands beside its peers: under load on the same Postgres, and its start and its end."""
    only = ["--only", "create,submit,handed,noop", "--seconds", str(seconds), *(["--short"] if short else [])]
    rows = load(binary, home, url, "--postgres-pid", str(pid), *only)
    noop = rows[f"durable no-op actions, {seconds} s"]["numbers"]
    submit = rows["run submissions, 64 clients"]["numbers"]
    found: peers.Found = {
        "noop": noop["rate"],
        "noop, cpu": noop["server_cpu_per_1000"] + noop["database_cpu_per_1000"],
        "memory loaded": noop["memory_mb"],
        "submit": submit["rate"],
        "submit, cpu": (submit["server_cpu"] + submit["database_cpu"]) / submit["n"] * 1000,
        "handed": rows["Enqueue sent to handed to a waiting worker"]["raw"],
        "create": rows["CreateRun, light load"]["raw"],
        "fdatasync": rows["fdatasync of 4 KiB"]["raw"],
    }
    server = Server(binary, Path(tempfile.mkdtemp(prefix="killed-", dir=home)))
    found["start"] = server.start() * 1000
    server.deploy()
    found["memory idle"] = server.memory()["rss"]
    client = Client(server)
    request = client.create_request("noop", number=1)
    client.wait(client.create(request))
    began = time.perf_counter()
    server.process.kill()
    server.process.wait()
    server.start()
    found["killed, rpc"] = (time.perf_counter() - began) * 1000
    client = Client(server)
    run = client.create(request)
    found["killed, create"] = (time.perf_counter() - began) * 1000
    client.wait(run)
    server.stop()
    return found


def measure_peers(binary: Path, home: Path, rounds: int, short: bool, report: Report) -> None:
    """Aloft and other engines in turns, on the same disk and the same Postgres: see bench/peers."""
    with postgres(home) as (url, pid):
        print(flush=True)
        seconds, requests = (5, 100) if short else (30, 500)
        setting = peers.Setting(home, home / "postgres", pid, seconds, requests)
        compared = peers.compare(setting, rounds, lambda: beside_peers(binary, home, url, pid, seconds, short))
    print(f"\n{compared.table()}\n")
    report.peers = compared.raw()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure Aloft on this machine.")
    parser.add_argument("aloft", type=Path, help="the binary, built with --release")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {', '.join(SECTIONS)}")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--fan-out", type=int, default=200, help="children of a fan-out")
    parser.add_argument("--cold-fan-outs", type=int, default=5, help="how many of the fan-outs are cold too: a minute each")
    parser.add_argument("--short", action="store_true", help="less load, for minutes instead of an hour")
    parser.add_argument("--output", type=Path, help="where the raw results go")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")

    binary, repeat = arguments.aloft.resolve(), arguments.repeat
    home = Path(tempfile.mkdtemp(prefix="aloft-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    report = Report()
    if "start" in only:
        with report.section("start"):
            measure_start(binary, home, repeat, report)
    if "create" in only:
        with report.section("create"):
            measure_create(binary, home, repeat, report)
    if "enqueue" in only or "fan-out" in only:
        with warm_and_cold(binary, home) as clients:
            if "enqueue" in only:
                with report.section("enqueue"):
                    measure_enqueue(clients, home, repeat, report)
            if "fan-out" in only:
                with report.section("fan-out"):
                    measure_fan_out(clients, repeat, arguments.cold_fan_outs, arguments.fan_out, report)
    if "idle" in only:
        with report.section("idle"):
            measure_idle(binary, home, arguments.fan_out, report)
    if "stress" in only:
        with report.section("stress"):
            measure_stress(binary, home, arguments.short, report)
    if "load" in only:
        with report.section("load"):
            measure_load(binary, home, arguments.short, report)
    if "peers" in only:
        with report.section("peers"):
            measure_peers(binary, home, repeat, arguments.short, report)
    print(f"\n{report.table()}\n")
    output = arguments.output or HERE / "results" / f"{time.strftime('%Y-%m-%d-%H%M', time.gmtime())}.json"
    report.save(output, binary)
    print(f"every measurement: {output}")
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
