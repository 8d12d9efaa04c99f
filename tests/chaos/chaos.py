"""Kills servers, workers and Postgres at random while runs go on, and looks whether anything that was acknowledged is lost or
anything that was durable is done again.

usage: chaos.py ALOFT [--minutes N] [--seed N] [--store postgres|sqlite] [--no-failpoints] [--keep]

With `postgres`: two `aloft server`, two `aloft operator` and one Postgres, each killed with SIGKILL and started again; a balancer
stands before the servers. With `sqlite`: one server and two operators. Now and then a worker is away for longer than its lease,
so that what it held is tried again by the other. A binary with the feature `failpoints` also dies by itself: before and after
commits, reports, and starts of tasks (`FAILPOINTS` below).

What must hold at the end:

- every run whose creation was acknowledged is there, and has succeeded with what its children returned, each once;
- no attempt began twice, and none began that the record does not know;
- nothing began after its action had succeeded: an action has exactly one successful attempt, its last, and every attempt
  before it was lost with its worker;
- a run whose end was told once has ended ever since.

Prints a line every ten seconds and ends with code 1 and what was wrong. The same seed kills in the same order, though not in the
same moments of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

from balancer import Balancer  # noqa: E402
from harness import DOMAIN, PROJECT, Server, eventually, tail, write_config  # noqa: E402
from postgres import Postgres  # noqa: E402

RUNS = "flyteidl2.workflow.RunService"
SCOPE = {"org": "", "project": PROJECT, "domain": DOMAIN}
FINAL = {"SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"}
LEASE = 4.0
# Where servers and operators abort, and how often when they come by there.
FAILPOINTS = {
    "server": {"before-commit": 0.1, "after-commit": 0.1, "after-answers": 0.1},
    "operator": {"before-report": 1, "after-report": 1, "before-start": 1, "after-start": 1},
}
CHILDREN = 3


class Refused(Exception):
    """An answer that is an error of Connect."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


def ask(port: int, method: str, body: dict[str, Any]) -> dict[str, Any]:
    """One unary call. OSError if there is nobody, Refused if it is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", f"/{RUNS}/{method}", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        content = json.loads(answer.read() or b"{}")
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"cut off: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Refused(content.get("code", str(answer.status)), content.get("message", ""))
    return content


@dataclass
class Member:
    """A process that is killed and started again."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen | None = None
    failpoints: str = ""
    # Held by who kills it or starts it again.
    held: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ALOFT_")}
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                self.command,
                env=clean | {"DO_NOT_TRACK": "1", "FAILPOINTS": self.failpoints},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def lives(self) -> bool:
        return self.process is not None and self.process.poll() is None


class World:
    """Everything that runs."""

    def __init__(self, binary: Path, store: str, directory: Path, failpoints: bool):
        self.binary, self.store, self.directory, self.failpoints = binary, store, directory, failpoints
        self.postgres = Postgres() if store == "postgres" else None
        self.balancer = Balancer()
        self.marks = directory / "marks"
        self.token = directory / "token"
        self.token.write_text("chaos\n")
        self.servers = [self.server(n) for n in range(2 if self.postgres else 1)]
        self.operators = [self.operator(n) for n in range(2)]

    def points(self, kind: str) -> str:
        """What `FAILPOINTS` says to a process of this kind."""
        engine = {"server": self.store, "operator": "worker"}[kind]
        points = FAILPOINTS[kind] if self.failpoints else {}
        return ";".join(f"{engine}-{point}={percent}%return" for point, percent in points.items())

    def common(self, name: str) -> list[str]:
        sets = {
            "storage.path": self.directory / "objects",
            "masterKeyPath": self.directory / "master.key",
            "worker.tokenPath": self.token,
            "worker.lease": f"{LEASE:.0f}s",
            "debug.port": 0,
            "logger.format": "text",
        }
        options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        return ["--data-dir", str(self.directory / name), "--python", sys.executable, *options]

    def server(self, n: int) -> Member:
        name = f"server{n}"
        command = [str(self.binary), "server", "--no-worker", "--port", "0", *self.common(name)]
        command += ["--public-url", f"http://localhost:{self.balancer.port}"]
        if self.postgres:
            command += ["--database-url", self.postgres.url]
        return Member(name, command, self.directory / f"{name}.log")

    def operator(self, n: int) -> Member:
        name = f"operator{n}"
        url = ["--control-plane-url", f"http://localhost:{self.balancer.port}"]
        command = [str(self.binary), "operator", *url, *self.common(name)]
        return Member(name, command, self.directory / f"{name}.log", failpoints=self.points("operator"))

    def start_server(self, n: int) -> None:
        """Starts server `n` and waits until it serves; a database that is away then is waited for by it."""
        member = self.servers[n]
        endpoint = self.directory / member.name / "endpoint"
        endpoint.unlink(missing_ok=True)
        member.start()

        def serving() -> bool:
            if not member.lives():
                # The database was away for longer than a start waits: whatever supervises it starts it again.
                member.start()
            return endpoint.exists() and Server(endpoint.read_text().strip()).healthy()

        eventually(serving, f"{member.name} to serve", 90, lambda: tail(member.log))
        self.balancer.behind[n] = int(endpoint.read_text().strip().rsplit(":", 1)[1])

    def arm(self) -> None:
        """Has the servers die at their failpoints from now on. Nobody looks after them before, nor does `flyte deploy` try again."""
        for n, member in enumerate(self.servers):
            with member.held:
                member.failpoints = self.points("server")
                member.kill()
                self.start_server(n)

    def deploy(self) -> None:
        """Deploys the work."""
        config = write_config(self.directory / "config.yaml", f"localhost:{self.balancer.port}")
        flyte = Path(sys.executable).parent / "flyte"
        environment = dict(os.environ, HOME=str(self.directory), DO_NOT_TRACK="1", NO_COLOR="1")
        command = [str(flyte), "-c", str(config), "deploy", "--version", "chaos", "--all", "steps.py"]
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise SystemExit(f"cannot deploy: {done.stdout}{done.stderr}")

    def end(self) -> None:
        for member in [*self.servers, *self.operators]:
            if member.lives():
                member.process.send_signal(signal.SIGTERM)
        for member in [*self.servers, *self.operators]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(60)
        for path in self.directory.rglob("shim.json"):
            with contextlib.suppress(ProcessLookupError, ValueError, KeyError, OSError):
                os.kill(json.loads(path.read_text())["shim"]["pid"], signal.SIGTERM)
        if self.postgres:
            self.postgres.stop(signal.SIGINT)
            shutil.rmtree(self.postgres.directory, ignore_errors=True)


class Supervisor(threading.Thread):
    """Starts again what died by itself."""

    def __init__(self, world: World):
        super().__init__(daemon=True)
        self.world, self.stop, self.deaths, self.failure = world, threading.Event(), Counter(), ""

    def run(self) -> None:
        try:
            while not self.stop.wait(0.2):
                self.look()
        except BaseException as error:
            self.failure = f"the supervisor failed: {error!r}"

    def look(self) -> None:
        for n, member in enumerate([*self.world.servers, *self.world.operators]):
            if member.held.acquire(blocking=False):
                try:
                    if member.lives():
                        continue
                    code = member.process.returncode
                    if code not in (-signal.SIGABRT, -signal.SIGKILL):
                        raise SystemExit(f"{member.name} ended with {code}: {tail(member.log)}")
                    self.deaths[member.name.rstrip("0123456789")] += 1
                    if n < len(self.world.servers):
                        self.world.start_server(n)
                    else:
                        member.start()
                finally:
                    member.held.release()


class Clients:
    """Creates runs, watches some of them, and remembers what it was told."""

    def __init__(self, world: World, rounds: int, together: int):
        self.world, self.rounds = world, rounds
        self.acknowledged: set[str] = set()
        self.ended: dict[str, str] = {}
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.create, args=(n,), daemon=True) for n in range(together)]

    def say(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what)

    def call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Until somebody answers, as the SDK does."""
        while True:
            try:
                return ask(self.world.balancer.port, method, body)
            except OSError:
                time.sleep(0.2)
            except Refused as refused:
                if refused.code not in ("unavailable", "deadline_exceeded", "aborted", "resource_exhausted"):
                    raise
                time.sleep(0.2)

    def create(self, thread: int) -> None:
        envs = {"CHAOS_MARKS": str(self.world.marks), "CHAOS_ROUNDS": str(self.rounds)}
        spec = {"envs": {"values": [{"key": k, "value": v} for k, v in envs.items()]}}
        task = {**SCOPE, "name": "chaos.main", "version": "chaos"}
        number = 0
        while not self.stop.is_set():
            name = f"c{thread}-{number}"
            number += 1
            try:
                self.call("CreateRun", {"runId": {**SCOPE, "name": name}, "taskId": task, "runSpec": spec})
            except Refused as refused:
                self.say(f"CreateRun {name} was refused: {refused}")
                return
            with self.lock:
                self.acknowledged.add(name)
            self.follow(name)

    def follow(self, name: str) -> None:
        """Asks for the phase of a run until it is final."""
        while True:
            phase = self.phase(name)
            if phase in FINAL:
                with self.lock:
                    self.ended[name] = phase
                return
            time.sleep(0.3)

    def phase(self, name: str) -> str:
        try:
            told = self.call("GetRunDetails", {"runId": {**SCOPE, "name": name}})
        except Refused as refused:
            self.say(f"run {name} was acknowledged, and is gone: {refused}")
            return "FAILED"
        return told["details"]["action"]["status"]["phase"].removeprefix("ACTION_PHASE_")


class Killer(threading.Thread):
    """Kills one thing after the other."""

    def __init__(self, world: World, seed: int):
        super().__init__(daemon=True)
        self.world, self.random = world, random.Random(seed)
        self.stop = threading.Event()
        self.kills: Counter[str] = Counter()
        self.failure = ""

    def run(self) -> None:
        try:
            while not self.stop.wait(self.random.uniform(0.3, 4.0)):
                self.strike()
        except BaseException as error:
            self.failure = f"the killer failed: {error!r}"

    def strike(self) -> None:
        world, draw = self.world, self.random
        whom = draw.choices(["server", "operator", "postgres"], [4, 4, 2 if world.postgres else 0])[0]
        if whom == "postgres":
            world.postgres.stop(signal.SIGKILL)
            self.stop.wait(draw.choice([0, 0.2, 2.0]))
            world.postgres.start()
        elif whom == "server":
            n = draw.randrange(len(world.servers))
            with world.servers[n].held:
                world.servers[n].kill()
                self.stop.wait(draw.choice([0, 0, 1.0]))
                world.start_server(n)
        else:
            member = draw.choice(world.operators)
            with member.held:
                member.kill()
                # Away for longer than its lease: what it held goes to the other, and comes back to die.
                self.stop.wait(LEASE * 2 if draw.random() < 0.15 else draw.choice([0, 0.5, 1.0]))
                member.start()
        self.kills[whom] += 1


def details(clients: Clients, run: str, action: str) -> dict[str, Any]:
    id = {"run": {**SCOPE, "name": run}, "name": action}
    return clients.call("GetActionDetails", {"actionId": id})["details"]


def listed(clients: Clients, run: str) -> list[str]:
    names: list[str] = []
    token = ""
    while True:
        body = {"runId": {**SCOPE, "name": run}, "request": {"limit": 100, "token": token}}
        answer = clients.call("ListActions", body)
        names += [action["id"]["name"] for action in answer.get("actions", [])]
        if not (token := answer.get("token", "")):
            return names


def judge(world: World, clients: Clients) -> list[str]:
    """What is wrong with what is left."""
    wrong = list(clients.wrong)
    begun: dict[tuple[str, str, int], int] = defaultdict(int)
    values: dict[tuple[str, str, int], list[str]] = {}
    for line in world.marks.read_text().splitlines():
        run, action, attempt, what, *rest = line.split(" ")
        if what == "begin":
            begun[run, action, int(attempt)] += 1
        else:
            values[run, action, int(attempt)] = rest
    wrong += [f"{key} began {count} times" for key, count in begun.items() if count > 1]
    lost = 0
    known: set[tuple[str, str, int]] = set()
    for run in clients.acknowledged:
        phase = clients.phase(run)
        if (told := clients.ended.get(run)) != phase:
            wrong.append(f"run {run} was told to have ended {told}, and is now {phase}")
        if phase != "SUCCEEDED":
            wrong.append(f"run {run} ended {phase}: {details(clients, run, 'a0')}")
            continue
        names = listed(clients, run)
        if len(names) != 1 + CHILDREN * clients.rounds:
            wrong.append(f"run {run} has {len(names)} actions")
        returned: Counter[str] = Counter()
        for name in names:
            attempts = details(clients, run, name)["attempts"]
            phases = [a["phase"].removeprefix("ACTION_PHASE_") for a in attempts]
            known |= {(run, name, n + 1) for n in range(len(attempts))}
            if phases[-1] != "SUCCEEDED" or "SUCCEEDED" in phases[:-1]:
                wrong.append(f"{run}/{name}: attempts ended {phases}")
            for attempt in attempts[:-1]:
                lost += 1
                if "was not heard of" not in json.dumps(attempt) and "connected anew" not in json.dumps(attempt):
                    wrong.append(f"{run}/{name}: an attempt failed otherwise than with its worker: {attempt}")
            last = values.get((run, name, len(attempts)))
            if last is None:
                wrong.append(f"{run}/{name}: its last attempt succeeded, and never ended")
            elif name == "a0":
                summed = Counter(last)
            else:
                returned[last[0]] += 1
        if returned != summed:
            wrong.append(f"run {run} summed up {sorted(summed)}, and its children returned {sorted(returned)}")
    ours = {key for key in begun if key[0] in clients.acknowledged}
    wrong += [f"{key} began, and is not in the record" for key in ours - known]
    print(f"  {len(known)} attempts of {len(clients.acknowledged)} runs; {lost} were lost with their workers and done again")
    for member in [*world.servers, *world.operators]:
        if "panicked at" in member.log.read_text(errors="replace"):
            wrong.append(f"{member.name} panicked: see {member.log}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aloft", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--store", choices=["postgres", "sqlite"], default="postgres")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of three children that a run has")
    parser.add_argument("--together", type=int, default=4, help="runs under way at a time")
    parser.add_argument("--no-failpoints", dest="failpoints", action="store_false", help="they only die when killed")
    parser.add_argument("--keep", action="store_true", help="keep what it leaves, also if all went well")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    print(f"seed {options.seed}, store {options.store}, {options.minutes} minutes, in {directory}", flush=True)
    world = World(options.aloft.resolve(), options.store, directory, options.failpoints)
    try:
        for n in range(len(world.servers)):
            world.start_server(n)
        world.deploy()
        for operator in world.operators:
            operator.start()
        clients, killer = Clients(world, options.rounds, options.together), Killer(world, options.seed)
        supervisor = Supervisor(world)
        supervisor.start()
        world.arm()
        for thread in [*clients.threads, killer]:
            thread.start()
        end = time.monotonic() + options.minutes * 60
        while time.monotonic() < end and not (clients.wrong or killer.failure or supervisor.failure):
            time.sleep(min(10, max(0.1, end - time.monotonic())))
            kills = ", ".join(f"{count} {whom}" for whom, count in sorted(killer.kills.items()))
            deaths = ", ".join(f"{count} {whom}" for whom, count in sorted(supervisor.deaths.items()))
            runs = f"{len(clients.ended)} of {len(clients.acknowledged)} runs ended"
            print(f"  killed {kills or 'nothing'}; died by themselves {deaths or 'none'}; {runs}", flush=True)
        killer.stop.set()
        killer.join(120)
        clients.stop.set()
        for thread in clients.threads:
            thread.join(300)
        supervisor.stop.set()
        supervisor.join(120)
        for failure in (killer.failure, supervisor.failure):
            if failure:
                clients.say(failure)
        stuck = [name for name in clients.acknowledged if name not in clients.ended]
        wrong = [f"run {name} did not end: {details(clients, name, 'a0')}" for name in stuck]
        wrong += judge(world, clients)
    finally:
        world.end()
    kills, deaths = sum(killer.kills.values()), sum(supervisor.deaths.values())
    if wrong:
        print("\n".join(["WRONG:", *wrong[:40]]))
        print(f"everything is kept in {directory}; seed {options.seed}")
        return 1
    print(f"{kills} kills, {deaths} deaths at failpoints, {len(clients.acknowledged)} runs: nothing lost, nothing done again. Seed {options.seed}.")
    if not options.keep:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
