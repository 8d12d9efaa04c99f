"""Bad input: whatever comes to the port gets its proper error, changes nothing, and disturbs nobody else.

Every case asserts the exact answer: the status, the code in the protocol that asked, and words that help. After every
case the server must be the same process, must not have panicked and must still answer.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import os
import resource
import socket
import struct
import threading
import time
import urllib.parse
import uuid
import zlib
from pathlib import Path

import pytest
import wire
from flyteidl2.workflow import run_service_pb2 as runs_pb2
from harness import DOMAIN, PROJECT, eventually
from wire import Failed, harmless

RUNS = "flyteidl2.workflow.RunService"
ACTIONS = "flyteidl2.actions.ActionsService"
TASKS = "flyteidl2.task.TaskService"
DATA = "flyteidl2.dataproxy.DataProxyService"
PROJECTS = "flyteidl2.project.ProjectService"
QUEUE = "flyteidl2.workflow.QueueService"
TRANSLATOR = "flyteidl2.workflow.TranslatorService"
LOGS = "flyteidl2.workflow.RunLogsService"
STATE = "flyteidl2.workflow.StateService"
IMAGES = "flyteidl2.imagebuilder.ImageService"
CLUSTER = "flyteidl2.cluster.ClusterService"

CREATE = f"{RUNS}/CreateRun"
MIB = 1 << 20
BUCKET = "aloft-data"
HERE = {"organization": "local", "name": PROJECT, "domain": DOMAIN}
NO_RUN = {"org": "local", "project": PROJECT, "domain": DOMAIN, "name": "nothere"}
NO_ACTION = {"run": NO_RUN, "name": "a0"}
FOREIGN = f"s3://{BUCKET}/local/somebody-else/{DOMAIN}/x"
MINE = f"s3://{BUCKET}/local/{PROJECT}/{DOMAIN}"
TEMPLATE = {"id": {"name": "hostile.task", "version": "1"}, "type": "nothing-runs-this"}
TASK = {"taskTemplate": TEMPLATE}


@pytest.fixture(autouse=True)
def unharmed(server, request):
    """The server is the same process after the case as before, has not panicked, and answers."""
    start = server.log_size()
    yield
    if server.process is not None:
        assert server.process.poll() is None, "the server is gone"
    log = server.log_since(start)
    assert "panicked" not in log, log
    assert wire.unary(server, "flyteidl2.auth.IdentityService/UserInfo", {})["subject"] == "anonymous"


def refused(code: str, *words: str, said: tuple[str, ...] = ()):
    """The call is refused with this code, and its message holds these words and no secrets."""

    @contextlib.contextmanager
    def check():
        with pytest.raises(Failed) as raised:
            yield raised
        error = raised.value
        assert error.code == code, str(error)
        assert len(error.message) < 1000, f"too long to read: {error.message[:2000]}"
        for word in words:
            assert word in error.message, f"{word!r} is not in {error.message!r}"
        harmless(error.message, *said)

    return check()


def post(server, method: str, body, **headers) -> wire.Answer:
    wanted = {"Content-Type": "application/proto"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return wire.h1(server, "POST", f"/{method}", wanted, body)


# Bodies that are no messages

MALFORMED = {
    "not-protobuf": b"\xff\xff\xff\xff\xff",
    "truncated": wire.bytes_field(1, b"x" * 50)[:20],
    "length-beyond-the-end": b"\x0a\xff\xff\xff\xff\x0f",
    "endless-varint": b"\x80" * 200,
    "field-number-0": b"\x00\x00",
    "wire-type-7": b"\x0f",
    "group-that-never-ends": b"\x0b" * 100,
    "not-utf-8": wire.bytes_field(2, b"\xff\xfe"),
    "wrong-wire-type": b"\x08\x01",
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("protocol", ["connect", "grpc", "grpc-web", "stream"])
def test_malformed_protobuf(server, protocol, body):
    if protocol == "stream":
        # A message of which field 1 is a message and field 2 a text.
        method = f"{LOGS}/TailLogs"
    else:
        method = f"{RUNS}/AbortRun"
    call = {"connect": wire.unary, "grpc": wire.grpc, "grpc-web": wire.grpc_web, "stream": wire.stream}[protocol]
    if protocol == "stream" and body == MALFORMED["not-utf-8"]:
        body = wire.bytes_field(1, wire.bytes_field(2, b"\xff\xfe"))
    with refused("invalid_argument", "decode"):
        call(server, method, body)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"runId": 5}', b'{"noSuchField": 1}', b"[1]", b"\xff", b'{"runId": {"name": "x"}} trailing'],
)
def test_malformed_json(server, body):
    answer = wire.h1(server, "POST", f"/{RUNS}/AbortRun", {"Content-Type": "application/json"}, body)
    error = wire.connect_error(answer)
    assert (answer.status, error.code) == (400, "invalid_argument"), str(error)
    assert error.message
    harmless(error.message)


def within(message, path: str, value: bytes) -> bytes:
    """The bytes of a message that holds `value` in the field that `path` leads to."""
    descriptor, numbers = message.DESCRIPTOR, []
    for name in path.split("."):
        field = descriptor.fields_by_name[name]
        numbers.append(field.number)
        descriptor = field.message_type
    for number in reversed(numbers):
        value = wire.bytes_field(number, value)
    return value


def test_deep_nesting_in_protobuf_is_refused(server):
    # google.protobuf.Struct in TaskTemplate.custom can hold itself.
    value = wire.bytes_field(3, "x")
    for _ in range(5000):
        value = wire.bytes_field(5, wire.bytes_field(1, wire.bytes_field(1, "k") + wire.bytes_field(2, value)))
    custom = wire.bytes_field(1, wire.bytes_field(1, "k") + wire.bytes_field(2, value))
    body = within(runs_pb2.CreateRunRequest, "task_spec.task_template.custom", custom)
    with refused("invalid_argument", "recursion"):
        wire.unary(server, CREATE, body)
    with refused("invalid_argument", "recursion"):
        wire.grpc(server, CREATE, body)


@pytest.mark.parametrize("open_, close", [("[", "]"), ('{"k":', "}")])
def test_deep_nesting_in_json_is_refused(server, open_, close):
    deep = open_ * 20_000 + "1" + close * 20_000
    body = b'{"taskSpec":{"taskTemplate":{"custom":{"k":%s}}}}' % deep.encode()
    answer = wire.h1(server, "POST", f"/{CREATE}", {"Content-Type": "application/json"}, body)
    assert wire.connect_error(answer).code == "invalid_argument"
    assert answer.status == 400


def test_deep_nesting_of_unknown_fields_is_refused(server):
    with refused("invalid_argument", "decode"):
        wire.unary(server, f"{RUNS}/AbortRun", b"\xfb\x01" * 100_000 + b"\xfc\x01" * 100_000)


def test_many_repeated_fields_are_no_trouble(server):
    filters = {"function": "EQUAL", "field": "name", "values": ["x"]}
    with refused("invalid_argument", "filters", "more than"):
        wire.unary(server, f"{RUNS}/ListRuns", {"request": {"filters": [filters] * 100_000}}, compress=True)
    many = {"function": "VALUE_IN", "field": "name", "values": ["x"] * 100_000}
    with refused("invalid_argument", "filters", "more than"):
        wire.unary(server, f"{RUNS}/ListRuns", {"request": {"filters": [many]}}, compress=True)


def test_a_message_that_would_be_huge_in_memory_is_refused(server):
    """Sixteen million empty messages in 32 MB would be gigabytes once decoded."""
    before = rss(server)
    empty = within(runs_pb2.ListRunsRequest, "request.filters", b"")[2:]
    request = runs_pb2.ListRunsRequest.DESCRIPTOR.fields_by_name["request"].number
    body = gzip.compress(wire.bytes_field(request, empty * (10 * MIB)), 1)
    answer = post(server, f"{RUNS}/ListRuns", body, Content_Encoding="gzip")
    error = wire.connect_error(answer)
    assert error.code in {"invalid_argument", "resource_exhausted"}, str(error)
    harmless(error.message)
    assert rss(server) - before < 300 * MIB


# Compression and size


def test_truncated_gzip(server):
    body = gzip.compress(runs_pb2.ListRunsRequest(org="local" * 100).SerializeToString())
    for cut in (1, 10, len(body) - 9):
        answer = post(server, f"{RUNS}/ListRuns", body[:cut], Content_Encoding="gzip")
        error = wire.connect_error(answer)
        assert (answer.status, error.code) == (400, "invalid_argument"), f"{cut}: {error}"
        assert "gzip" in error.message
        harmless(error.message)


def test_gzip_that_is_none(server):
    error = wire.connect_error(post(server, f"{RUNS}/ListRuns", b"not gzip at all", Content_Encoding="gzip"))
    assert error.code == "invalid_argument"


def test_an_unknown_compression_is_named(server):
    answer = post(server, f"{RUNS}/ListRuns", b"x", Content_Encoding="br")
    error = wire.connect_error(answer)
    assert (answer.status, error.code) == (501, "unimplemented")
    assert "br" in error.message


def bomb(size: int) -> bytes:
    return gzip.compress(b"\0" * size, 9)


@pytest.mark.parametrize("protocol", ["connect", "grpc", "grpc-web", "stream"])
def test_a_gzip_bomb_is_refused_at_the_limit(server, protocol):
    before, body = rss(server), bomb(2000 * MIB) if protocol == "connect" else bomb(200 * MIB)
    with refused("resource_exhausted", "33554432"):
        match protocol:
            case "connect":
                answer = post(server, f"{RUNS}/ListRuns", body, Content_Encoding="gzip")
                assert answer.status == 429
                raise wire.connect_error(answer)
            case "grpc":
                headers = {"grpc-encoding": "gzip"}
                wire.grpc(server, f"{RUNS}/ListRuns", b"", body=wire.envelope(body, 1), headers=headers)
            case "grpc-web":
                headers = {"Content-Type": "application/grpc-web+proto", "Grpc-Encoding": "gzip"}
                answer = wire.h1(server, "POST", f"/{RUNS}/ListRuns", headers, wire.envelope(body, 1))
                (flags, trailers) = wire.envelopes(answer.body)[-1]
                assert flags == 0x80
                wire.grpc_outcome(dict(line.split(": ", 1) for line in trailers.decode().splitlines()), answer)
            case "stream":
                headers = {"Content-Type": "application/connect+proto", "Connect-Content-Encoding": "gzip"}
                answer = wire.h1(server, "POST", f"/{RUNS}/WatchRuns", headers, wire.envelope(body, 1))
                wire.stream_messages(answer, "application/connect+proto")
    assert rss(server) - before < 200 * MIB


@pytest.mark.parametrize("way", ["declared", "sent", "chunked"])
def test_an_oversized_body_is_refused(server, way):
    before, method = rss(server), f"/{RUNS}/ListRuns"
    headers = {"Content-Type": "application/proto"}
    match way:
        case "declared":
            # Refused from its head, without waiting for bytes that may never come.
            answer = wire.h1(server, "POST", method, headers | {"Content-Length": str(1 << 40)}, b"")
        case "sent":
            answer = wire.h1(server, "POST", method, headers, b"\0" * (17 * MIB))
        case "chunked":
            answer = wire.h1(server, "POST", method, headers, (b"\0" * MIB for _ in range(17)))
    error = wire.connect_error(answer)
    assert (answer.status, error.code) == (429, "resource_exhausted"), str(error)
    assert "16777216" in error.message
    harmless(error.message)
    assert rss(server) - before < 100 * MIB


def test_an_oversized_body_over_http2_is_refused(server):
    with wire.H2(server) as connection:
        answer = connection.request(
            "POST", f"/{RUNS}/ListRuns", {"content-type": "application/proto"}, b"\0" * (17 * MIB)
        )
    assert wire.connect_error(answer).code == "resource_exhausted"


def test_the_largest_honest_message_passes(server):
    body = runs_pb2.ListRunsRequest(org="x" * (15 * MIB)).SerializeToString()
    assert wire.unary(server, f"{RUNS}/ListRuns", body) == b""


def test_a_url_that_never_ends(server):
    answer = wire.raw(server, b"GET /" + b"x" * (100 << 10) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 5)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 414", b"HTTP/1.1 431")), answer[:200]


# Methods, content types, paths


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "NONSENSE"])
def test_an_rpc_by_the_wrong_method(server, method):
    answer = wire.h1(server, method, f"/{CREATE}", {"Content-Type": "application/json"}, b"{}")
    assert answer.status == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        assert "POST" in wire.connect_error(answer).message


def test_a_changing_rpc_by_get(server):
    answer = wire.h1(server, "GET", f"/{CREATE}?connect=v1&encoding=json&message=%7B%7D")
    assert answer.status == 405
    assert "GET" in wire.connect_error(answer).message


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/html", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "nonsense",
     "application/protobuf", "application/msgpack", "application/xml"],
)  # fmt: skip
def test_a_wrong_content_type(server, kind):
    answer = wire.h1(server, "POST", f"/{CREATE}", {"Content-Type": kind}, b"{}")
    assert answer.status == 415
    assert "application/proto" in answer.headers["accept-post"]
    assert "application/json" in wire.connect_error(answer).message


def test_no_content_type(server):
    answer = wire.h1(server, "POST", f"/{CREATE}", {}, b"{}")
    assert answer.status == 415
    assert "application/json" in wire.connect_error(answer).message


@pytest.mark.parametrize("kind", ["application/grpc+thrift", "application/grpc-web+thrift", "application/grpc-web-text"])
def test_a_codec_of_grpc_that_is_not_spoken(server, kind):
    with wire.H2(server) as connection:
        answer = connection.request("POST", f"/{CREATE}", {"content-type": kind}, wire.envelope(b""))
    assert answer.status == 200
    if "web" in kind:
        ((flags, trailers),) = wire.envelopes(answer.body)
        assert (flags, b"grpc-status: 12" in trailers) == (0x80, True)
    else:
        assert answer.trailers["grpc-status"] == "12"


def test_a_wrong_version_of_connect(server):
    answer = post(server, CREATE, b"", Connect_Protocol_Version="2")
    error = wire.connect_error(answer)
    assert (answer.status, error.code) == (400, "invalid_argument")
    assert "version" in error.message


@pytest.mark.parametrize(
    "query",
    ["", "connect=v1", "connect=v1&encoding=json&message=%7B", "connect=v2&encoding=json&message=%7B%7D",
     "connect=v1&encoding=proto&base64=1&message=!!!", "connect=v1&encoding=nonsense&message=x",
     "connect=v1&encoding=json&message=%ff%fe", "connect=v1&encoding=proto&base64=1&compression=gzip&message=AAAA"],
)  # fmt: skip
def test_a_bad_get(server, query):
    answer = wire.h1(server, "GET", f"/{RUNS}/ListRuns?{query}")
    error = wire.connect_error(answer)
    assert answer.status in {400, 415}, str(error)
    assert error.code in {"invalid_argument", "unknown"}, str(error)
    assert error.message
    harmless(error.message)


def test_a_deadline_that_makes_no_sense(server):
    for text in ("-1", "abc", "99999999999999999999", "0"):
        answer = post(server, f"{RUNS}/ListRuns", b"", Connect_Timeout_Ms=text)
        assert answer.status in {200, 400, 504}, f"{text}: {answer.status}"


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "/favicon.ico", "/a/b/c", "/api/v1/projects", "/.git/config", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
     "/v3", "//x", "/flyteidl2.workflow.RunService", "/flyteidl2.workflow.RunService/CreateRun/more", "/%00", "/%3Cscript%3E",
     "/assets/../../Cargo.toml", "/other-bucket/key"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_where_nothing_is(server, method, path):
    answer = wire.h1(server, method, path, {}, b"" if method == "POST" else None)
    error = wire.connect_error(answer)
    assert (answer.status, error.code) == (404, "not_found"), str(error)
    assert "there is nothing at /" in error.message
    harmless(error.message, path)


def test_no_such_asset(server):
    for path in ("/assets/nothere.js", "/assets/..%2f..%2fCargo.toml", "/assets/%2e%2e"):
        answer = wire.h1(server, "GET", path)
        assert (answer.status, answer.text) == (404, "there is no such asset\n")


def test_a_page_is_only_for_reading(server):
    answer = wire.h1(server, "POST", "/healthz", {}, b"")
    assert answer.status == 405
    assert "use GET" in wire.connect_error(answer).message


# Envelopes

BAD_ENVELOPES = {
    "nothing": b"",
    "half-a-head": b"\0\0",
    "shorter-than-it-says": b"\0" + struct.pack(">I", 100) + b"x",
    "four-gigabytes-announced": b"\0\xff\xff\xff\xff",
    "two-messages": wire.envelope(b"") * 2,
    "unknown-flags": wire.envelope(b"", 0x70),
    "compressed-without-an-encoding": wire.envelope(b"xxxx", 1),
    "no-envelope": b'{"runId": {}}',
}


@pytest.mark.parametrize("body", BAD_ENVELOPES.values(), ids=BAD_ENVELOPES.keys())
@pytest.mark.parametrize("protocol", ["grpc", "grpc-web", "stream", "grpc-stream"])
def test_a_bad_envelope(server, protocol, body):
    with pytest.raises(Failed) as raised:
        match protocol:
            case "grpc":
                wire.grpc(server, f"{RUNS}/GetRunDetails", b"", body=body)
            case "grpc-web":
                wire.grpc_web(server, f"{RUNS}/GetRunDetails", b"", body=body)
            case "stream":
                wire.stream(server, f"{RUNS}/WatchRunDetails", b"", body=body)
            case "grpc-stream":
                wire.grpc(server, f"{RUNS}/WatchRunDetails", b"", body=body)
    error = raised.value
    assert error.code in {"invalid_argument", "internal", "unimplemented", "resource_exhausted"}, str(error)
    assert error.message
    harmless(error.message)


# Requests that make no sense

REQUIRED = [
    (CREATE, {}, "id: run_id or project_id is required"),
    (CREATE, {"projectId": HERE}, "task: task_spec or task_id is required"),
    (CREATE, {"projectId": HERE, "taskSpec": {}}, "task_spec.task_template: is required"),
    (CREATE, {"projectId": HERE, "taskSpec": {"taskTemplate": {}}}, "task_template.id: is required"),
    (CREATE, {"projectId": HERE, "taskSpec": {"taskTemplate": {"id": {}}}}, "id.name: must have 1 to 255 bytes"),
    (CREATE, {"projectId": {"name": PROJECT}, "taskSpec": TASK}, "domain"),
    (CREATE, {"projectId": {"domain": DOMAIN}, "taskSpec": TASK}, "project"),
    (CREATE, {"projectId": HERE, "taskId": {}}, "task_id.name"),
    (f"{RUNS}/AbortRun", {}, "run_id: is required"),
    (f"{RUNS}/AbortAction", {}, "action_id: is required"),
    (f"{RUNS}/GetRunDetails", {}, "run_id: is required"),
    (f"{RUNS}/GetActionDetails", {}, "action_id: is required"),
    (f"{RUNS}/GetActionData", {}, "action_id: is required"),
    (f"{RUNS}/GetActionDataURIs", {}, "action_id: is required"),
    (f"{RUNS}/GetActionLogContext", {}, "action_id: is required"),
    (f"{RUNS}/ListActions", {}, "run_id: is required"),
    (f"{ACTIONS}/Enqueue", {}, "action: is required"),
    (f"{ACTIONS}/Enqueue", {"action": {}}, "action_id: is required"),
    (f"{ACTIONS}/Enqueue", {"action": {"actionId": {"run": NO_RUN, "name": "a1"}}}, "spec: task, trace or condition is required"),
    (f"{ACTIONS}/Enqueue", {"action": {"actionId": NO_ACTION}}, "a0 is the run's first action"),
    (f"{ACTIONS}/Abort", {}, "action_id: is required"),
    (f"{QUEUE}/EnqueueAction", {}, "action_id: is required"),
    (f"{QUEUE}/AbortQueuedRun", {}, "run_id: is required"),
    (f"{QUEUE}/AbortQueuedAction", {}, "action_id: is required"),
    (f"{TASKS}/DeployTask", {}, "task_id: is required"),
    (f"{TASKS}/DeployTask", {"taskId": {"name": "x", "version": "1"}}, "spec: is required"),
    (f"{TASKS}/GetTaskDetails", {}, "task_id: is required"),
    (f"{TASKS}/ListVersions", {}, "task_name: is required"),
    (f"{PROJECTS}/CreateProject", {}, "project: is required"),
    (f"{PROJECTS}/CreateProject", {"project": {}}, "project"),
    (f"{PROJECTS}/UpdateProject", {}, "project: is required"),
    (f"{PROJECTS}/GetProject", {}, "id: is required"),
    (f"{DATA}/CreateUploadLocation", {"project": PROJECT, "domain": DOMAIN}, "content_md5"),
    (f"{DATA}/CreateUploadLocation", {}, "project"),
    (f"{DATA}/UploadInputs", {}, "id: run_id or project_id is required"),
    (f"{DATA}/UploadInputs", {"projectId": HERE}, "task: task_spec or task_id is required"),
    (f"{DATA}/CreateDownloadLink", {}, "action_attempt_id: is required, unless a task_id names"),
    (f"{DATA}/GetActionData", {}, "action_id: is required"),
    (f"{IMAGES}/GetImage", {}, "id.name: is required"),
    (f"{IMAGES}/GetImage", {"id": {"name": "x"}}, "project_id: is required"),
    (f"{CLUSTER}/SelectCluster", {}, "operation: is required"),
    (f"{TRANSLATOR}/LiteralsToLaunchFormJson", {"literalsUri": MINE}, "owner: an action_id is required"),
]


def case_names(cases) -> list[str]:
    return [f"{case[0].rsplit('.', 1)[-1]}-{number}" for number, case in enumerate(cases)]


@pytest.mark.parametrize("method, request_, words", REQUIRED, ids=case_names(REQUIRED))
def test_a_missing_field_is_named(server, method, request_, words):
    with refused("invalid_argument", words):
        wire.unary(server, method, request_)


REQUIRED_STREAMS = [
    (f"{RUNS}/WatchRunDetails", "run_id: is required"),
    (f"{RUNS}/WatchActionDetails", "action_id: is required"),
    (f"{RUNS}/WatchActions", "run_id: is required"),
    (f"{RUNS}/WatchClusterEvents", "action_id: is required"),
    (f"{ACTIONS}/WatchForUpdates", "parent_action_id: is required"),
    (f"{STATE}/Watch", "parent_action_id: is required"),
    (f"{LOGS}/TailLogs", "action_id: is required"),
    (f"{DATA}/TailLogs", "action_id: is required"),
]


@pytest.mark.parametrize("method, words", REQUIRED_STREAMS, ids=case_names(REQUIRED_STREAMS))
def test_a_missing_field_of_a_stream_is_named(server, method, words):
    with refused("invalid_argument", words):
        wire.stream(server, method, {})
    with refused("invalid_argument", words):
        wire.grpc(server, method, b"")


NOT_THERE = [
    (f"{RUNS}/GetRunDetails", {"runId": NO_RUN}),
    (f"{RUNS}/AbortRun", {"runId": NO_RUN}),
    (f"{RUNS}/AbortAction", {"actionId": NO_ACTION}),
    (f"{RUNS}/GetActionDetails", {"actionId": NO_ACTION}),
    (f"{RUNS}/GetActionData", {"actionId": NO_ACTION}),
    (f"{RUNS}/GetActionDataURIs", {"actionId": NO_ACTION}),
    (f"{RUNS}/GetActionLogContext", {"actionId": NO_ACTION}),
    (f"{RUNS}/ListActions", {"runId": NO_RUN}),
    (f"{ACTIONS}/Abort", {"actionId": NO_ACTION}),
    (f"{ACTIONS}/Enqueue", {"action": {"actionId": {"run": NO_RUN, "name": "a1"}, "inputUri": f"{MINE}/in",
                                      "task": {"spec": TASK}}}),
    (f"{QUEUE}/EnqueueAction", {"actionId": {"run": NO_RUN, "name": "a1"}, "inputUri": f"{MINE}/in",
                                "task": {"spec": TASK}}),
    (f"{QUEUE}/AbortQueuedRun", {"runId": NO_RUN}),
    (f"{QUEUE}/AbortQueuedAction", {"actionId": NO_ACTION}),
    (f"{DATA}/GetActionData", {"actionId": NO_ACTION}),
    (f"{DATA}/CreateDownloadLink", {"artifactType": "ARTIFACT_TYPE_REPORT",
                                    "actionAttemptId": {"actionId": NO_ACTION, "attempt": 1}}),
    (f"{TRANSLATOR}/LiteralsToLaunchFormJson", {"literalsUri": f"{MINE}/x", "actionId": NO_ACTION}),
]  # fmt: skip


@pytest.mark.parametrize("method, request_", NOT_THERE, ids=case_names(NOT_THERE))
def test_a_run_that_does_not_exist_is_named(server, method, request_):
    with refused("not_found", "run nothere does not exist", PROJECT):
        wire.unary(server, method, request_)


NOT_THERE_STREAMS = [
    (f"{RUNS}/WatchRunDetails", {"runId": NO_RUN}),
    (f"{RUNS}/WatchActionDetails", {"actionId": NO_ACTION}),
    (f"{RUNS}/WatchActions", {"runId": NO_RUN}),
    (f"{RUNS}/WatchClusterEvents", {"id": NO_ACTION}),
    (f"{ACTIONS}/WatchForUpdates", {"parentActionId": NO_ACTION}),
    (f"{STATE}/Watch", {"parentActionId": NO_ACTION}),
    (f"{LOGS}/TailLogs", {"actionId": NO_ACTION}),
    (f"{DATA}/TailLogs", {"actionId": NO_ACTION}),
]


@pytest.mark.parametrize("method, request_", NOT_THERE_STREAMS, ids=case_names(NOT_THERE_STREAMS))
def test_a_stream_of_a_run_that_does_not_exist(server, method, request_):
    with refused("not_found", "run nothere does not exist", PROJECT):
        wire.stream(server, method, request_)


def test_what_else_does_not_exist_is_named(server, run):
    with refused("not_found", "action a9 does not exist in run"):
        wire.unary(server, f"{RUNS}/GetActionDetails", {"actionId": {"run": run, "name": "a9"}})
    with refused("not_found", "no attempt 77"):
        wire.stream(server, f"{LOGS}/TailLogs", {"actionId": {"run": run, "name": "a0"}, "attempt": 77})
    with refused("not_found", "no attempt 77"):
        wire.unary(server, f"{RUNS}/GetActionLogContext", {"actionId": {"run": run, "name": "a0"}, "attempt": 77})
    with refused("not_found", "project nowhere does not exist", "flyte create project"):
        wire.unary(server, CREATE, {"projectId": HERE | {"name": "nowhere"}, "taskSpec": TASK})
    with refused("not_found", "domain nowhere does not exist", "development"):
        wire.unary(server, CREATE, {"projectId": HERE | {"domain": "nowhere"}, "taskSpec": TASK})
    with refused("not_found", "task no.such version 1 is not deployed"):
        task = {"project": PROJECT, "domain": DOMAIN, "name": "no.such", "version": "1"}
        wire.unary(server, CREATE, {"projectId": HERE, "taskId": task})
    with refused("not_found", "image no-such has not been built"):
        wire.unary(server, f"{IMAGES}/GetImage", {"id": {"name": "no-such"}, "projectId": HERE})
    with refused("not_found", "no-such-parent"):
        action = {"actionId": {"run": run, "name": "a5"}, "parentActionName": "no-such-parent", "inputUri": f"{MINE}/in"}
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": action | {"task": {"spec": TASK}}})


BAD_NAMES = {
    "too-long": "x" * 31,
    "far-too-long": "x" * 100_000,
    "slash": "a/b",
    "dots": "..",
    "leading-dot": ".hidden",
    "nul": "a\0b",
    "newline": "a\nb",
    "unicode": "läufer",
    "bidi": "a\u202eb",
    "space": "a b",
    "percent": "a%2fb",
    "backslash": "a\\b",
    "quote": "a'b",
    "emoji": "🚀",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES.keys())
def test_a_bad_name_is_refused_everywhere(server, name):
    run = NO_RUN | {"name": name}
    with refused("invalid_argument", "run_id.name"):
        wire.unary(server, CREATE, {"runId": run, "taskSpec": TASK})
    with refused("invalid_argument", "run_id.name"):
        wire.unary(server, f"{RUNS}/GetRunDetails", {"runId": run})
    with refused("invalid_argument", "action_id.name"):
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": {"actionId": {"run": NO_RUN, "name": name}}})
    long = name if len(name) != 31 else "x" * 64
    with refused("invalid_argument", "project"):
        wire.unary(server, f"{PROJECTS}/CreateProject", {"project": {"id": long, "name": "n"}})
    with refused("invalid_argument", "project"):
        wire.unary(server, f"{DATA}/CreateUploadLocation", {"project": long, "domain": DOMAIN, "filenameRoot": "r"})
    with refused("invalid_argument", "org"):
        wire.unary(server, CREATE, {"projectId": HERE | {"organization": long}, "taskSpec": TASK})


LONG_TEXTS = [
    ("task_template.id.name", {"taskSpec": {"taskTemplate": TEMPLATE | {"id": {"name": "x" * 256}}}}),
    ("task_template.id.version", {"taskSpec": {"taskTemplate": TEMPLATE | {"id": {"name": "x", "version": "v" * 256}}}}),
    ("short_name", {"taskSpec": TASK | {"shortName": "x" * 256}}),
    ("environment.name", {"taskSpec": TASK | {"environment": {"name": "x" * 256}}}),
    ("task_template.type", {"taskSpec": {"taskTemplate": TEMPLATE | {"type": "x" * 256}}}),
    ("labels", {"taskSpec": TASK, "runSpec": {"labels": {"values": {"k" * 300: "v"}}}}),
    ("labels", {"taskSpec": TASK, "runSpec": {"labels": {"values": {"k": "v" * 2000}}}}),
    ("labels", {"taskSpec": TASK, "runSpec": {"labels": {"values": {f"k{i}": "v" for i in range(1000)}}}}),
    ("task_spec", {"taskSpec": {"taskTemplate": TEMPLATE | {"custom": {"k": "x" * (9 * MIB)}}}}),
    ("run_spec", {"taskSpec": TASK, "runSpec": {"envs": {"values": [{"key": "k", "value": "x" * (9 * MIB)}]}}}),
]


@pytest.mark.parametrize("field, request_", LONG_TEXTS, ids=[f"{c[0]}-{i}" for i, c in enumerate(LONG_TEXTS)])
def test_metadata_is_bounded(server, field, request_):
    with refused("invalid_argument", field):
        wire.unary(server, CREATE, {"projectId": HERE} | request_)


def test_metadata_of_actions_is_bounded(server, run):
    action = {"actionId": {"run": run, "name": "b1"}, "inputUri": f"{MINE}/in"}
    with refused("invalid_argument", "group"):
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": action | {"group": "g" * 300, "task": {"spec": TASK}}})
    with refused("invalid_argument", "cache_key"):
        task = {"spec": TASK, "cacheKey": "k" * 2000}
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": action | {"task": task}})
    with refused("invalid_argument", "trace.name"):
        trace = {"name": "n" * 300, "phase": "ACTION_PHASE_SUCCEEDED"}
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": action | {"trace": trace}})
    with refused("invalid_argument", "name"):
        wire.unary(server, f"{PROJECTS}/CreateProject", {"project": {"id": "p1", "name": "n" * 300}})
    with refused("invalid_argument", "description"):
        wire.unary(server, f"{PROJECTS}/CreateProject", {"project": {"id": "p1", "name": "n", "description": "d" * 301}})
    with refused("invalid_argument", "labels"):
        project = {"id": "p1", "name": "n", "labels": {"values": {"k": "v" * 2000}}}
        wire.unary(server, f"{PROJECTS}/CreateProject", {"project": project})


TIMES = [
    ("timeout", {"timeout": "-1s"}),
    ("timeout", {"timeout": "315576000000s"}),
    ("queued_timeout", {"timeouts": {"queuedTimeout": "-5s"}}),
    ("deadline", {"timeouts": {"deadline": "-0.5s"}}),
    ("backoff.base", {"retries": {"retries": 1, "backoff": {"base": "-1s"}}}),
    ("backoff.cap", {"retries": {"retries": 1, "backoff": {"cap": "-1s"}}}),
    ("backoff.factor", {"retries": {"retries": 1, "backoff": {"base": "1s", "factor": -2}}}),
    ("backoff.factor", {"retries": {"retries": 1, "backoff": {"base": "1s", "factor": "NaN"}}}),
    ("backoff.factor", {"retries": {"retries": 1, "backoff": {"base": "1s", "factor": "Infinity"}}}),
    ("retries", {"retries": {"retries": 4_294_967_295}}),
]


@pytest.mark.parametrize("field, metadata", TIMES, ids=[f"{c[0]}-{i}" for i, c in enumerate(TIMES)])
def test_durations_and_retries_that_make_no_sense(server, field, metadata):
    with refused("invalid_argument", f"task_spec.task_template.metadata.{'retries.' if 'backoff' in field else ''}"):
        wire.unary(server, CREATE, {"projectId": HERE, "taskSpec": {"taskTemplate": TEMPLATE | {"metadata": metadata}}})


def test_times_that_no_calendar_has(server, run):
    for seconds in (-(1 << 62), 1 << 62, 253_402_300_800):
        start = wire.varint(1 << 3) + wire.varint(seconds)
        request = runs_pb2.CreateRunRequest()
        request.project_id.organization, request.project_id.name, request.project_id.domain = "local", PROJECT, DOMAIN
        request.task_spec.task_template.id.name = "hostile.task"
        start = within(runs_pb2.CreateRunRequest, "run_start_time", start)
        with refused("invalid_argument", "run_start_time", "year"):
            wire.unary(server, CREATE, request.SerializeToString() + start)


def test_expiries_that_make_no_sense(server):
    location = {"project": PROJECT, "domain": DOMAIN, "filenameRoot": "r", "filename": "f"}
    with refused("invalid_argument", "expires_in"):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"expiresIn": "-1s"})
    with refused("invalid_argument", "expires_in"):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"expiresIn": "999999999s"})
    with refused("invalid_argument", "content_length"):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"contentLength": str(-1)})
    with refused("invalid_argument", "content_length"):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"contentLength": str(1 << 50)})
    with refused("invalid_argument", "content_md5"):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"contentMd5": "AAAA"})


# Lists

LISTS = [f"{RUNS}/ListRuns", f"{TASKS}/ListTasks", f"{RUNS}/ListActions"]


def list_of(server, method, run, **request):
    message = {"request": request}
    if method.endswith("ListActions"):
        message["runId"] = run
    return wire.unary(server, method, message)


@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize("token", ["nonsense", "!!!", "0", "bm9uc2Vuc2U", "x" * 10_000, "../../etc", "' OR 1=1 --", "W10"])
def test_a_page_token_of_nobody(server, run, method, token):
    with refused("invalid_argument", "token", "start again"):
        list_of(server, method, run, token=token)


def test_a_page_token_of_projects(server):
    for token in ("nonsense", "-1", "99999999999999999999999"):
        with refused("invalid_argument", "token"):
            wire.unary(server, f"{PROJECTS}/ListProjects", {"token": token})


@pytest.mark.parametrize("method", LISTS)
def test_an_absurd_limit_is_bounded(server, run, method):
    list_of(server, method, run, limit=4_294_967_295)
    with refused("invalid_argument"):
        list_of(server, method, run, limit=-1)


@pytest.mark.parametrize("method", LISTS)
@pytest.mark.parametrize("field", ["colour", "", "a.phase", "name; DROP TABLE runs", "1", "*", "labels", "rowid", "name--"])
def test_an_unknown_field_is_named(server, run, method, field):
    with refused("invalid_argument", "there is no field", "the fields are name", said=(field,)):
        list_of(server, method, run, filters=[{"function": "EQUAL", "field": field, "values": ["x"]}])
    if field:
        with refused("invalid_argument", "there is no field", said=(field,)):
            list_of(server, method, run, sortBy={"key": field})


SQL = ["' OR '1'='1", "'; DROP TABLE runs; --", "%", "_", "\\", '"', "x' UNION SELECT * FROM blobs --", "\0", "?1", "$sort"]


@pytest.mark.parametrize("text", SQL)
def test_sql_in_filters_is_text(server, run, text):
    functions = ("EQUAL", "CONTAINS", "CONTAINS_CASE_INSENSITIVE", "ENDS_WITH", "VALUE_IN", "GREATER_THAN_OR_EQUAL")
    for field in ("name", "task_name", f"labels.{text}"):
        for function in functions[:5]:
            # Other tests may have runs with such letters in their names.
            mine = {"function": "EQUAL", "field": "name", "values": [run["name"]]}
            filters = [mine, {"function": function, "field": field, "values": [text]}]
            answer = list_of(server, f"{RUNS}/ListRuns", run, filters=filters)
            assert "runs" not in answer, f"{field} {function}: {answer}"
    for function in functions:
        list_of(server, f"{TASKS}/ListTasks", run, filters=[{"function": function, "field": "name", "values": [text]}])
    assert wire.unary(server, f"{RUNS}/GetRunDetails", {"runId": run})


@pytest.mark.parametrize(
    "filter_, words",
    [
        ({"function": "EQUAL", "field": "phase", "values": ["sideways"]}, "sideways"),
        ({"function": "EQUAL", "field": "phase", "values": ["99999999999999999999"]}, "99999999999999999999"),
        ({"function": "EQUAL", "field": "created_at", "values": ["yesterday"]}, "yesterday"),
        ({"function": "LESS_THAN", "field": "name", "values": []}, "takes one value"),
        ({"function": "LESS_THAN", "field": "name", "values": ["a", "b"]}, "takes one value"),
        ({"function": 4242, "field": "name", "values": ["a"]}, "function"),
    ],
)
def test_a_filter_that_makes_no_sense(server, filter_, words):
    with refused("invalid_argument", "filters", words):
        wire.unary(server, f"{RUNS}/ListRuns", {"request": {"filters": [filter_]}})


@pytest.mark.parametrize("text", ["eq(", "eq(secret, 1)", "drop(state, 0)", "eq(state)", "((((", "x" * 100_000])
def test_a_filter_of_projects_that_makes_no_sense(server, text):
    with refused("invalid_argument", "filters"):
        wire.unary(server, f"{PROJECTS}/ListProjects", {"filters": text})


# Other people's data

FOREIGN_URIS = {
    "other-project": FOREIGN,
    "other-org": f"s3://{BUCKET}/else/{PROJECT}/{DOMAIN}/x",
    "prefix-of-the-name": f"s3://{BUCKET}/local/{PROJECT}2/{DOMAIN}/x",
    "dots": f"{MINE}/../../somebody-else/x",
    "whole-bucket": f"s3://{BUCKET}",
    "other-bucket": "s3://another-bucket/x",
    "file": "file:///etc/passwd",
    "path": "/etc/passwd",
    "http": "http://localhost:1/x",
    "nul": f"{MINE}/a\0b",
    "backslash": f"{MINE}/..\\..\\x",
    "nonsense": "nonsense",
}


@pytest.mark.parametrize("uri", FOREIGN_URIS.values(), ids=FOREIGN_URIS.keys())
def test_other_tenants_uris_are_refused(server, run, uri):
    request = {"projectId": HERE, "taskSpec": TASK}
    action = {"actionId": {"run": run, "name": "c1"}}
    trace = {"name": "t", "phase": "ACTION_PHASE_SUCCEEDED"}
    enqueue = f"{ACTIONS}/Enqueue"
    said = (uri,)
    with refused("invalid_argument", "offloaded_input_data.uri", PROJECT, said=said):
        wire.unary(server, CREATE, request | {"offloadedInputData": {"uri": uri}})
    with refused("invalid_argument", "run_base_dir", "leave it empty", said=said):
        wire.unary(server, CREATE, request | {"runSpec": {"runBaseDir": uri}})
    with refused("invalid_argument", "raw_data_prefix", "leave it empty", said=said):
        wire.unary(server, CREATE, request | {"runSpec": {"rawDataStorage": {"rawDataPrefix": uri}}})
    with refused("invalid_argument", "input_uri", PROJECT, said=said):
        wire.unary(server, enqueue, {"action": action | {"inputUri": uri, "task": {"spec": TASK}}})
    with refused("invalid_argument", "run_output_base", PROJECT, said=said):
        there = action | {"inputUri": f"{MINE}/in", "runOutputBase": uri, "task": {"spec": TASK}}
        wire.unary(server, enqueue, {"action": there})
    with refused("invalid_argument", "trace.outputs.output_uri", PROJECT, said=said):
        wire.unary(server, enqueue, {"action": action | {"trace": trace | {"outputs": {"outputUri": uri}}}})
    with refused("invalid_argument", "trace.outputs.report_uri", PROJECT, said=said):
        wire.unary(server, enqueue, {"action": action | {"trace": trace | {"outputs": {"reportUri": uri}}}})
    with refused("invalid_argument", "input_uri", PROJECT, said=said):
        wire.unary(server, f"{QUEUE}/EnqueueAction", action | {"inputUri": uri, "task": {"spec": TASK}})
    with refused("invalid_argument", "literals_uri", said=said):
        owner = {"actionId": {"run": run, "name": "a0"}}
        wire.unary(server, f"{TRANSLATOR}/LiteralsToLaunchFormJson", owner | {"literalsUri": uri})


def test_a_very_long_uri_is_shortened(server):
    with refused("invalid_argument", "offloaded_input_data.uri"):
        request = {"projectId": HERE, "taskSpec": TASK, "offloadedInputData": {"uri": f"{MINE}/{'x' * 100_000}"}}
        wire.unary(server, CREATE, request)


def test_a_bundle_whose_name_is_none_is_refused(server):
    uri = f"{MINE}/../../somebody-else/x"
    with refused("invalid_argument", uri, "`..`"):
        wire.unary(server, CREATE, {"projectId": HERE, "taskSpec": with_arguments("a0", "--tgz", uri)})


def with_arguments(*arguments: str) -> dict:
    return {"taskTemplate": TEMPLATE | {"container": {"image": "auto", "args": list(arguments)}}}


@pytest.mark.parametrize(
    "uri",
    [f"{MINE}/uploads/gone/fast.tar.gz", FOREIGN],
    ids=["gone", "somebody-elses"],
)
def test_a_bundle_that_is_gone_is_refused(server, uri):
    for option in ("--tgz", "--pkl"):
        with refused("invalid_argument", uri, "flyte delete local-cache"):
            wire.unary(server, CREATE, {"projectId": HERE, "taskSpec": with_arguments("a0", option, uri)})
    with refused("invalid_argument", uri, "flyte delete local-cache"):
        template = TEMPLATE | {"metadata": {"codeBundleUri": uri}}
        wire.unary(server, CREATE, {"projectId": HERE, "taskSpec": {"taskTemplate": template}})


# Uploads

BAD_PATHS = {
    "dots": "../x",
    "inner-dots": "a/../../../x",
    "absolute": "/etc/passwd",
    "dot": ".",
    "double-slash": "a//b",
    "backslash": "..\\x",
    "nul": "a\0b",
    "newline": "a\nb",
    "too-long": "x" * 600,
    "escape": "a\x1b[31m",
}


@pytest.mark.parametrize("path", BAD_PATHS.values(), ids=BAD_PATHS.keys())
def test_an_upload_stays_where_it_belongs(server, path):
    location = {"project": PROJECT, "domain": DOMAIN, "contentMd5": base64.b64encode(b"m" * 16).decode()}
    with refused("invalid_argument", "filename", said=(path,)):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"filenameRoot": "root", "filename": path})
    with refused("invalid_argument", "filename_root", said=(path,)):
        wire.unary(server, f"{DATA}/CreateUploadLocation", location | {"filenameRoot": path, "filename": "f"})


@pytest.mark.parametrize("name", ["..%2f..%2fx", "%2e%2e/x", "a?b=c", "a#b", "a&X-Amz-Signature=1", "ünïcode 🚀", "a b", "a+b", "'\"<>"])
def test_an_odd_but_honest_file_name_works(server, name):
    """What would be a trick elsewhere is only a name here."""
    content = name.encode()
    signed, headers, uri = upload_location(server, name, content)
    assert wire.h1(server, "PUT", path_of(signed), headers, content).status == 200
    assert uri == f"{MINE}/uploads/{hashlib.md5(content).hexdigest()}/{name}"


def upload_location(server, name: str, content: bytes, **fields) -> tuple[str, dict[str, str], str]:
    digest = hashlib.md5(content).digest()
    request = {"project": PROJECT, "domain": DOMAIN, "filename": name, "contentMd5": base64.b64encode(digest).decode()}
    answer = wire.unary(server, f"{DATA}/CreateUploadLocation", request | fields)
    return answer["signedUrl"], answer.get("headers", {}), answer["nativeUrl"]


def path_of(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def s3_error(answer: wire.Answer, status: int, code: str, *words: str) -> None:
    assert answer.status == status, answer.text[:500]
    assert answer.kind == "application/xml", answer.headers
    text = answer.text
    assert f"<Code>{code}</Code>" in text, text
    for word in words:
        assert word in text, text
    harmless(text)


@pytest.fixture
def uploaded(server) -> tuple[str, dict[str, str], bytes]:
    """A fresh presigned PUT: its URL, its headers and the content it is for."""
    content = f"content {uuid.uuid4()}".encode()
    signed, headers, _ = upload_location(server, "f.txt", content)
    return signed, headers, content


def test_a_presigned_put_of_other_content(server, uploaded):
    signed, headers, content = uploaded
    s3_error(wire.h1(server, "PUT", path_of(signed), headers, b"other " + content), 400, "BadDigest")
    wrong = headers | {"Content-MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}
    s3_error(wire.h1(server, "PUT", path_of(signed), wrong, b"other"), 403, "SignatureDoesNotMatch")
    without = {k: v for k, v in headers.items() if k.lower() != "content-md5"}
    answer = wire.h1(server, "PUT", path_of(signed), without, b"other")
    assert answer.status in {400, 403}, answer.text
    # Nothing of it stayed, and the honest upload still works.
    assert wire.h1(server, "PUT", path_of(signed), headers, content).status == 200


def test_a_presigned_put_of_another_length(server):
    content = b"x" * 1000
    signed, headers, _ = upload_location(server, "f.txt", content, contentLength="1000")
    answer = wire.h1(server, "PUT", path_of(signed), headers | {"Content-Length": "2000"}, b"y" * 2000)
    s3_error(answer, 403, "SignatureDoesNotMatch")


def tampered(url: str, name: str, value: str) -> str:
    parts = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parts.query)) | {name: value}
    return f"{parts.path}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


@pytest.mark.parametrize(
    "name, value",
    [("X-Amz-Expires", "604800"), ("X-Amz-Signature", "0" * 64), ("X-Amz-Signature", ""), ("X-Amz-Date", "20990101T000000Z"),
     ("X-Amz-SignedHeaders", "host"), ("X-Amz-Credential", "ALforged/20260101/us-east-1/s3/aws4_request"),
     ("X-Amz-Credential", "nonsense"), ("X-Amz-Expires", "-1"), ("X-Amz-Expires", "99999999999"), ("extra", "1"),
     ("X-Amz-Security-Token", "x")],
)  # fmt: skip
def test_a_tampered_presigned_url(server, uploaded, name, value):
    signed, headers, content = uploaded
    answer = wire.h1(server, "PUT", tampered(signed, name, value), headers, content)
    assert answer.status in {400, 403}, answer.text
    assert answer.kind == "application/xml"
    assert "<Code>" in answer.text
    harmless(answer.text)


def test_a_presigned_url_of_another_object(server, uploaded):
    signed, headers, content = uploaded
    other = path_of(signed).replace("/f.txt?", "/g.txt?")
    s3_error(wire.h1(server, "PUT", other, headers, content), 403, "SignatureDoesNotMatch")
    up = path_of(signed).replace("/f.txt?", "/../f.txt?")
    assert wire.h1(server, "PUT", up, headers, content).status in {400, 403}


def test_a_presigned_put_is_for_nothing_else(server, uploaded):
    signed, headers, content = uploaded
    assert wire.h1(server, "PUT", path_of(signed), headers, content).status == 200
    for method in ("GET", "DELETE", "POST"):
        answer = wire.h1(server, method, path_of(signed), headers, b"" if method == "POST" else None)
        assert answer.status == 403, f"{method}: {answer.text}"
        s3_error(answer, 403, "SignatureDoesNotMatch")
    assert wire.h1(server, "HEAD", path_of(signed), headers).status == 403


def test_an_expired_presigned_url(server):
    content = b"late"
    signed, headers, _ = upload_location(server, "f.txt", content, expiresIn="1s")
    time.sleep(2.2)
    s3_error(wire.h1(server, "PUT", path_of(signed), headers, content), 403, "AccessDenied", "xpired")


# The object store


class S3:
    """A signer of our own: a client that does what no library would."""

    def __init__(self, server, key: str, secret: str):
        self.server, self.key, self.secret = server, key, secret

    def __call__(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> wire.Answer:
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path, _, query = path.partition("?")
        digest = hashlib.sha256(body).hexdigest()
        signed = {"host": self.server.authority, "x-amz-content-sha256": digest, "x-amz-date": now}
        signed |= {k.lower(): v for k, v in (headers or {}).items()}
        names = ";".join(sorted(signed))
        pairs = sorted(p if "=" in p else p + "=" for p in query.split("&")) if query else []
        canonical = "\n".join(
            [method, path, "&".join(pairs), *(f"{k}:{signed[k]}" for k in sorted(signed)), "", names, digest]
        )
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{self.secret}".encode()
        for part in (now[:8], "us-east-1", "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        signed["Authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        wanted = {("Host" if k == "host" else k): v for k, v in signed.items()}
        return wire.h1(self.server, method, f"{path}?{query}" if query else path, wanted, body or None)


def attempt_credentials(server, run: str) -> tuple[str, str]:
    """What a task of `run` is given: derived here as the server does it, from the secret of its data directory."""
    if server.log is None:
        pytest.skip("that server's secret is not ours to read")
    master = (server.log.parent / "data" / "master.key").read_bytes()

    def subkey(label: bytes) -> bytes:
        return hmac.digest(hmac.digest(master, label, "sha256"), b"", "sha256")

    def mac_with_sub(label: bytes, data: bytes) -> bytes:
        return hmac.digest(hmac.digest(master, label, "sha256"), data, "sha256")

    texts = [f"local/{PROJECT}/{DOMAIN}/{run}/a0/1", f"local/{PROJECT}/", f"local/{PROJECT}/{DOMAIN}/runs/{run}/"]
    claims, previous = bytes([1, 0, 1, 1]), b""
    for text in (t.encode() for t in texts):
        shared = len(os.path.commonprefix([text, previous]))
        claims += wire.varint(shared) + wire.varint(len(text) - shared) + text[shared:]
        previous = text
    sealed = claims + mac_with_sub(b"aloft/objects/seal/1", claims)[:16]
    key = "AL" + base64.urlsafe_b64encode(sealed).decode().rstrip("=")
    secret = mac_with_sub(b"aloft/objects/secret/1", key.encode())
    return key, base64.urlsafe_b64encode(secret).decode().rstrip("=")


@pytest.fixture
def task(server) -> S3:
    """The object store as a task of run `mine` sees it."""
    return S3(server, *attempt_credentials(server, "mine"))


OWN = f"/{BUCKET}/local/{PROJECT}/{DOMAIN}/runs/mine"
OTHER = f"/{BUCKET}/local/{PROJECT}/{DOMAIN}/runs/other"


def test_a_task_may_write_below_its_run(task):
    assert task("PUT", f"{OWN}/a0/1/x", b"x").status == 200
    answer = task("GET", f"{OWN}/a0/1/x")
    assert (answer.status, answer.body) == (200, b"x")
    assert task("DELETE", f"{OWN}/a0/1/x").status == 204


@pytest.mark.parametrize(
    "path",
    [f"{OTHER}/a0/1/outputs.pb", f"/{BUCKET}/local/{PROJECT}/{DOMAIN}/uploads/x/y", f"{OWN}2/x", f"/{BUCKET}/x",
     f"/{BUCKET}/local/somebody-else/{DOMAIN}/runs/mine/x"],
    ids=["another-run", "uploads", "a-longer-name", "the-bucket", "another-project"],
)  # fmt: skip
def test_a_task_may_not_write_elsewhere(task, path):
    s3_error(task("PUT", path, b"x"), 403, "AccessDenied", "may not write")
    s3_error(task("DELETE", path), 403, "AccessDenied", "may not write")
    s3_error(task("POST", f"{path}?uploads="), 403, "AccessDenied", "may not write")


def test_a_task_may_not_read_another_project(task):
    s3_error(task("GET", f"/{BUCKET}/local/somebody-else/x"), 403, "AccessDenied", "may not read")
    s3_error(task("GET", f"/{BUCKET}?list-type=2"), 403, "AccessDenied", "may not list")
    s3_error(task("GET", f"/{BUCKET}?list-type=2&prefix=local%2F"), 403, "AccessDenied", "may not list")


def test_a_task_may_not_copy_what_it_may_not_read(task):
    source = {"x-amz-copy-source": f"/{BUCKET}/local/somebody-else/{DOMAIN}/x"}
    s3_error(task("PUT", f"{OWN}/copy", b"", source), 403, "AccessDenied", "may not read")


def test_a_task_may_not_delete_elsewhere_in_bulk(task):
    key = f"local/{PROJECT}/{DOMAIN}/runs/other/a0/1/outputs.pb"
    body = f"<Delete><Object><Key>{key}</Key></Object></Delete>".encode()
    headers = {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}
    answer = task("POST", f"/{BUCKET}?delete=", body, headers)
    assert "AccessDenied" in answer.text, answer.text
    assert "<Deleted>" not in answer.text


@pytest.mark.parametrize("key", ["../../other/a0/x", "a/../../other/x", "./x", "a//b", "..", "%2e%2e/%2e%2e/x", "..%2f..%2fother/x",
                                 "a%00b", "a%5cb", "%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a%0ab"])  # fmt: skip
def test_a_key_stays_where_it_belongs(server, task, key):
    for answer in (task("PUT", f"{OWN}/{key}", b"x"), task("GET", f"{OWN}/{key}")):
        assert answer.status in {400, 403}, f"{answer.status} {answer.text}"
        assert answer.kind == "application/xml", answer.headers
        harmless(answer.text, "/etc/passwd")
    if server.log:
        assert not list((server.log.parent / "data").glob("objects/**/etc/passwd"))


def test_a_key_that_is_too_long(task):
    s3_error(task("PUT", f"{OWN}/{'x' * 1100}", b"x"), 400, "KeyTooLongError")
    s3_error(task("PUT", f"{OWN}/{'y' * 300}", b"x"), 400, "KeyTooLongError")


ANONYMOUS = [("GET", f"{OWN}/x"), ("PUT", f"{OWN}/x"), ("DELETE", f"{OWN}/x"), ("GET", f"/{BUCKET}"), ("GET", f"/{BUCKET}?list-type=2"),
             ("POST", f"/{BUCKET}?delete="), ("POST", f"{OWN}/x?uploads"), ("GET", f"/{BUCKET}?acl"), ("GET", f"/{BUCKET}/")]  # fmt: skip


@pytest.mark.parametrize("method, path", ANONYMOUS)
def test_an_anonymous_request(server, method, path):
    answer = wire.h1(server, method, path, {}, b"" if method in {"PUT", "POST"} else None)
    s3_error(answer, 403, "AccessDenied", "must be signed")


def test_a_forged_access_key(server, task):
    s3_error(S3(server, "AKIAIOSFODNN7EXAMPLE", "secret")("GET", f"{OWN}/x"), 403, "InvalidAccessKeyId")
    s3_error(S3(server, "AL", "secret")("GET", f"{OWN}/x"), 403, "InvalidAccessKeyId")
    s3_error(S3(server, "AL" + "A" * 5000, "secret")("GET", f"{OWN}/x"), 403, "InvalidAccessKeyId")
    raw = bytearray(base64.urlsafe_b64decode(task.key[2:] + "=="))
    for place in (1, len(raw) // 2, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 1
        key = "AL" + base64.urlsafe_b64encode(bytes(changed)).decode().rstrip("=")
        s3_error(S3(server, key, task.secret)("GET", f"{OWN}/x"), 403, "InvalidAccessKeyId")
    s3_error(S3(server, task.key, "wrong")("GET", f"{OWN}/x"), 403, "SignatureDoesNotMatch")


def test_another_bucket(task):
    s3_error(task("GET", "/another-bucket/x"), 404, "NoSuchBucket", BUCKET)
    s3_error(task("PUT", "/another.bucket/x", b"x"), 404, "NoSuchBucket", BUCKET)


def test_malformed_xml(task):
    for body in (b"<Delete>", b"nonsense", b'<!DOCTYPE x [<!ENTITY a "b">]><Delete>&a;</Delete>'):
        headers = {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}
        answer = task("POST", f"/{BUCKET}?delete=", body, headers)
        assert answer.status == 400, answer.text
        assert "<Code>MalformedXML</Code>" in answer.text, answer.text


def test_what_the_store_does_not_offer(task):
    s3_error(task("GET", f"/{BUCKET}?acl="), 501, "NotImplemented")
    s3_error(task("GET", f"{OWN}/x?tagging="), 501, "NotImplemented")


def test_no_such_object(task):
    s3_error(task("GET", f"{OWN}/nothere"), 404, "NoSuchKey")
    assert task("HEAD", f"{OWN}/nothere").status == 404
    for upload in ("nothere", "..%2F..%2Fx"):
        answer = task("PUT", f"{OWN}/x?partNumber=1&uploadId={upload}", b"x")
        s3_error(answer, 404, "NoSuchUpload")


# Who asks


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://evil.example:443", "null", "http://localhost.evil.example", "file://", "\xff",
               "http://localhost:1@evil.example", "http://127.0.0.1.evil.example"]
)  # fmt: skip
def test_a_page_of_another_site(server, origin):
    for method, path in (("POST", f"/{CREATE}"), ("GET", "/v2"), ("GET", f"/{RUNS}/ListRuns?connect=v1&encoding=json&message=%7B%7D")):
        headers = {"Origin": origin, "Content-Type": "application/json"}
        answer = wire.h1(server, method, path, headers, b"{}" if method == "POST" else None)
        error = wire.connect_error(answer)
        assert (answer.status, error.code) == (403, "permission_denied")
        assert "other sites" in error.message
        assert "access-control-allow-origin" not in answer.headers
    with wire.H2(server) as connection:
        if origin.isascii():
            headers = {"origin": origin, "content-type": "application/grpc"}
            answer = connection.request("POST", f"/{CREATE}", headers, wire.envelope(b""))
            assert (answer.status, answer.headers["grpc-status"]) == (200, "7")


@pytest.mark.parametrize("origin", ["http://localhost:30080", "http://127.0.0.1:1234", "http://[::1]", "http://[::1]:80"])
def test_a_page_of_this_machine(server, origin):
    answer = wire.h1(server, "POST", f"/{RUNS}/ListRuns", {"Origin": origin, "Content-Type": "application/json"}, b"{}")
    assert answer.status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:30080", "localhost.evil.example", "169.254.169.254", "", "a b", "\xff"])
def test_a_name_that_is_not_this_machine(server, host):
    """A name of an attacker that resolves to this machine makes their page one of our origin (DNS rebinding)."""
    answer = wire.h1(server, "GET", f"/{RUNS}/ListRuns?connect=v1&encoding=json&message=%7B%7D", {"Host": host})
    if not answer.body:
        assert answer.status == 400  # refused by the HTTP parser
        return
    error = wire.connect_error(answer)
    assert (answer.status, error.code) == (403, "permission_denied")
    assert "localhost" in error.message


def test_a_name_that_is_not_this_machine_over_http2(server):
    with wire.H2(server) as connection:
        answer = connection.request("GET", "/healthz", {":authority": "evil.example"})
    assert wire.connect_error(answer).code == "permission_denied"


def test_no_host(server):
    answer = wire.raw(server, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 5)
    assert answer.startswith(b"HTTP/1.1 400"), answer


# HTTP itself

NOT_HTTP = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n" + b"\r\n" * 10,
    "binary": bytes(range(256)),
    "old": b"GET /\r\n\r\n" + b" " * 30,
    "version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "header-without-colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n",
    "header-with-nul": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "two-lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "length-of-letters": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
    "negative-length": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "length-and-chunks": b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_what_is_not_http(server, data):
    answer = wire.raw(server, data, 3)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 505")), answer[:200]
    harmless(answer.decode(errors="replace"))


def test_a_chunk_that_is_none(server):
    head = f"POST /{RUNS}/ListRuns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\n"
    answer = wire.raw(server, f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\nhello".encode(), 5)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 500")) and b'"code":"internal"' in answer, answer[:300]
    harmless(answer.decode())


def test_too_many_headers(server):
    lines = "".join(f"X-{i}: y\r\n" for i in range(5000))
    answer = wire.raw(server, f"GET /healthz HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode(), 5)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431"), answer[:200]


def test_headers_too_large(server):
    answer = wire.raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n", 5)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431"), answer[:200]


def test_headers_too_large_over_http2(server):
    with wire.H2(server) as connection:
        with contextlib.suppress(ConnectionError, OSError):
            answer = connection.request("GET", "/healthz", {f"x-{i}": "y" * 1000 for i in range(100)})
            assert answer.status == 431


def test_an_upgrade_is_not_offered(server):
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert wire.raw(server, head, 2).startswith(b"HTTP/1.1 200")


# Floods


def rss(server) -> int:
    """Bytes of memory that the server holds."""
    if server.process is None:
        pytest.skip("that server's memory is not ours to look at")
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def quick(server, within: float = 1.0) -> None:
    """Normal work goes on: reading and writing answer in time."""
    took = []
    # The machine may be busy with other things at one moment, not at three.
    for _ in range(3):
        began = time.monotonic()
        wire.unary(server, f"{RUNS}/ListRuns", {"request": {"limit": 1}})
        project = {"id": PROJECT, "name": PROJECT, "description": uuid.uuid4().hex}
        wire.unary(server, f"{PROJECTS}/UpdateProject", {"project": project})
        took.append(time.monotonic() - began)
        if took[-1] < within:
            return
    raise AssertionError(f"a list and a write took {took} s")


def test_http2_rapid_reset(server):
    """CVE-2023-44487: requests that are cancelled as soon as they are made."""
    before = rss(server)
    connection = wire.H2(server)
    sent = 0
    with contextlib.suppress(ConnectionError, OSError, Exception):
        for _ in range(20_000):
            number = connection.h2.get_next_available_stream_id()
            head = [(":method", "POST"), (":scheme", "http"), (":authority", server.authority), (":path", f"/{CREATE}")]
            connection.h2.send_headers(number, [*head, ("content-type", "application/proto")])
            connection.h2.reset_stream(number)
            connection.flush()
            sent += 1
    quick(server)
    connection.close()
    assert rss(server) - before < 100 * MIB


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")

H2_FLOODS = {
    "settings": frame(4, 0, 0, b"\0\x04\0\0\xff\xff") * 100_000,
    "ping": frame(6, 0, 0, b"12345678") * 100_000,
    "empty-data": frame(1, 4, 1, b"\x83\x87\x84\x41\x09localhost") + frame(0, 0, 1, b"") * 100_000,
    "continuation": frame(1, 0, 1, b"\x83") + frame(9, 0, 1, b"\0\x01a\x01b" * 1000) * 2000,
    "window-updates": frame(8, 0, 0, b"\0\0\0\x01") * 100_000,
    "priority": frame(2, 0, 1, b"\0\0\0\0\x10") * 100_000,
    "reset-of-nothing": b"".join(frame(3, 0, n, b"\0\0\0\0") for n in range(1, 2001, 2)) * 10,
    "huge-frame": b"\xff\xff\xff\0\0\0\0\0\x01" + b"x" * 100_000,
    "unknown-frames": frame(0x42, 0, 0, b"x" * 1000) * 10_000,
    "hpack-bomb": frame(1, 4, 1, b"\x40\x01a\x7f\xe1\x1e" + b"x" * 3937 + b"\xbe" * 10_000),
    "zero-window": frame(4, 0, 0, b"\0\x04\0\0\0\0") + frame(1, 5, 1, b"\x82\x87\x84\x41\x09localhost") * 1,
}


@pytest.mark.parametrize("data", H2_FLOODS.values(), ids=H2_FLOODS.keys())
def test_an_http2_flood(server, data):
    """None of the answers is read."""
    before = rss(server)
    with wire.connect(server, 3) as stream:
        with contextlib.suppress(OSError):
            stream.sendall(PREFACE + data)
        quick(server)
    assert rss(server) - before < 100 * MIB


def test_ten_thousand_idle_connections(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    before, idle = rss(server), []
    try:
        # A third says nothing, a third half of a request, a third was served and stays.
        for number in range(10_000):
            stream = socket.socket()
            stream.settimeout(10)
            stream.connect(wire.address(server))
            idle.append(stream)
            if number % 3 == 1:
                stream.sendall(b"POST /x HTTP/1.1\r\nHost: loc")
            elif number % 3 == 2:
                stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in idle[-2].recv(1000)
        for _ in range(5):
            quick(server)
        assert server.process is None or server.process.poll() is None
        assert rss(server) - before < 300 * MIB
    finally:
        for stream in idle:
            stream.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    quick(server)


def test_slow_clients_disturb_nobody(server, run):
    """Heads and bodies that come byte by byte, and readers that never read."""
    streams: list[socket.socket] = []
    stop = threading.Event()

    def trickle() -> None:
        while not stop.wait(0.2):
            for stream in streams[:200]:
                with contextlib.suppress(OSError):
                    stream.send(b"x")

    body = f"POST /{RUNS}/ListRuns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\nContent-Length: 100000\r\n\r\n"
    watch = wire.envelope(b"")
    reader = (
        f"POST /{RUNS}/WatchRuns HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/connect+proto\r\n"
        f"Content-Length: {len(watch)}\r\n\r\n"
    )
    before = rss(server)
    trickler = threading.Thread(target=trickle, daemon=True)
    try:
        for number in range(300):
            stream = socket.socket()
            # A small window, so that what is not read soon stops the writer.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stream.settimeout(5)
            stream.connect(wire.address(server))
            streams.append(stream)
            head = b"GET / HTTP/1.1\r\nX-Slow: " if number < 100 else body.encode() if number < 200 else reader.encode() + watch
            stream.sendall(head)
        trickler.start()
        for _ in range(20):
            quick(server)
        assert rss(server) - before < 200 * MIB
    finally:
        stop.set()
        trickler.join(5)
        for stream in streams:
            stream.close()
    quick(server)


def test_many_at_once(server):
    """Two hundred clients with nonsense of all kinds, while honest ones work."""
    bodies = [*MALFORMED.values(), *BAD_ENVELOPES.values(), bomb(40 * MIB), zlib.compress(b"x" * 1000)]
    kinds = ["application/proto", "application/json", "application/grpc", "application/connect+proto", "nonsense"]
    problems: list[str] = []

    def attack(number: int) -> None:
        for step in range(10):
            body, kind = bodies[(number + step) % len(bodies)], kinds[(number * 7 + step) % len(kinds)]
            method = [CREATE, f"{RUNS}/WatchRuns", f"{ACTIONS}/Enqueue", "no.Such/Method"][(number + step * 3) % 4]
            headers = {"Content-Type": kind, "Content-Encoding": "gzip"} if step % 2 else {"Content-Type": kind}
            with contextlib.suppress(OSError, TimeoutError):
                answer = wire.h1(server, "POST", f"/{method}", headers, body, timeout=1)
                if answer.status >= 500 and answer.status != 501:
                    problems.append(f"{method} {kind} {body[:20]!r}: {answer.status} {answer.body[:200]!r}")

    threads = [threading.Thread(target=attack, args=(number,), daemon=True) for number in range(50)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        quick(server, 5)
    assert not problems, problems[:5]


# What stays


@pytest.fixture(scope="module")
def run(server) -> dict[str, str]:
    """A run that exists and is over."""
    found = NO_RUN | {"name": f"h{uuid.uuid4().hex[:20]}"}
    wire.unary(server, CREATE, {"runId": found, "taskSpec": TASK})
    wire.unary(server, f"{RUNS}/AbortRun", {"runId": found})
    return found


def test_the_same_run_again_is_refused_if_it_is_other_work(server, run):
    with refused("already_exists", run["name"]):
        wire.unary(server, CREATE, {"runId": run, "taskSpec": {"taskTemplate": TEMPLATE | {"type": "other"}}})


def test_no_work_below_what_has_ended(server, run):
    with refused("aborted", "a0"):
        action = {"actionId": {"run": run, "name": "d1"}, "parentActionName": "a0", "inputUri": f"{MINE}/in"}
        wire.unary(server, f"{ACTIONS}/Enqueue", {"action": action | {"task": {"spec": TASK}}})


def test_an_honest_run_still_works(server, sdk, examples):
    """After all of the above: a real workflow, in a server that has grown no fat."""
    run = sdk.succeed(examples.hello.main, whom="hostiles")
    assert "Hello, hostiles!" in run.outputs().o0
    eventually(lambda: rss(server) < 600 * MIB, "the server's memory to be sane", 30, lambda: f"{rss(server) / MIB:.0f} MB")
