"""Inputs, outputs, links, and what travels beside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from flyteidl2.common import identifier_pb2
from flyteidl2.core import literals_pb2
from flyteidl2.dataproxy import dataproxy_service_pb2 as proxy
from flyteidl2.dataproxy.dataproxy_service_connect import DataProxyServiceClientSync
from flyteidl2.task import common_pb2, task_definition_pb2
from flyteidl2.workflow import run_definition_pb2, run_service_pb2
from flyteidl2.workflow.run_service_connect import RunServiceClientSync
from google.protobuf import duration_pb2
from harness import DOMAIN, PROJECT, eventually, write_config

WORKFLOWS = Path(__file__).parent / "workflows"

ours = pytest.mark.skipif("ALOFT_E2E_ENDPOINT" in os.environ, reason="the files of that server are not ours")


@pytest.fixture
def data(server):
    return DataProxyServiceClientSync(server.endpoint)


@pytest.fixture
def run(cli, sdk):
    """Run a task of `values.py` to its end; return the run's name."""

    def run(task, *args, before=()):
        name = cli("run", *before, "values.py", task, *args, cwd=WORKFLOWS).run_name
        eventually(lambda: sdk.action(name, "a0").done(), f"run {name} to end", 120, lambda: sdk.describe(name))
        return name

    return run


def action_id(run, name="a0"):
    return identifier_pb2.ActionIdentifier(
        name=name, run=identifier_pb2.RunIdentifier(project=PROJECT, domain=DOMAIN, name=run)
    )


def action_data(data, run, name="a0"):
    return data.get_action_data(
        proxy.GetActionDataRequest(action_id=action_id(run, name), run_source=run_definition_pb2.RUN_SOURCE_CLI)
    )


def object_file(server, uri):
    return server.log.parent / "data/objects" / uri.removeprefix("s3://")


def test_inputs_that_differ_in_what_is_ignored_are_kept_apart(cli, sdk, run):
    first = run("noted", "--number", "1", "--note", "one")
    second = run("noted", "--number", "1", "--note", "another")
    assert sdk.inputs(first, "a0") == {"number": 1, "note": "one"}
    assert sdk.inputs(second, "a0") == {"number": 1, "note": "another"}
    # The ignored one does not make it other work.
    assert 'o0="1 one"' in cli("get", "io", second).stdout


def literal(value):
    return literals_pb2.Literal(
        scalar=literals_pb2.Scalar(primitive=literals_pb2.Primitive(integer=value))
    )


def upload(data, values, **how):
    named = [common_pb2.NamedLiteral(name=name, value=literal(value)) for name, value in values.items()]
    request = proxy.UploadInputsRequest(inputs=common_pb2.Inputs(literals=named), **how)
    return data.upload_inputs(request).offloaded_input_data


def test_uploads_name_their_task_in_every_way(cli, data):
    project = identifier_pb2.ProjectIdentifier(name=PROJECT, domain=DOMAIN)
    spec = task_definition_pb2.TaskSpec()
    spec.task_template.metadata.cache_ignore_input_vars.append("b")
    cli("deploy", "--version", "data-1", "values.py", "env", cwd=WORKFLOWS)
    deployed = task_id("values.noted", "data-1")

    one = upload(data, {"a": 1, "b": 1}, project_id=project, task_spec=spec)
    two = upload(data, {"a": 1, "b": 2}, run_id=action_id("any").run, task_spec=spec)
    assert one.inputs_hash == two.inputs_hash and one.uri != two.uri
    plain = upload(data, {"a": 1, "b": 1}, project_id=project, task_id=deployed)
    assert plain.inputs_hash != one.inputs_hash and plain.uri == one.uri
    for wrong, field in [
        ({"project_id": project}, "task"),
        ({"task_spec": spec}, "id"),
        ({"project_id": project, "task_spec": spec, "base_dir": "s3://elsewhere/x"}, "base_dir"),
    ]:
        with pytest.raises(ConnectError) as refused:
            upload(data, {"a": 1}, **wrong)
        assert refused.value.code == Code.INVALID_ARGUMENT and refused.value.message.startswith(field)
    below = one.uri.rsplit("/inputs/", 1)[0] + "/elsewhere"
    moved = upload(data, {"a": 1, "b": 1}, project_id=project, task_spec=spec, base_dir=below)
    assert moved.uri.startswith(below + "/")


def task_id(name, version):
    return task_definition_pb2.TaskIdentifier(project=PROJECT, domain=DOMAIN, name=name, version=version)


@ours
def test_what_is_too_large_to_show_is_named_and_not_read(server, data, run):
    name = run("noted", "--number", "2", "--note", "large")
    uri = action_data(data, name).outputs_uri
    with object_file(server, uri).open("r+b") as file:
        file.truncate(100 << 20)

    def resident():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) // 1024

    before = resident()
    for _ in range(5):
        with pytest.raises(ConnectError) as refused:
            action_data(data, name)
        assert refused.value.code == Code.RESOURCE_EXHAUSTED
        assert uri in refused.value.message and str(100 << 20) in refused.value.message
    assert resident() - before < 50


@ours
def test_data_that_is_gone_is_not_taken_for_none(server, data, run):
    name = run("noted", "--number", "3", "--note", "gone")
    found = action_data(data, name)
    for uri, what in [(found.outputs_uri, "outputs"), (found.inputs_uri, "inputs")]:
        stored = object_file(server, uri)
        kept = stored.read_bytes()
        stored.unlink()
        with pytest.raises(ConnectError) as refused:
            action_data(data, name)
        assert refused.value.code == Code.NOT_FOUND
        assert f"the {what} of action a0 are gone" in refused.value.message and uri in refused.value.message
        stored.write_bytes(kept)
    assert action_data(data, name).outputs == found.outputs


def test_every_kind_of_action_names_its_data(server, data, sdk, run):
    name = run("reported", "--number", "21")
    runs = RunServiceClientSync(server.endpoint)
    kinds = {action.kind: action.name for action in sdk.actions(name)}
    for kind, action in kinds.items():
        uris = runs.get_action_data_u_r_is(run_service_pb2.GetActionDataURIsRequest(action_id=action_id(name, action)))
        found = action_data(data, name, action)
        assert (uris.inputs_uri, uris.outputs_uri) == (found.inputs_uri, found.outputs_uri)
        assert uris.outputs_uri.endswith("/outputs.pb")
        assert uris.inputs_uri.endswith("/inputs.pb") == (kind == "task")
        assert found.outputs.literals[0].value.scalar.primitive.integer == 42
    assert set(kinds) == {"task", "trace"}


def link(data, kind, expires=None, **source):
    request = proxy.CreateDownloadLinkRequest(artifact_type=kind, **source)
    if expires is not None:
        request.expires_in.CopyFrom(duration_pb2.Duration(seconds=expires))
    return data.create_download_link(request).pre_signed_urls


def fetch(urls):
    with urllib.request.urlopen(urls.signed_url[0]) as answer:
        return answer.read()


def attempt_id(run, attempt):
    return identifier_pb2.ActionAttemptIdentifier(action_id=action_id(run), attempt=attempt)


def test_links_to_reports_and_code(cli, data, run):
    name = run("reported", "--number", "1")
    for attempt in (1, 2):
        report = fetch(link(data, proxy.ARTIFACT_TYPE_REPORT, action_attempt_id=attempt_id(name, attempt)))
        assert f"attempt {attempt - 1}".encode() in report
    by_run = link(data, proxy.ARTIFACT_TYPE_CODE_BUNDLE, action_attempt_id=attempt_id(name, 1))
    assert "values.py" in tarfile.open(fileobj=BytesIO(fetch(by_run))).getnames()
    cli("deploy", "--version", "data-2", "values.py", "env", cwd=WORKFLOWS)
    task = task_id("values.reported", "data-2")
    by_task = link(data, proxy.ARTIFACT_TYPE_CODE_BUNDLE, task_id=task)
    assert "values.py" in tarfile.open(fileobj=BytesIO(fetch(by_task))).getnames()

    for code, field, request in [
        (Code.INVALID_ARGUMENT, "artifact_type", {"kind": proxy.ARTIFACT_TYPE_REPORT, "task_id": task}),
        (Code.INVALID_ARGUMENT, "artifact_type", {"kind": 0, "task_id": task}),
        (Code.INVALID_ARGUMENT, "action_attempt_id", {"kind": proxy.ARTIFACT_TYPE_CODE_BUNDLE}),
        (
            Code.INVALID_ARGUMENT,
            "expires_in",
            {"kind": proxy.ARTIFACT_TYPE_CODE_BUNDLE, "task_id": task, "expires": -1},
        ),
        (
            Code.NOT_FOUND,
            "task",
            {"kind": proxy.ARTIFACT_TYPE_CODE_BUNDLE, "task_id": task_id("values.reported", "none")},
        ),
        (
            Code.NOT_FOUND,
            "action a0 has no such attempt",
            {"kind": proxy.ARTIFACT_TYPE_REPORT, "action_attempt_id": attempt_id(name, 9)},
        ),
    ]:
        with pytest.raises(ConnectError) as refused:
            link(data, **request)
        assert refused.value.code == code and refused.value.message.startswith(field), refused.value


def test_links_live_for_an_hour_at_most(data, run):
    name = run("reported", "--number", "1")
    for asked, given in [(None, 900), (60, 60), (10 * 365 * 86400, 3600)]:
        urls = link(data, proxy.ARTIFACT_TYPE_CODE_BUNDLE, asked, action_attempt_id=attempt_id(name, 1))
        assert abs(urls.expires_at.ToSeconds() - time.time() - given) < 30


def test_context_and_variables_reach_parent_and_child(server, sdk, tmp_path):
    """By a program of its own: the SDK of this session takes its code from elsewhere."""
    program = (
        "import flyte, pathlib, values; flyte.init_from_config(sys.argv[1], root_dir=pathlib.Path.cwd());"
        "run = flyte.with_runcontext(custom_context={'trace': 't1'}, env_vars={'VARIABLE': 'set'}).run(values.above);"
        "run.wait(quiet=True); print(json.dumps(run.outputs()[0]))"
    )
    config = write_config(tmp_path / "config.yaml", server.authority)
    done = subprocess.run(
        [sys.executable, "-c", "import json, os, sys; sys.path.insert(0, os.getcwd());" + program, str(config)],
        cwd=WORKFLOWS,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    mine, childs = json.loads(done.stdout.splitlines()[-1])
    assert mine == {"trace": "t1", "VARIABLE": "set"}
    assert childs == {"trace": "t1", "added": "here", "VARIABLE": "set"}
