"""Starting and stopping: each thing that can be wrong is one clear sentence with its remedy and an exit code of its own,
and leaves what it found as it found it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
import wire
from harness import START_TIMEOUT, Server, eventually

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="these tests start servers of their own")

LOCKED, PORT, FULL, CORRUPT, NEWER, TOOL, PYTHON, DATA_DIR = range(10, 18)


@pytest.fixture
def aloft(binary, tmp_path):
    """Run `aloft dev` to its end: `aloft(*arguments, env=…)` gives (exit code, what it said)."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
        done = subprocess.run(
            [binary, "dev", *map(str, arguments)],
            env=dict(os.environ) | {"HOME": str(tmp_path)} | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=tmp_path,
        )
        assert "panicked" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def started(binary, tmp_path):
    """Start `aloft dev` for good: `started(*arguments)` gives a server; all are stopped at the end."""
    servers = []

    def start(*arguments: str | Path, data: Path = tmp_path / "data") -> Server:
        log = tmp_path / f"server{len(servers)}.log"
        (data / "endpoint").unlink(missing_ok=True)
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [binary, "dev", "--data-dir", str(data), "--port", "0", *map(str, arguments)],
                env=dict(os.environ) | {"HOME": str(tmp_path)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                cwd=tmp_path,
            )
        server = Server("", log, process)
        servers.append(server)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            if not (data / "endpoint").exists():
                return False
            server.__init__((data / "endpoint").read_text().strip(), log, process)
            return server.healthy()

        eventually(ready, "the server to start", START_TIMEOUT, log.read_text)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


def one_sentence(text: str) -> str:
    """The last line, which says why."""
    line = text.strip().splitlines()[-1]
    assert line.startswith("aloft: "), text
    return line


def tree(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def works(server: Server) -> None:
    assert wire.unary(server, "flyteidl2.auth.IdentityService/UserInfo", {})["subject"] == "anonymous"


def test_a_second_instance(started, aloft, tmp_path):
    first = started()
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0")
    assert code == LOCKED, said
    line = one_sentence(said)
    assert f"process {first.process.pid}" in line
    assert "--data-dir" in line
    works(first)
    assert first.stop() == 0


def test_a_lock_of_a_process_that_is_gone(started, tmp_path):
    first = started()
    first.process.kill()
    first.process.wait()
    second = started()
    assert second.endpoint == first.endpoint
    works(second)


def test_a_port_in_use(aloft, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, said = aloft("--data-dir", tmp_path / "data", "--port", port)
    assert code == PORT, said
    line = one_sentence(said)
    assert f"port {port} is in use" in line
    assert "--port" in line


def test_a_remembered_port_in_use(started, aloft, tmp_path):
    first = started()
    port = int(first.authority.rsplit(":", 1)[1])
    assert first.stop() == 0
    with socket.create_server(("127.0.0.1", port)):
        code, said = aloft("--data-dir", tmp_path / "data", "--port", "0")
    assert code == PORT, said
    assert "remembers" in one_sentence(said)
    assert (tmp_path / "data/port").read_text().strip() == str(port)
    assert started().endpoint == first.endpoint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use any port")
def test_a_privileged_port(aloft, tmp_path):
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "80")
    assert code == PORT, said
    assert "above 1023" in one_sentence(said)


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none(aloft, port):
    code, said = aloft(f"--port={port}")
    assert (code, "--port" in said) == (2, True), said


@contextlib.contextmanager
def disk(path: Path, size: str):
    """A small disk of its own at `path`."""
    path.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path, leave: int = 0) -> Path:
    """Use up the disk at `path` but for `leave` bytes."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
    if leave:
        os.truncate(filler, filler.stat().st_size - leave)
    return filler


@pytest.mark.parametrize("room", [0, 8 << 10, 64 << 10])
def test_a_full_disk(aloft, tmp_path, room):
    with disk(tmp_path / "small", "2m"):
        fill(tmp_path / "small", room)
        code, said = aloft("--data-dir", tmp_path / "small/data", "--port", "0")
        assert code == FULL, said
        line = one_sentence(said)
        assert "full" in line
        assert "free some space" in line


def test_a_disk_that_fills_up_and_is_cleared_again(started, tmp_path):
    with disk(tmp_path / "small", "16m"):
        data = tmp_path / "small/data"
        server = started(data=data)
        filler = fill(tmp_path / "small")
        request = {"project": {"id": "p", "name": "p", "description": "d" * 200}}
        with pytest.raises(wire.Failed) as raised:
            for number in range(200):
                request["project"]["id"] = f"p{number}"
                wire.unary(server, "flyteidl2.project.ProjectService/CreateProject", request)
        assert raised.value.code == "resource_exhausted", str(raised.value)
        assert "free some space" in raised.value.message
        works(server)
        filler.unlink()
        request["project"]["id"] = "later"
        wire.unary(server, "flyteidl2.project.ProjectService/CreateProject", request)
        assert server.stop() == 0
        assert "panicked" not in server.log_since(0)
        with contextlib.closing(sqlite3.connect(data / "aloft.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


CORRUPTIONS = {
    "not-a-database": lambda path: path.write_bytes(b"this is not a database, whatever its name says\n" * 100),
    "damaged-header": lambda path: patch(path, 0, b"XQLite"),
    "damaged-pages": lambda path: patch(path, 4096, b"\xff" * 8192),
    "cut-short": lambda path: os.truncate(path, 5000),
    "another-programs": lambda path: (path.unlink(), sqlite3.connect(path).execute("CREATE TABLE cats (name)")),
}


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("damage", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
def test_a_corrupt_database(started, aloft, tmp_path, damage):
    assert started().stop() == 0
    database = tmp_path / "data/aloft.db"
    # The server folds its log in when it stops, but does not wait for that: there must be something to damage.
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(database)
    for side in ("-wal", "-shm"):
        Path(f"{database}{side}").unlink(missing_ok=True)
    before = database.read_bytes()
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0")
    assert code == CORRUPT, said
    line = one_sentence(said)
    assert str(database) in line
    assert "backup" in line
    assert database.read_bytes() == before, "the damaged file was touched"


def test_a_newer_database(started, aloft, tmp_path):
    assert started().stop() == 0
    database = tmp_path / "data/aloft.db"
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA user_version = 4242")
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = database.read_bytes()
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0")
    assert code == NEWER, said
    line = one_sentence(said)
    assert "4242" in line
    assert "newer Aloft" in line
    assert database.read_bytes() == before


def tools(tmp_path: Path, *names: str) -> dict[str, str]:
    """A PATH with nothing but these."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for name in names:
        (directory / name).symlink_to(shutil.which(name) or "/bin/true")
    return {"PATH": str(directory)}


def test_no_tar(aloft, tmp_path):
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0", env=tools(tmp_path, "python3"))
    assert code == TOOL, said
    line = one_sentence(said)
    assert "`tar` is not on PATH" in line
    assert "install" in line


def test_no_python(aloft, tmp_path):
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0", env=tools(tmp_path, "tar"))
    assert code == PYTHON, said
    line = one_sentence(said)
    assert "Python" in line
    assert "--python" in line


@pytest.mark.parametrize("python", ["/nowhere/python", "/etc/passwd", "/tmp", "no-such-python-anywhere"])
def test_a_python_that_is_none(aloft, tmp_path, python):
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0", "--python", python)
    assert code == PYTHON, said
    line = one_sentence(said)
    assert python in line
    assert "name a Python interpreter" in line


def test_a_data_directory_that_is_a_file(aloft, tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        code, said = aloft("--data-dir", path, "--port", "0")
        assert code == DATA_DIR, said
        line = one_sentence(said)
        assert str(path) in line
        assert "--data-dir" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_data_directory_that_may_not_be_written(aloft, tmp_path):
    for path in ("/proc/aloft", "/sys/aloft"):
        code, said = aloft("--data-dir", path, "--port", "0")
        assert code == DATA_DIR, said
        assert "--data-dir" in one_sentence(said)


def test_a_master_key_that_is_cut_short(started, aloft, tmp_path):
    assert started().stop() == 0
    (tmp_path / "data/master.key").write_bytes(b"short")
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0")
    assert code == DATA_DIR, said
    assert "master.key" in one_sentence(said)
    assert (tmp_path / "data/master.key").read_bytes() == b"short"


def test_no_home(aloft):
    code, said = aloft("--port", "0", env={"HOME": "", "XDG_DATA_HOME": ""})
    assert code == DATA_DIR, said
    assert "--data-dir" in one_sentence(said)


def test_the_port_is_remembered(started, tmp_path):
    first = started()
    assert first.stop() == 0
    assert not (tmp_path / "data/endpoint").exists()
    second = started()
    assert second.endpoint == first.endpoint
    other = started(data=tmp_path / "other")
    assert other.endpoint != first.endpoint


def test_what_is_secret_is_for_its_owner_only(started, tmp_path):
    started()
    data = tmp_path / "data"
    assert data.stat().st_mode & 0o077 == 0
    assert (data / "master.key").stat().st_mode & 0o077 == 0


def test_a_configuration_is_written(started, tmp_path):
    config = tmp_path / "deep/config.yaml"
    server = started("--write-config", config)
    text = config.read_text()
    assert f"endpoint: dns:///localhost:{server.authority.rsplit(':', 1)[1]}" in text
    assert "builder: remote" in text
    assert server.stop() == 0
    # The same one again is no trouble.
    assert started("--write-config", config).stop() == 0
    assert config.read_text() == text


def test_a_configuration_is_never_overwritten(aloft, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("admin:\n  endpoint: dns:///precious.example\n")
    code, said = aloft("--data-dir", tmp_path / "data", "--port", "0", "--write-config", config)
    assert code == 1, said
    line = one_sentence(said)
    assert str(config) in line
    assert "--write-config" in line
    assert config.read_text() == "admin:\n  endpoint: dns:///precious.example\n"


def test_a_log_for_machines(started):
    server = started("--log-format", "json")
    works(server)
    assert server.stop() == 0
    lines = server.log_since(0).splitlines()
    assert lines
    for line in lines:
        record = json.loads(line)
        assert {"timestamp", "level", "message"} <= set(record), line


def test_an_error_for_machines(aloft, tmp_path):
    (tmp_path / "file").write_text("")
    code, said = aloft("--data-dir", tmp_path / "file", "--log-format", "json")
    assert code == DATA_DIR
    record = json.loads(said.strip().splitlines()[-1])
    assert record["level"] == "ERROR"
    assert "--data-dir" in record["message"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly(started, tmp_path, number):
    server = started()
    # An open watch and an idle connection do not keep it.
    idle = wire.connect(server)
    watch = wire.connect(server)
    body = wire.envelope(b"")
    watch.sendall(
        b"POST /flyteidl2.workflow.RunService/WatchRuns HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/connect+proto\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    assert b"200 OK" in watch.recv(4096)
    began = time.monotonic()
    server.process.send_signal(number)
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 10
    answer = b""
    while part := watch.recv(4096):
        answer += part
    assert b'"code":"unavailable"' in answer, answer
    idle.close()
    watch.close()
    assert "panicked" not in server.log_since(0)
    with contextlib.closing(sqlite3.connect(tmp_path / "data/aloft.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not (tmp_path / "data/endpoint").exists()
    works(started())


def test_two_signals_do_no_harm(started):
    server = started()
    server.process.send_signal(signal.SIGINT)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) in (0, 130)


def test_a_terminal_that_is_gone(binary, tmp_path):
    """What it has to say has nobody to read it: no reason to die."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [binary, "dev", "--data-dir", tmp_path / "data", "--port", "0"], stdout=write, stderr=write, stdin=subprocess.DEVNULL
    )
    os.close(write)
    os.close(read)
    try:
        eventually((tmp_path / "data/endpoint").exists, "the server to start", START_TIMEOUT)
        server = Server((tmp_path / "data/endpoint").read_text().strip())
        works(server)
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0


def test_domains_of_a_new_data_directory(started, aloft, tmp_path):
    code, said = aloft("--data-dir", tmp_path / "data", "--domain", "No_Such")
    assert code == 2 and "No_Such" in said, said
    config = tmp_path / "config.yaml"
    server = started("--domain", "blue", "--domain", "green", "--write-config", config)

    def domains() -> list[str]:
        return [d["id"] for d in wire.get(server, "flyteidl2.org.DomainService/ListDomains", {})["domains"]]

    assert domains() == ["blue", "green"]
    assert "domain: blue" in config.read_text()
    assert server.stop() == 0
    server = started("--domain", "red")
    assert domains() == ["blue", "green"], "later they are changed by who runs it"
    assert "--domain red is not made" in server.log.read_text()
