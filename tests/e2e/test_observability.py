"""What a control plane tells of itself: metrics that add up, logs that name the request, traces that a collector understands."""

from __future__ import annotations

import http.server
import json
import math
import os
import re
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import wire
from harness import EXAMPLES, REPOSITORY, RUN_TIMEOUT, Cli, eventually, tail, write_config
from test_config import records, started  # noqa: F401  (a fixture)

pytestmark = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="these tests start servers of their own")

SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')
STAGES = ["acceptance", "queue", "transition", "execution", "completion"]


class Scrape:
    """The answer of /metrics, read strictly."""

    def __init__(self, text: str):
        self.types: dict[str, str] = {}
        self.help: dict[str, str] = {}
        self.samples: list[tuple[str, dict[str, str], float]] = []
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ", 3)
                assert name not in self.types, f"{name} is declared twice"
                self.types[name] = kind
            elif line.startswith("# HELP "):
                _, _, name, words = line.split(" ", 3)
                self.help[name] = words
            elif not line.startswith("#"):
                match = SAMPLE.match(line)
                assert match, line
                labels = dict(LABEL.findall(match[2] or ""))
                self.samples.append((match[1], labels, float(match[3])))
        assert text.endswith("# EOF\n")

    def all(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        found = [(own, value) for sample, own, value in self.samples if sample == name]
        return [(own, value) for own, value in found if labels.items() <= own.items()]

    def sum(self, name: str, **labels: str) -> float:
        return math.fsum(value for _, value in self.all(name, **labels))


def scrape(server) -> Scrape:
    status, text = server.asked("/metrics")
    assert status == 200
    return Scrape(text)


@pytest.fixture
def flyte(tmp_path):
    def of(server) -> Cli:
        config = write_config(tmp_path / "config.yaml", server.authority)
        return Cli(Path(sys.executable).parent / "flyte", config, tmp_path)

    return of


def actions_of(server, run: str) -> list[dict]:
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": run}
    answer = wire.unary(server, "flyteidl2.workflow.RunService/ListActions", {"runId": run_id, "request": {"limit": 500}})
    return answer["actions"]


def details_of(server, run: str, action: str) -> dict:
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": run}
    body = {"actionId": {"run": run_id, "name": action}}
    return wire.unary(server, "flyteidl2.workflow.RunService/GetActionDetails", body)["details"]


def seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def settled(server, actions: int) -> Scrape:
    """The counts, once all of them are in."""

    def complete() -> Scrape | None:
        found = scrape(server)
        return found if found.sum("aloft_actions_ended_total") >= actions else None

    return eventually(complete, f"{actions} actions to be counted", 30)


def test_stages_of_a_run_add_up(started, flyte):  # noqa: F811
    server = started()
    run = flyte(server)("run", "--follow", str(EXAMPLES / "fan_out.py"), "main", timeout=RUN_TIMEOUT).run_name
    actions = actions_of(server, run)
    tasks = Counter(a["metadata"]["task"]["id"]["name"] for a in actions)
    attempts = {a["id"]["name"]: details_of(server, run, a["id"]["name"])["attempts"] for a in actions}
    assert sum(map(len, attempts.values())) == len(actions), "each was tried once"
    found = settled(server, len(actions))
    where = {"project": "flytesnacks", "domain": "development"}
    stage = "aloft_stage_duration_seconds"
    for task, count in tasks.items():
        for name in STAGES:
            assert found.sum(f"{stage}_count", stage=name, task=task, **where) == count, (task, name)
        assert found.sum("aloft_actions_ended_total", task=task, phase="succeeded", **where) == count
    assert found.sum("aloft_runs_ended_total", phase="succeeded", **where) == 1
    assert found.sum(f"{stage}_count") == len(STAGES) * len(actions), "and nothing else is counted"

    # The sums are those of the times that the run itself shows.
    def between(begin: str, end: str) -> float:
        total = 0.0
        for (attempt,) in attempts.values():
            at = {t["phase"]: seconds(t["startTime"]) for t in attempt["phaseTransitions"]}
            # What is so quick that nobody saw it was nothing.
            at.setdefault("ACTION_PHASE_INITIALIZING", at["ACTION_PHASE_RUNNING"])
            total += at[f"ACTION_PHASE_{end}"] - at[f"ACTION_PHASE_{begin}"]
        return total

    for name, begin, end in [
        ("queue", "QUEUED", "INITIALIZING"),
        ("transition", "INITIALIZING", "RUNNING"),
        ("execution", "RUNNING", "SUCCEEDED"),
    ]:
        assert found.sum(f"{stage}_sum", stage=name) == pytest.approx(between(begin, end), abs=0.01 * len(actions)), name
    assert found.sum(f"{stage}_sum", stage="completion") == 0
    assert found.sum(f"{stage}_sum", stage="acceptance") > 0

    # What was committed is what is in the logs: each phase that an action is shown in is an event, and so is its creation.
    shown = sum(len(attempt["phaseTransitions"]) for (attempt,) in attempts.values())
    assert found.sum("aloft_store_events_total") >= shown + len(actions)
    commits = found.sum("aloft_store_commit_duration_seconds_count")
    assert 0 < commits == found.sum("aloft_store_commit_commands_count")
    assert found.sum("aloft_store_commit_commands_sum") >= commits
    assert found.sum("aloft_metrics_dropped_total") == 0
    assert found.sum("aloft_rpc_duration_seconds_count", method="CreateRun", code="ok") == 1
    assert found.sum("process_cpu_seconds_total") > 0


def test_what_waits_and_runs_is_shown(started, flyte):  # noqa: F811
    server = started()
    run = flyte(server)("run", str(EXAMPLES / "conditions.py"), "main", timeout=RUN_TIMEOUT).run_name

    def shown() -> Scrape | None:
        found = scrape(server)
        waiting = found.sum("aloft_actions_live") == 2 and found.sum("aloft_queue_running", queue="default") == 1
        return found if waiting else None

    found = eventually(shown, "the run to wait for somebody", 60, lambda: tail(server.log))
    assert found.sum("aloft_runs_live") == 1
    assert found.sum("aloft_workers") == 1
    assert found.sum("aloft_queue_runs", queue="default") == 1
    run_id = {"org": "local", "project": "flytesnacks", "domain": "development", "name": run}
    wire.unary(server, "flyteidl2.workflow.RunService/AbortRun", {"runId": run_id})
    eventually(lambda: scrape(server).sum("aloft_actions_live") == 0, "everything to end", 60)
    found = settled(server, 1)
    assert found.sum("aloft_runs_ended_total", phase="aborted") == 1
    assert found.sum("aloft_stage_duration_seconds_count", stage="execution") == 1


def test_labels_are_bounded(started, flyte):  # noqa: F811
    server = started("--set", "metrics.tasks=1", "--set", "metrics.places=1")
    run = flyte(server)("run", "--follow", str(EXAMPLES / "fan_out.py"), "main", timeout=RUN_TIMEOUT).run_name
    wire.unary(server, "flyteidl2.project.ProjectService/CreateProject", {"project": {"id": "second", "name": "second"}})
    actions = actions_of(server, run)
    found = settled(server, len(actions))
    labels = {own["task"] for own, _ in found.all("aloft_stage_duration_seconds_count")}
    assert len(labels) == 2 and "other" in labels, labels
    counts = [found.sum("aloft_stage_duration_seconds_count", stage="execution", task=task) for task in labels]
    assert sum(counts) == len(actions), "nothing is left out"


def test_every_metric_is_documented(started, flyte):  # noqa: F811
    server = started()
    cli = flyte(server)
    cli("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT)
    cli("run", str(EXAMPLES / "conditions.py"), "main", timeout=RUN_TIMEOUT)
    settled(server, 1)
    eventually(lambda: scrape(server).sum("aloft_queue_running") == 1, "a run to be under way", 60)
    found = scrape(server)
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    rows = []
    for name, kind in sorted(found.types.items()):
        names = [name + suffix for suffix in suffixes[kind]]
        labels = sorted({label for n in names for own, _ in found.all(n) for label in own} - {"le"})
        assert any(found.all(n) for n in names), f"{name} has no values"
        shown = name + ("_total" if kind == "counter" else "")
        marks = ", ".join(f"`{label}`" for label in labels) or "none"
        rows.append(f"| `{shown}` | {kind} | {marks} | {found.help[name].rstrip('.')} |\n")
    table = "| metric | type | labels | what it is |\n|---|---|---|---|\n" + "".join(rows)
    page = REPOSITORY / "docs/observability.md"
    text = page.read_text()
    begin, end = "<!-- metrics: made from a server's answer by tests/e2e/test_observability.py -->\n", "<!-- end of metrics -->"
    start, stop = text.index(begin) + len(begin), text.index(end)
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(text[:start] + table + text[stop:])
    else:
        assert text[start:stop] == table, "run this test with UPDATE_DOCS=1"


def test_lines_of_a_request_carry_its_identity(started):  # noqa: F811
    server = started("--set", "logger.level=info,aloft=debug")
    request = urllib.request.Request(
        server.endpoint + "/flyteidl2.project.ProjectService/GetProject",
        b'{"id": "none"}',
        {"Content-Type": "application/json", "X-Request-Id": "mine-1"},
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    assert raised.value.headers["x-request-id"] == "mine-1"

    def lines() -> list[dict]:
        return [r for r in records(server) if r.get("span", {}).get("request_id") == "mine-1"]

    eventually(lambda: len(lines()) >= 2, "the lines of the request", 10, lambda: tail(server.log))
    refused = next(r for r in lines() if r["message"] == "an RPC was refused")
    assert (refused["code"], refused["rpc"]) == ("not_found", "flyteidl2.project.ProjectService/GetProject")
    assert any(r["message"] == "answered" and r["status"] == 404 for r in lines())


# Traces


class Collector:
    """A receiver of OTLP over HTTP that reads what it is sent with the standard's own messages."""

    def __init__(self):
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        self.spans: list = []
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces", self.path
                assert self.headers["Content-Type"] == "application/x-protobuf"
                request = ExportTraceServiceRequest.FromString(body)
                collector.headers.append({k.lower(): v for k, v in self.headers.items()})
                for resource in request.resource_spans:
                    collector.resources.append(attributes(resource.resource))
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


def attributes(of) -> dict[str, str]:
    values = {a.key: a.value for a in of.attributes}
    return {key: str(getattr(value, value.WhichOneof("value"))) for key, value in values.items()}


@pytest.fixture
def collector():
    pytest.importorskip("opentelemetry.proto")
    found = Collector()
    yield found
    found.server.shutdown()


# A collector is sent what there is every so often; nobody here waits for five seconds.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


def test_a_collector_gets_rpcs_in_the_trace_of_their_caller(started, collector):  # noqa: F811
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue"}
    server = started("--set", f"tracing.endpoint={collector.url}", env=SOON | headers)
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    request = urllib.request.Request(
        server.endpoint + "/flyteidl2.project.ProjectService/GetProject",
        b'{"id": "none"}',
        {
            "Content-Type": "application/json",
            "X-Request-Id": "mine-2",
            "traceparent": f"00-{trace}-{parent}-01",
        },
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=10)
    name = "flyteidl2.project.ProjectService/GetProject"
    eventually(lambda: collector.named(name), "the span", 30, lambda: tail(server.log))
    (span,) = collector.named(name)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, parent)
    assert span.kind == span.SPAN_KIND_SERVER
    told = attributes(span)
    assert (told["rpc.code"], told["request_id"], told["rpc.method"]) == ("not_found", "mine-2", "GetProject")
    assert (told["rpc.service"], told["rpc.system"]) == ("flyteidl2.project.ProjectService", "connect_rpc")
    assert span.status.code == span.status.STATUS_CODE_UNSET, "the client's fault is no error of ours"
    assert 0 < span.end_time_unix_nano - span.start_time_unix_nano < 60e9
    assert collector.resources[0]["service.name"] == "aloft-server"
    assert collector.headers[0]["x-tenant"] == "blue"

    # One that asks not to be traced is not; one that is none begins a trace.
    for sent in (f"00-{trace}-{parent}-00", "nonsense"):
        body, head = b"{}", {"Content-Type": "application/json", "traceparent": sent}
        path = "/flyteidl2.auth.IdentityService/UserInfo"
        urllib.request.urlopen(urllib.request.Request(server.endpoint + path, body, head), timeout=10)
    eventually(lambda: collector.named("flyteidl2.auth.IdentityService/UserInfo"), "the span", 30)
    assert server.stop() == 0
    (span,) = collector.named("flyteidl2.auth.IdentityService/UserInfo")
    assert span.trace_id.hex() != trace and not span.parent_span_id


def test_a_collector_gets_runs_as_traces(started, flyte, collector):  # noqa: F811
    server = started(env=SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"})
    run = flyte(server)("run", "--follow", str(EXAMPLES / "fan_out.py"), "main", timeout=RUN_TIMEOUT).run_name
    actions = actions_of(server, run)

    def of_run() -> list:
        return [span for span in collector.spans if attributes(span).get("aloft.run") == run]

    eventually(lambda: len(of_run()) == len(actions), "a span of each action", 30, lambda: tail(server.log))
    assert server.stop() == 0
    spans = of_run()
    assert len({span.trace_id for span in spans}) == 1
    by_action = {attributes(span)["aloft.action"]: span for span in spans}
    assert set(by_action) == {a["id"]["name"] for a in actions}
    root = by_action["a0"]
    assert not root.parent_span_id
    assert all(span.parent_span_id == root.span_id for name, span in by_action.items() if name != "a0")
    for span in spans:
        told = attributes(span)
        assert (told["aloft.phase"], told["aloft.project"], told["aloft.attempts"]) == ("succeeded", "flytesnacks", "1")
        below = [s for s in collector.spans if s.parent_span_id == span.span_id and "aloft.attempt" in attributes(s)]
        below.sort(key=lambda s: s.start_time_unix_nano)
        assert [s.name for s in below] == ["queue", "transition", "execution"], told
        for one, other in zip(below, below[1:], strict=False):
            assert one.end_time_unix_nano == other.start_time_unix_nano
        assert span.start_time_unix_nano <= below[0].start_time_unix_nano
        assert below[-1].end_time_unix_nano == span.end_time_unix_nano
    assert collector.named("flyteidl2.workflow.RunService/CreateRun"), "and the RPCs"
    assert all(resource["service.name"] == "mine" for resource in collector.resources)


def test_a_collector_that_is_not_there_costs_traces_and_nothing_else(started, flyte):  # noqa: F811
    server = started("--set", "tracing.endpoint=http://127.0.0.1:9", env=SOON)
    flyte(server)("run", "--follow", str(EXAMPLES / "hello.py"), "main", timeout=RUN_TIMEOUT)
    said = "traces for 127.0.0.1:9 are lost"
    eventually(lambda: said in server.log_since(0), "the log to say so", 30, lambda: tail(server.log))
    assert server.stop() == 0
    assert server.log_since(0).count(said) <= 3


def test_nothing_is_traced_unless_somebody_asks(started, collector):  # noqa: F811
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    for env in ({}, endpoint | {"OTEL_SDK_DISABLED": "true"}, endpoint | {"OTEL_TRACES_SAMPLER": "always_off"}):
        server = started(env=SOON | env)
        wire.unary(server, "flyteidl2.auth.IdentityService/UserInfo", {})
        assert server.stop() == 0
    assert not collector.spans
    assert json.dumps(collector.resources) == "[]"
