"""One port, three protocols, two versions of HTTP: the same RPCs answer on every way in."""

from __future__ import annotations

import json
import uuid

import pytest
import wire
from flyteidl2.project import project_service_pb2 as project
from flyteidl2.workflow import run_service_pb2 as service

PROJECTS = "flyteidl2.project.ProjectService"
RUNS = "flyteidl2.workflow.RunService"
HEALTH = "grpc.health.v1.Health/Check"
REFLECTION = "grpc.reflection.{}.ServerReflection/ServerReflectionInfo"

GET_PROJECT = project.GetProjectRequest(id="flytesnacks").SerializeToString()


def in_connect(version, *, binary=True, compress=False):
    def call(server, method, request):
        message = request.SerializeToString() if binary else as_json(request)
        return [wire.unary(server, method, message, version=version, compress=compress)]

    return call


def in_get(version, *, binary=True):
    def call(server, method, request):
        return [wire.get(server, method, request.SerializeToString() if binary else as_json(request), version)]

    return call


def in_grpc(server, method, request):
    return wire.grpc(server, method, request.SerializeToString())


def in_grpc_web(version):
    return lambda server, method, request: wire.grpc_web(
        server, method, request.SerializeToString(), version=version
    )


def as_json(message):
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message)


# Every way to make a unary call.
UNARY = {
    f"{name}-http{version}": call
    for version in "12"
    for name, call in {
        "connect-proto": in_connect(version),
        "connect-json": in_connect(version, binary=False),
        "connect-gzip": in_connect(version, compress=True),
        "connect-get": in_get(version),
        "connect-get-json": in_get(version, binary=False),
        "grpc-web": in_grpc_web(version),
    }.items()
} | {"grpc-http2": in_grpc}

POSTED = {name: call for name, call in UNARY.items() if "get" not in name}


def either(ways):
    return pytest.mark.parametrize("call", ways.values(), ids=ways.keys())


@either(UNARY)
def test_a_unary_rpc_answers(server, call):
    (answer,) = call(server, f"{PROJECTS}/GetProject", project.GetProjectRequest(id="flytesnacks"))
    if isinstance(answer, bytes):
        found = project.GetProjectResponse.FromString(answer).project
        # Other tests of this server add domains behind the first three.
        assert (found.id, [d.id for d in found.domains][:3]) == ("flytesnacks", ["development", "staging", "production"])
    else:
        assert answer["project"]["id"] == "flytesnacks"


@either(UNARY)
def test_an_error_is_well_formed(server, call):
    with pytest.raises(wire.Failed) as raised:
        call(server, f"{PROJECTS}/GetProject", project.GetProjectRequest(id="nowhere"))
    assert raised.value.code == "not_found"
    assert raised.value.message.startswith("project nowhere does not exist; create it with `flyte create project")
    status = raised.value.answer.status
    # gRPC puts errors into trailers, Connect into the status.
    assert status == (200 if "application/grpc" in raised.value.answer.kind else 404)


@either(POSTED)
def test_an_rpc_that_is_not_built_names_itself(server, call):
    method = "flyteidl2.trigger.TriggerService/ListTriggers"
    with pytest.raises(wire.Failed) as raised:
        call(server, method, project.GetProjectRequest())
    assert raised.value.code == "unimplemented"
    assert method in raised.value.message
    assert "not built yet" in raised.value.message


@either(POSTED)
@pytest.mark.parametrize("method", ["flyteidl2.workflow.RunService/Explode", "nobody.knows.Service/Method"])
def test_an_unknown_rpc_is_unimplemented(server, call, method):
    with pytest.raises(wire.Failed) as raised:
        call(server, method, project.GetProjectRequest())
    assert raised.value.code == "unimplemented"
    assert f"there is no RPC {method}" in raised.value.message


def in_stream(version, binary):
    return lambda server, method, request: wire.stream(
        server, method, request.SerializeToString() if binary else as_json(request), version=version
    )


STREAMS = {
    "connect-proto-http1": in_stream("1", True),
    "connect-proto-http2": in_stream("2", True),
    "connect-json-http1": in_stream("1", False),
    "connect-json-http2": in_stream("2", False),
    "grpc-http2": in_grpc,
    "grpc-web-http1": in_grpc_web("1"),
    "grpc-web-http2": in_grpc_web("2"),
}


@pytest.fixture(scope="module")
def ended_run(server) -> str:
    """A run that is over: aborted before anything could happen."""
    name = f"w{uuid.uuid4().hex[:20]}"
    run = {"org": "local", "project": "flytesnacks", "domain": "development", "name": name}
    template = {"id": {"name": "wire.ended", "version": "1"}, "type": "python"}
    wire.unary(server, f"{RUNS}/CreateRun", {"runId": run, "taskSpec": {"taskTemplate": template}})
    wire.unary(server, f"{RUNS}/AbortRun", {"runId": run, "reason": "the test is over"})
    return name


@either(STREAMS)
def test_a_stream_of_what_is_over_ends(server, call, ended_run):
    request = service.WatchRunDetailsRequest()
    request.run_id.org, request.run_id.project, request.run_id.domain = "local", "flytesnacks", "development"
    request.run_id.name = ended_run
    messages = call(server, f"{RUNS}/WatchRunDetails", request)
    assert messages
    last = messages[-1]
    name = (
        service.WatchRunDetailsResponse.FromString(last).details.action.id.run.name
        if isinstance(last, bytes) and not last.startswith(b"{")
        else json.loads(last)["details"]["action"]["id"]["run"]["name"]
    )
    assert name == ended_run


@either(STREAMS)
def test_a_stream_that_cannot_start_says_why(server, call):
    request = service.WatchRunDetailsRequest()
    request.run_id.project, request.run_id.domain, request.run_id.name = "flytesnacks", "development", "nothere"
    with pytest.raises(wire.Failed) as raised:
        call(server, f"{RUNS}/WatchRunDetails", request)
    assert raised.value.code == "not_found"
    assert raised.value.message == "run nothere does not exist in project flytesnacks, domain development"
    assert raised.value.answer.status == 200


@either(STREAMS)
def test_a_stream_that_is_not_built_names_itself(server, call):
    with pytest.raises(wire.Failed) as raised:
        call(server, "flyteidl2.app.AppService/Watch", project.GetProjectRequest())
    assert raised.value.code == "unimplemented"
    assert "flyteidl2.app.AppService/Watch is not built yet" in raised.value.message


def test_get_is_only_for_what_changes_nothing(server):
    with pytest.raises(wire.Failed) as raised:
        wire.get(server, f"{RUNS}/CreateRun", {})
    assert raised.value.answer.status == 405


# gRPC's own services


@pytest.mark.parametrize("name", ["", RUNS, PROJECTS])
def test_health_over_grpc(server, name):
    (answer,) = wire.grpc(server, HEALTH, wire.bytes_field(1, name) if name else b"")
    assert wire.fields(answer) == [(1, 1)]  # SERVING


@pytest.mark.parametrize("version", ["1", "2"])
def test_health_over_connect_and_grpc_web(server, version):
    assert wire.unary(server, HEALTH, {}, version=version) == {"status": "SERVING"}
    assert wire.fields(wire.unary(server, HEALTH, b"", version=version)) == [(1, 1)]
    assert [wire.fields(m) for m in wire.grpc_web(server, HEALTH, b"", version=version)] == [[(1, 1)]]


def test_health_of_an_unknown_service(server):
    with pytest.raises(wire.Failed) as raised:
        wire.grpc(server, HEALTH, wire.bytes_field(1, "nobody.Knows"))
    assert raised.value.code == "not_found"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_lists_the_services(server, version):
    (answer,) = wire.grpc(server, REFLECTION.format(version), wire.bytes_field(7, "*"))
    (listed,) = [value for number, value in wire.fields(answer) if number == 6]
    names = [wire.fields(service)[0][1].decode() for _, service in wire.fields(listed)]
    assert {RUNS, PROJECTS, "flyteidl2.actions.ActionsService"} <= set(names)


def test_reflection_describes_a_symbol(server):
    (answer,) = wire.grpc(server, REFLECTION.format("v1"), wire.bytes_field(4, f"{RUNS}.CreateRun"))
    (found,) = [value for number, value in wire.fields(answer) if number == 4]
    assert b"flyteidl2/workflow/run_service.proto" in wire.fields(found)[0][1]


def test_reflection_of_an_unknown_symbol_is_an_error_message(server):
    (answer,) = wire.grpc(server, REFLECTION.format("v1"), wire.bytes_field(4, "nobody.Knows"))
    (error,) = [value for number, value in wire.fields(answer) if number == 7]
    assert wire.fields(error)[0] == (1, 5)  # NOT_FOUND


def test_plain_health(server):
    for path in ("/healthz", "/readyz"):
        answer = wire.h1(server, "GET", path)
        assert (answer.status, answer.body) == (200, b"ok\n")
