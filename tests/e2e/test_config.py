"""One configuration for every role, what looks at it, and the control plane that runs by it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import wire
from harness import EXAMPLES, RUN_TIMEOUT, STOP_TIMEOUT, Cli, Server, eventually, tail, write_config

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="these tests start servers of their own")

LOCKED, CONFIG = 10, 19
PYTHON = os.environ.get("ALOFT_E2E_PYTHON", sys.executable)
SECRET = "hunter2-is-no-secret"


@pytest.fixture
def aloft(binary, tmp_path):
    """Run a command to its end: `aloft(*arguments, env=…)` gives (exit code, standard output, standard error)."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ALOFT_")}
        done = subprocess.run(
            [binary, *map(str, arguments)],
            env=clean | {"HOME": str(tmp_path)} | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert "panicked" not in done.stderr, done.stderr
        assert SECRET not in done.stdout + done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(aloft, *arguments: str | Path, env: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What `config show` says, by key."""
    code, out, said = aloft("config", "show", "-o", "json", *arguments, env=env)
    assert code == 0, said
    return {entry["key"]: entry for entry in json.loads(out)}


# Reading


def test_files_then_environment_then_flags(aloft, tmp_path):
    a = written(tmp_path / "etc/10-a.yaml", "organization: a\nlisten:\n  port: 1\n  names: [x, y]\n")
    b = written(tmp_path / "etc/20-b.yaml", "organization: b\nlisten: {port: 2}\nclusterName: b\n")
    pattern = ("--config", tmp_path / "etc/*.yaml")
    keys = shown(aloft, *pattern, "--set", "listen.port=4", env={"ALOFT_LISTEN_PORT": "3", "ALOFT_CLUSTER_NAME": "c"})
    assert (keys["organization"]["value"], keys["organization"]["source"]) == ("b", str(b))
    assert (keys["listen.names"]["value"], keys["listen.names"]["source"]) == (["x", "y"], str(a))
    assert (keys["clusterName"]["value"], keys["clusterName"]["source"]) == ("c", "$ALOFT_CLUSTER_NAME")
    assert (keys["listen.port"]["value"], keys["listen.port"]["source"]) == (4, "--set listen.port")
    assert (keys["debug.port"]["value"], keys["debug.port"]["source"]) == (10254, "default")
    assert shown(aloft, "--config", b, "--config", a)["organization"]["value"] == "a"
    assert shown(aloft, env={"ALOFT_CONFIG": f"{a},{b}"})["listen.port"]["value"] == 2


def test_every_variable_is_as_documented(aloft):
    for key, entry in shown(aloft, "--role", "server").items():
        assert entry["variable"] == "ALOFT_" + re.sub(r"([A-Z])", r"_\1", key).replace(".", "_").upper()
        assert entry["about"], key


def test_unknown_keys_are_all_named(aloft, tmp_path):
    a = written(tmp_path / "a.yaml", "listen:\n  prot: 1\n  port: 2\nzzzzzz:\n  deep: {er: 1}\n")
    b = written(tmp_path / "b.yaml", "databse:\n  host: h\n")
    for command in (["config", "check"], ["server"], ["dev"], ["config", "show"]):
        code, out, said = aloft(*command, "--config", a, "--config", b, env={"ALOFT_LOGGER_FORMAT": "text"})
        assert code == CONFIG, said
        lines = said.splitlines()
        assert lines[0] == "aloft: invalid keys: databse.host, listen.prot, zzzzzz.deep.er", said
        assert f"  {a}: listen.prot: there is no such key; did you mean listen.port?" in lines
        assert f"  {b}: databse.host: there is no such key; did you mean database.host?" in lines
        assert any(line.startswith(f"  {a}: zzzzzz.deep.er: there is no such key") for line in lines)


def test_check_lists_everything_that_is_wrong(aloft, tmp_path):
    file = written(
        tmp_path / "a.yaml",
        "listen: {port: 99999}\nlogger: {format: xml}\ndatabase: {password: 12345}\nnone: 1\n",
    )
    code, out, said = aloft("config", "check", "--config", file, "-o", "json", "--set", "domains")
    assert code == CONFIG, said
    problems = {p["key"]: p for p in json.loads(out)}
    assert set(problems) == {"listen.port", "logger.format", "database.password", "none", ""}
    for key, problem in problems.items():
        assert problem["file"] == (str(file) if key else "--set domains")
        assert problem["reason"] and problem["remedy"], problem
    assert "12345" not in json.dumps(problems["database.password"])
    assert "json or text" in problems["logger.format"]["reason"]


def test_rules_across_keys_are_checked(aloft, tmp_path):
    file = written(
        tmp_path / "a.yaml",
        "listen: {addresses: ['0.0.0.0'], port: 7, publicUrl: aloft.example}\ndebug: {port: 7}\n"
        "database: {host: h, passwordPath: /nowhere/pass.txt}\nlogger: {level: inf0}\n",
    )
    code, out, _ = aloft("config", "check", "--config", file, "-o", "json")
    assert code == CONFIG
    keys = sorted(p["key"] for p in json.loads(out))
    assert keys == ["database.passwordPath", "debug.port", "listen.addresses", "listen.publicUrl", "logger.level"]


def test_a_good_configuration_is_a_sentence(aloft, tmp_path):
    file = written(tmp_path / "a.yaml", "# ours\ndomains: [blue]\n")
    code, out, said = aloft("config", "check", "--config", file)
    assert (code, said) == (0, "")
    assert out == "The configuration of `aloft server` is good: 1 file and 1 key set.\n"
    code, out, _ = aloft("config", "check")
    assert code == 0 and "`aloft dev`" in out


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [", "YAML"), ("- a\n", "holds no keys"), ("a: 1\na: 2\n", "YAML"), ("\x00\x01", "YAML")],
)
def test_a_file_that_is_none(aloft, tmp_path, text, reason):
    file = written(tmp_path / "a.yaml", text)
    code, _, said = aloft("config", "check", "--config", file)
    assert code == CONFIG and str(file) in said and reason in said, said


def test_a_file_that_is_not_there(aloft, tmp_path):
    for pattern in (tmp_path / "none.yaml", tmp_path / "none/*.yaml", tmp_path):
        code, _, said = aloft("config", "check", "--config", pattern)
        assert code == CONFIG and str(pattern) in said, said


def test_names_of_the_specification_are_accepted_and_said(aloft, tmp_path):
    password = written(tmp_path / "pass.txt", f"{SECRET}\n")
    file = written(
        tmp_path / "a.yaml",
        "db:\n  host: db.internal\n  port: 5433\n  dbname: runs\n  username: me\n"
        f"  passwordPath: {password}\n  connectionPool: {{maxOpenConnections: 20, maxConnectionLifetime: 1m}}\n"
        "logger: {level: 5, show-source: true}\n"
        "domains: [{id: blue, name: Blue}]\nseedProjects: [one, two]\n"
        "sharedService: {port: 8081, security: {singleTenantOrgID: acme}}\nprof-port: 10255\n"
        "storage: {type: local, container: bucket}\n",
    )
    code, out, said = aloft("config", "show", "-o", "json", "--config", file)
    assert code == 0, said
    values = {entry["key"]: entry["value"] for entry in json.loads(out)}
    wanted = {
        "database.host": "db.internal", "database.port": 5433, "database.dbname": "runs", "database.username": "me",
        "database.passwordPath": str(password), "logger.level": "debug", "logger.showSource": True,
        "domains": ["blue"], "projects": ["one", "two"], "listen.port": 8081, "organization": "acme",
        "debug.port": 10255, "storage.bucketName": "bucket",
    }  # fmt: skip
    assert {key: values[key] for key in wanted} == wanted
    for name in ("db.host", "logger.level", "logger.show-source", "domains", "prof-port", "storage.container"):
        assert len([line for line in said.splitlines() if f": {name}" in line]) == 1, (name, said)


def test_secrets_are_not_shown(aloft, tmp_path):
    file = written(tmp_path / "a.yaml", f"database:\n  host: h\n  password: {SECRET}\n")
    assert shown(aloft, "--config", file)["database.password"]["value"] == "<redacted>"
    keys = shown(aloft, "--config", file, env={"ALOFT_DATABASE_PASSWORD": SECRET})
    assert keys["database.password"]["source"] == "$ALOFT_DATABASE_PASSWORD"
    # Neither when they are wrong, nor when the database is.
    url = f"postgres://me:{SECRET}@127.0.0.1:1/x"
    assert aloft("server", "--data-dir", tmp_path / "d", "--database-url", f"x{url}")[0] == CONFIG
    assert aloft("server", "--data-dir", tmp_path / "d", "--database-url", url, "--set", "debug.port=0")[0] != 0
    assert aloft("doctor", "--role", "server", "--set", f"database.url={url}")[0] == 1


def test_the_schema_names_every_key(aloft):
    code, out, _ = aloft("config", "schema")
    assert code == 0
    schema = json.loads(out)
    assert schema["$schema"].endswith("2020-12/schema") and schema["additionalProperties"] is False

    def leaves(schema: dict[str, Any], path: str = "") -> set[str]:
        if "properties" not in schema:
            return {path}
        return set().union(*(leaves(s, f"{path}.{name}".lstrip(".")) for name, s in schema["properties"].items()))

    assert leaves(schema) == set(shown(aloft))


# The control plane


class ControlPlane(Server):
    """An `aloft server` on ports of its own."""

    debug = ""

    def asked(self, path: str, port: str = "debug", headers: dict[str, str] | None = None) -> tuple[int, str]:
        base = self.debug if port == "debug" else self.endpoint
        try:
            with urllib.request.urlopen(urllib.request.Request(base + path, headers=headers or {}), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def started(binary, tmp_path):
    """Start an `aloft server`: `started(*arguments)`; all are stopped at the end."""
    servers = []

    def start(*arguments: str | Path, data: Path = tmp_path / "data", env: dict[str, str] | None = None) -> ControlPlane:
        log = tmp_path / f"server{len(servers)}.log"
        command = [binary, "server", "--data-dir", data, "--port", "0", "--debug-port", "0", "--python", PYTHON, *arguments]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("ALOFT_")}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                list(map(str, command)),
                env=clean | {"HOME": str(tmp_path)} | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        server = ControlPlane("", log, process)
        servers.append(server)

        def serving() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return re.search(r"health and metrics at (http://[^\s\"]+)", log.read_text())

        debug = eventually(serving, "the server to serve", 30, lambda: tail(log))[1]
        server.__init__(eventually((data / "endpoint").read_text, "an endpoint", 10), log, process)
        server.debug = debug
        eventually(lambda: server.asked("/readyz")[0] == 200, "the server to be ready", 30, lambda: tail(log))
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        assert "panicked" not in server.log_since(0), tail(server.log)


def records(server: Server) -> list[dict[str, Any]]:
    """The lines of a log for machines."""
    return [json.loads(line) for line in server.log_since(0).splitlines()]


def test_a_server_runs_a_workflow(started, tmp_path):
    file = written(tmp_path / "etc/a.yaml", "projects: [one]\ndomains: [blue]\norganization: acme\n")
    database = tmp_path / "db/aloft.db"
    server = started("--config", file, "--database-url", f"sqlite://{database}")
    config = write_config(tmp_path / "config.yaml", server.authority, project="one")
    config.write_text(config.read_text().replace("domain: development", "domain: blue"))
    flyte = Cli(Path(sys.executable).parent / "flyte", config, tmp_path)
    ran = flyte("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT)
    assert ran.run_name
    assert not (tmp_path / "data/aloft.db").exists()
    text = server.asked("/metrics")[1]
    assert re.search(r'aloft_rpc_duration_seconds_count\{[^}]*method="CreateRun",code="ok"\} 1', text), text
    assert server.stop() == 0
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_metrics_tell_calls_and_streams_by_code(started):
    server = started()
    wire.unary(server, "flyteidl2.auth.IdentityService/UserInfo", {})
    with pytest.raises(wire.Failed):
        wire.unary(server, "flyteidl2.project.ProjectService/GetProject", {"id": "none"})
    with pytest.raises(wire.Failed):
        wire.unary(server, "no.such.Service/Method", {})

    def counted(name: str, **labels: str) -> float:
        status, text = server.asked("/metrics")
        assert status == 200
        found = [line for line in text.splitlines() if line.startswith(name + "{")]
        found = [line for line in found if all(f'{k}="{v}"' in line for k, v in labels.items())]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    calls, streams = "aloft_rpc_duration_seconds_count", "aloft_rpc_stream_duration_seconds_count"
    user_info = {"service": "flyteidl2.auth.IdentityService", "method": "UserInfo"}
    assert counted(calls, code="ok", **user_info) == 1
    assert counted("aloft_rpc_duration_seconds_bucket", le="+Inf", **user_info) == 1
    assert counted(calls, code="not_found", method="GetProject") == 1
    assert counted(calls, service="no.such.Service") == 0
    watch = wire.connect(server)
    body = wire.envelope(b"")
    watch.sendall(
        b"POST /flyteidl2.workflow.RunService/WatchRuns HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/connect+proto\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    assert b"200 OK" in watch.recv(4096)
    eventually(lambda: counted("aloft_rpc_streams_open", method="WatchRuns") == 1, "the stream to be counted", 10)
    watch.close()
    eventually(lambda: counted("aloft_rpc_streams_open", method="WatchRuns") == 0, "the stream to be given up", 60)
    assert counted(streams, method="WatchRuns") == 1
    text = server.asked("/metrics")[1]
    assert re.search(r'^aloft_build_info\{version="[^"]+",role="server"\} 1$', text, re.MULTILINE), text
    assert re.search(r"^aloft_uptime_seconds [0-9.]+$", text, re.MULTILINE), text


def test_health_is_on_both_ports_and_data_on_one(started):
    server = started()
    for port in ("debug", "main"):
        assert server.asked("/healthz", port) == (200, "ok\n")
        assert server.asked("/readyz", port) == (200, "ok\n")
    assert server.asked("/v2")[0] == 404
    assert server.asked("/metrics", "main")[0] == 404


def test_a_signal_drains(started):
    server = started("--set", "drain.delay=60s", "--drain-timeout", "5s")
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: server.asked("/readyz")[0] == 503, "the server to drain", 20)
    assert "draining" in server.asked("/readyz")[1]
    # Whoever has not noticed yet is served, until the delay is over or cut short.
    assert wire.unary(server, "flyteidl2.auth.IdentityService/UserInfo", {})["subject"] == "anonymous"
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(STOP_TIMEOUT) == 0


def test_requests_have_an_identity(started):
    server = started("--set", "logger.level=debug")
    path = "/flyteidl2.project.ProjectService/GetProject"

    def identity(headers: dict[str, str]) -> str:
        request = urllib.request.Request(
            server.endpoint + path, b'{"id": "none"}', {"Content-Type": "application/json"} | headers
        )
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=10)
        return raised.value.headers["x-request-id"]

    assert identity({"X-Request-Id": "trace-1.2"}) == "trace-1.2"
    own = identity({})
    assert re.fullmatch(r"[0-9a-f]{16}", own)
    assert identity({"X-Request-Id": 'a b"c'}) != 'a b"c'
    for wanted in ("trace-1.2", own):
        eventually(
            lambda: any(r.get("span", {}).get("request_id") == wanted for r in records(server)),
            f"a line about {wanted}",
            10,
            lambda: tail(server.log),
        )


def test_nobody_listens_beyond_this_machine_unawares(aloft, started, tmp_path):
    code, _, said = aloft("server", "--data-dir", tmp_path / "d", "--address", "0.0.0.0", "--log-format", "text")
    assert code == CONFIG, said
    assert "0.0.0.0" in said and "--insecure-no-auth" in said and "listen on 127.0.0.1" in said
    assert not (tmp_path / "d").exists(), "nothing was begun"
    code, _, said = aloft("dev", "--data-dir", tmp_path / "d", "--set", "listen.addresses=0.0.0.0")
    assert code == CONFIG and "`aloft server`" in said, said


def test_a_server_answers_by_the_names_it_is_given(started):
    server = started("--public-url", "https://aloft.example", "--set", "listen.names=inside.example")
    for host, status in [("aloft.example", 200), ("INSIDE.example:1", 200), ("192.0.2.1", 200), ("other.example", 403)]:
        assert server.asked("/v2", "main", {"Host": host})[0] == status, host
    assert "listen.names" in server.asked("/v2", "main", {"Host": "other.example"})[1]


def test_one_process_has_a_database(aloft, started, tmp_path):
    url = f"sqlite://{tmp_path / 'db/aloft.db'}"
    started("--database-url", url)
    code, _, said = aloft("server", "--data-dir", tmp_path / "other", "--database-url", url, "--port", "0", "--debug-port", "0")
    assert code == LOCKED and "aloft.db" in said, said


def test_names_that_are_accepted_are_said_once_in_the_log(started, tmp_path):
    file = written(tmp_path / "a.yaml", "orgName: acme\n")
    server = started("--config", file)
    said = [r for r in records(server) if "orgName" in r["message"]]
    assert len(said) == 1 and said[0]["level"] == "WARN" and "organization" in said[0]["message"]


def test_dev_takes_the_same_configuration(aloft, binary, tmp_path):
    file = written(tmp_path / "a.yaml", "domains: [blue]\nlisten: {port: 0}\ndebug: {enabled: true, port: 0}\n")
    data, log = tmp_path / "data", tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [binary, "dev", "--data-dir", data, "--config", file, "--python", PYTHON], stdout=sink, stderr=sink
        )
    try:
        eventually((data / "endpoint").exists, "the server to start", 30, lambda: tail(log))
        server = Server((data / "endpoint").read_text(), log, process)
        found = wire.get(server, "flyteidl2.org.DomainService/ListDomains", {})["domains"]
        assert [d["id"] for d in found] == ["blue"]
        # What looks at it finds it.
        code, out, said = aloft("doctor", "--data-dir", data, "--config", file, "--role", "dev", "-o", "json")
        assert code == 0, out + said
        findings = {f["check"]: f for f in json.loads(out)}
        assert findings["port"]["state"] == "ok" and "served by Aloft" in findings["port"]["found"]
        assert findings["readiness"]["state"] == "ok" and findings["clock"]["state"] == "ok"
        assert findings["object store"]["state"] == "ok" and "deleted" in findings["object store"]["found"]
        assert findings["database"]["state"] == "ok" and "schema" in findings["database"]["found"]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_TIMEOUT) == 0


# The doctor


def test_a_doctor_finds_nothing_on_a_new_machine(aloft, tmp_path):
    code, out, said = aloft("doctor", "--set", "listen.port=0", "-o", "json")
    findings = {f["check"]: f for f in json.loads(out)}
    assert code == 0, out + said
    for check in ("configuration", "data directory", "database", "object store", "port", "tar", "python"):
        assert findings[check]["state"] == "ok", findings[check]
    assert not (tmp_path / ".local").exists(), "it only looks"


def test_a_doctor_says_what_is_wrong_and_how_to_mend_it(aloft, tmp_path):
    data = tmp_path / "data"
    (data / "objects").mkdir(parents=True)
    (data / "aloft.db").write_bytes(b"this is not a database, whatever its name says\n" * 100)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, said = aloft(
            "doctor", "--data-dir", data, "--set", f"listen.port={port}", "--set", "executor.python=/nowhere/python", "-o", "json"
        )
    findings = {f["check"]: f for f in json.loads(out)}
    assert code == 1 and "checks failed" in said, said
    failed = {check for check, f in findings.items() if f["state"] == "fail"}
    assert failed == {"database", "port", "python"}, findings
    assert all(findings[check]["remedy"] for check in failed), findings
    assert "/nowhere/python" in findings["python"]["found"]
    assert findings["object store"]["state"] == "ok"
    assert list((data / "objects").rglob("*aloft-doctor*")) == [], "nothing is left behind"
    code, out, _ = aloft("doctor", "--data-dir", data, "--set", f"listen.port={port}")
    assert code == 1 and out.splitlines()[0].split() == ["CHECK", "STATE", "FOUND", "REMEDY"]


def test_a_doctor_of_a_bad_configuration(aloft, tmp_path):
    file = written(tmp_path / "a.yaml", "lisen: {port: 1}\n")
    code, out, _ = aloft("doctor", "--config", file, "-o", "json")
    assert code == 1
    finding = json.loads(out)[0]
    assert (finding["check"], finding["state"]) == ("configuration", "fail")
    assert str(file) in finding["found"] and "lisen.port" in finding["found"] and "listen.port" in finding["remedy"]


def test_a_doctor_of_a_server_that_is_not_there(aloft):
    code, out, _ = aloft("doctor", "--endpoint", "http://127.0.0.1:9", "-o", "json")
    findings = {f["check"]: f for f in json.loads(out)}
    assert code == 1 and findings["port"]["state"] == "fail" and findings["clock"]["state"] == "skip"
