"""Settings: edited with the official CLI and SDK, resolved level by level, applied to runs; projects and domains."""

from __future__ import annotations

import json
import os
import re
import subprocess
import uuid
from pathlib import Path

import pytest
import wire
from harness import CLI_TIMEOUT, PROJECT, plain

SETTINGS = "flyteidl2.settings.SettingsService"
DOMAINS = "flyteidl2.org.DomainService"
PROJECTS = "flyteidl2.project.ProjectService"
RUNS = "flyteidl2.workflow.RunService"
LOGS = "flyteidl2.dataproxy.DataProxyService/TailLogs"
WORKFLOWS = Path(__file__).parent / "workflows"


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


class refused:
    """The block must end in this error, with these words in it."""

    def __init__(self, code: str, *words: str):
        self.code, self.words = code, words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> bool:
        assert isinstance(error, wire.Failed), f"not refused: {error!r}"
        assert error.code == self.code, error
        wire.harmless(error.message, *self.words)
        for word in self.words:
            assert word in error.message, error.message
        return True


class Place:
    """A level of settings on a server."""

    def __init__(self, server, domain: str = "", project: str = ""):
        self.server = server
        self.key = {k: v for k, v in (("domain", domain), ("project", project)) if v}

    def get(self) -> dict:
        return wire.get(self.server, f"{SETTINGS}/GetSettings", {"key": self.key})["settingsRecord"]

    def levels(self) -> list[dict]:
        return wire.get(self.server, f"{SETTINGS}/GetSettingsForEdit", {"key": self.key})["levels"]

    def create(self, settings: dict, **headers: str) -> dict:
        request = {"key": self.key, "settings": settings}
        return wire.unary(self.server, f"{SETTINGS}/CreateSettings", request, headers=headers)["settingsRecord"]

    def update(self, settings: dict, version: int, **headers: str) -> dict:
        request = {"key": self.key, "settings": settings, "version": version}
        return wire.unary(self.server, f"{SETTINGS}/UpdateSettings", request, headers=headers)["settingsRecord"]


def text(value: str) -> dict:
    return {"state": "SETTING_STATE_VALUE", "stringValue": value}


def amount(value: str) -> dict:
    return {"state": "SETTING_STATE_VALUE", "quantityValue": value}


def pairs(**entries: str) -> dict:
    return {"state": "SETTING_STATE_VALUE", "mapValue": {"entries": entries}}


UNSET = {"state": "SETTING_STATE_UNSET"}


@pytest.fixture
def domain(server) -> str:
    """A domain of its own, so that no other test sees its settings."""
    name = unique("d")
    wire.unary(server, f"{DOMAINS}/CreateDomain", {"org": "local", "id": name})
    return name


@pytest.fixture
def project(server) -> str:
    name = unique("p")
    wire.unary(server, f"{PROJECTS}/CreateProject", {"project": {"id": name, "name": name}})
    return name


# Levels


def test_levels_are_resolved_with_their_sources(server, domain, project):
    organisation, there, here = Place(server), Place(server, domain), Place(server, domain, project)
    label = unique("team")
    before = organisation.levels()[0]
    version = int(before.get("version", 0))
    write = organisation.update if version else organisation.create
    made = write({"labels": pairs(**{label: "org", "all": "org"})}, *([version] if version else []))
    try:
        there.create({"run": {"defaultQueue": text("default")}, "labels": pairs(all="domain")})
        here.create(
            {
                "storage": {"rawDataPath": UNSET},
                "labels": pairs(own="project"),
                "taskResource": {"min": {"cpu": amount("500m")}, "mirrorLimitsRequest": {"state": 2, "boolValue": True}},
            }
        )
        shown = here.get()["settings"]
        assert shown["run"]["defaultQueue"] == text("default") | {"scopeLevel": "SCOPE_LEVEL_DOMAIN"}
        assert shown["taskResource"]["min"]["cpu"] == amount("500m") | {"scopeLevel": "SCOPE_LEVEL_PROJECT"}
        assert shown["taskResource"]["mirrorLimitsRequest"]["boolValue"] is True
        assert shown["storage"]["rawDataPath"] == UNSET | {"scopeLevel": "SCOPE_LEVEL_PROJECT"}
        assert shown["labels"]["mapValue"]["entries"] == {label: "org", "all": "domain", "own": "project"}
        # The widest level is number 0, which JSON leaves out.
        assert organisation.get()["settings"]["labels"] == pairs(**{label: "org", "all": "org"})
        assert "taskResource" not in there.get()["settings"]

        levels = here.levels()
        assert [level["key"] for level in levels] == [
            {"org": "local"},
            {"org": "local", "domain": domain},
            {"org": "local", "domain": domain, "project": project},
        ]
        assert [int(level["version"]) for level in levels] == [version + 1, 1, 1]
        assert levels[1]["settings"]["labels"]["mapValue"]["entries"] == {"all": "domain"}
        elsewhere = Place(server, domain, PROJECT).levels()
        assert elsewhere[2]["key"]["project"] == PROJECT and "version" not in elsewhere[2]
    finally:
        organisation.update(before["settings"], int(made["version"]))


def test_an_edit_needs_the_newest_version(server, domain):
    place = Place(server, domain)
    with refused("not_found", f"domain {domain}", "no version 3"):
        place.update({}, 3)
    assert place.create({"labels": pairs(a="1")})["version"] == "1"
    with refused("already_exists", f"domain {domain}", "update"):
        place.create({"labels": pairs(a="1")})
    assert place.update({"labels": pairs(a="2")}, 1)["version"] == "2"
    with refused("failed_precondition", "since version 1", "version 2 by anonymous at 20", "read them again"):
        place.update({"labels": pairs(a="3")}, 1)
    with refused("invalid_argument", "version: is required"):
        place.update({}, 0)
    assert place.get()["settings"]["labels"]["mapValue"]["entries"] == {"a": "2"}
    assert place.update({}, 2)["version"] == "3"
    assert place.get().get("settings", {}) == {}


def test_an_edit_sent_again_is_the_same_edit(server, domain):
    place = Place(server, domain)
    first, second = ({"x-request-id": str(uuid.uuid4())} for _ in range(2))
    for _ in range(3):
        assert place.create({"labels": pairs(a="1")}, **first)["version"] == "1"
    for _ in range(3):
        assert place.update({"labels": pairs(a="2")}, 1, **second)["version"] == "2"
    with refused("already_exists"):
        place.create({"labels": pairs(a="1")}, **{"x-request-id": str(uuid.uuid4())})


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"run": {"defaultQueue": text("no/queue")}}, "settings.run.default_queue: "),
        ({"run": {"defaultQueue": text("")}}, "settings.run.default_queue: is empty"),
        ({"run": {"defaultQueue": {"stringValue": "x"}}}, "settings.run.default_queue: has a value"),
        ({"run": {"defaultQueue": {"state": 9}}}, "settings.run.default_queue: state 9"),
        ({"run": {"maxActionConcurrency": {"state": 2, "intValue": "-1"}}}, "settings.run.max_action_concurrency: -1"),
        ({"run": {"runBaseDir": text("s3://elsewhere/x")}}, "settings.run.run_base_dir: "),
        ({"storage": {"rawDataPath": text("/etc")}}, "settings.storage.raw_data_path: "),
        ({"security": {"serviceAccount": text("Me!")}}, "settings.security.service_account: "),
        ({"taskResource": {"min": {"memory": amount("lots")}}}, "settings.task_resource.min.memory: "),
        ({"taskResource": {"max": {"gpu": amount("1.5")}}}, "settings.task_resource.max.gpu: "),
        (
            {"taskResource": {"min": {"cpu": amount("2")}, "max": {"cpu": amount("1")}}},
            "settings.task_resource.min.cpu: 2 is more than the 1",
        ),
        (
            {"taskResource": {"defaultAccelerator": {"state": 2, "acceleratorValue": {"device": "abacus"}}}},
            "settings.task_resource.default_accelerator: ",
        ),
        ({"environmentVariables": pairs(**{"A=B": "x"})}, "settings.environment_variables: "),
        ({"labels": pairs(a="x" * 2000)}, "settings.labels: "),
        ({"annotations": pairs(**{str(n): "" for n in range(101)})}, "settings.annotations: "),
        ({"app": {"appDnsStrategy": text("mine")}}, "settings.app.app_dns_strategy: "),
        ({"podTemplateName": text("_")}, "settings.pod_template_name: "),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_what_cannot_be_set_names_its_field(server, project, settings, words):
    place = Place(server, "development", project)
    with refused("invalid_argument", words):
        place.create(settings)
    assert "version" not in place.get()


def test_places_that_do_not_exist(server, domain):
    for place in (Place(server, "nowhere"), Place(server, domain, "nowhere")):
        for call in (place.get, place.levels, lambda place=place: place.create({})):
            with refused("not_found", "nowhere does not exist"):
                call()
    with refused("invalid_argument", "key.domain"):
        Place(server, project=PROJECT).get()
    with refused("invalid_argument", "key: is required"):
        wire.unary(server, f"{SETTINGS}/CreateSettings", {"settings": {}})
    with refused("invalid_argument", "settings: is required"):
        wire.unary(server, f"{SETTINGS}/CreateSettings", {"key": {"domain": domain}})
    with refused("invalid_argument", "storage.raw_data_path", "for a project"):
        Place(server, domain).create({"storage": {"rawDataPath": text("s3://aloft-data/local")}})


# The command line and the SDK


def edit(cli, editor: Path, *args: str, answers: str = "y\n") -> str:
    """`flyte edit settings`, with a script for an editor and a person who agrees."""
    command = cli.command("edit", "settings", *args, of=None)
    env = cli.env | {"EDITOR": str(editor)}
    done = subprocess.run(command, env=env, input=answers, capture_output=True, text=True, timeout=CLI_TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return plain(done.stdout + done.stderr)


def editor(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\nset -e\nfile=$1\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_cli_edits_and_shows_settings(cli, server, domain, project, tmp_path):
    at_domain, at_project = ("--domain", domain), ("--domain", domain, "--project", project)
    lines = "run.max_action_concurrency: 7\nsecurity.service_account: ml-sa\nlabels: {team: mice, floor: two}\n"
    lines += "task_resource.default_accelerator: nvidia-l4\n"
    said = edit(cli, editor(tmp_path / "a", f"printf '\\n%s' '{lines}' >> $file"), *at_domain)
    assert "Settings updated successfully" in said and "+ run.max_action_concurrency: 7" in said

    shown = cli("get", "settings", *at_domain, of=None).stdout
    assert "v1" in shown
    for line in ("run.max_action_concurrency: 7", "security.service_account: ml-sa", "team: mice"):
        assert line in shown, shown

    # A narrower level overrides, unsets and adds.
    overrides = tmp_path / "project.yaml"
    overrides.write_text('run.max_action_concurrency: 3\nsecurity.service_account: "~unset"\nlabels: {team: cats}\n')
    said = edit(cli, Path("/bin/false"), *at_project, "--from-file", str(overrides))
    assert "Settings updated successfully" in said
    shown = cli("get", "settings", *at_project, of=None).stdout
    assert re.search(r"overridden value: 7\s.*DOMAIN", shown), shown
    assert re.search(r"floor: two\s.*DOMAIN", shown), shown
    settings = Place(server, domain, project).get()["settings"]
    assert settings["run"]["maxActionConcurrency"]["intValue"] == "3"
    assert settings["security"]["serviceAccount"]["state"] == "SETTING_STATE_UNSET"
    assert settings["labels"]["mapValue"]["entries"] == {"team": "cats", "floor": "two"}
    assert settings["taskResource"]["defaultAccelerator"]["acceleratorValue"]["device"] == "nvidia-l4"

    # A line that is taken out is inherited again.
    said = edit(cli, editor(tmp_path / "b", "sed -i '/^run.max_action/d' $file"), *at_project)
    assert "- run.max_action_concurrency: 3" in said
    assert Place(server, domain, project).get()["settings"]["run"]["maxActionConcurrency"]["intValue"] == "7"
    assert [int(level.get("version", 0)) for level in Place(server, domain, project).levels()][1:] == [1, 2]

    # What the server refuses, the person reads.
    overrides.write_text("task_resource.min.cpu: many\n")
    output = cli("edit", "settings", *at_project, "--from-file", str(overrides), of=None, code=None)
    assert output.code != 0 and "settings.task_resource.min.cpu" in output.text


def test_the_sdk_is_told_of_a_conflict(sdk, domain):
    import flyte.remote

    mine = flyte.remote.Settings.get_settings_for_edit(domain=domain)
    theirs = flyte.remote.Settings.get_settings_for_edit(domain=domain)
    theirs.update_settings({"labels": {"who": "they"}})
    with pytest.raises(Exception, match="exist already"):
        mine.update_settings({"labels": {"who": "me"}})
    mine = flyte.remote.Settings.get_settings_for_edit(domain=domain)
    theirs.update_settings({"labels": {"who": "they, again"}})
    with pytest.raises(Exception, match="since version 1"):
        mine.update_settings({"labels": {"who": "me"}})
    mine = flyte.remote.Settings.get_settings_for_edit(domain=domain)
    mine.update_settings({"labels": {"who": "me"}, "run.max_action_concurrency": 0})
    found = flyte.remote.Settings.get_settings_for_edit(domain=domain)
    assert found.effective_values() == {"labels": {"who": "me"}, "run.max_action_concurrency": 0}
    assert {str(s.origin) for s in found.effective_settings} == {f"DOMAIN({domain})"}


# What a run gets


def log_of(server, run: dict, action: str) -> list[str]:
    messages = wire.stream(server, LOGS, {"actionId": {"run": run, "name": action}, "attempt": 1})
    batches = [logs for message in messages for logs in json.loads(message).get("logs", [])]
    return [line["message"].rstrip("\n") for batch in batches for line in batch.get("lines", [])]


def said(lines: list[str], who: str) -> dict:
    (line,) = [line for line in lines if line.startswith(f"{who} ")]
    return json.loads(line.removeprefix(who))


def follow(cli, server, project: str, domain: str, *args: str) -> tuple[dict, str]:
    """Run the probe to its end; the run's identifier and the name of its child."""
    place = ("--project", project, "--domain", domain)
    output = cli("run", *place, "--follow", *args, "settings_probe.py", "main", cwd=WORKFLOWS)
    run = {"project": project, "domain": domain, "name": output.run_name}
    actions = wire.unary(server, f"{RUNS}/ListActions", {"runId": run, "request": {"limit": 100}})["actions"]
    phases = {a["id"]["name"]: a["status"]["phase"] for a in actions}
    assert set(phases.values()) == {"ACTION_PHASE_SUCCEEDED"}, output.text
    (child,) = set(phases) - {"a0"}
    return run, child


def test_runs_get_what_they_leave_open(cli, server, domain, project):
    storage = f"s3://aloft-data/local/{project}/{domain}"
    Place(server, domain).create(
        {
            "labels": pairs(team="mice", floor="two"),
            "environmentVariables": pairs(FROM_SETTINGS="domain", FROM_TASK="domain", FROM_RUN="domain"),
            "taskResource": {"max": {"cpu": amount("500m"), "memory": amount("128Mi")}},
        }
    )
    Place(server, domain, project).create(
        {
            "run": {"maxActionConcurrency": {"state": 2, "intValue": "5"}, "runBaseDir": text(f"{storage}/bases/")},
            "storage": {"rawDataPath": text(f"{storage}/raw")},
            "security": {"serviceAccount": text("ml-sa")},
            "annotations": pairs(note="project"),
            "environmentVariables": pairs(FROM_SETTINGS="project"),
            "taskResource": {"min": {"cpu": amount("250m")}},
            "podTemplateName": text("base"),
        }
    )
    run, child = follow(cli, server, project, domain, "--label", "team=cats", "--env", "FROM_RUN=run")
    spec = wire.unary(server, f"{RUNS}/GetRunDetails", {"runId": run})["details"]["runSpec"]
    assert spec["labels"]["values"] == {"team": "cats", "floor": "two"}
    assert spec["annotations"]["values"] == {"note": "project"}
    assert spec["maxActionConcurrency"] == 5
    assert spec["rawDataStorage"]["rawDataPrefix"] == f"{storage}/raw"
    assert spec["securityContext"]["runAs"]["k8sServiceAccount"] == "ml-sa"
    assert spec["defaultSettings"]["podTemplateName"] == "base"
    defaults = spec["defaultSettings"]["taskResourceDefaults"]
    assert defaults["requests"] == [{"name": "CPU", "value": "250m"}]
    assert defaults["max"] == [{"name": "CPU", "value": "500m"}, {"name": "MEMORY", "value": "128Mi"}]

    filtered = {"filters": [{"function": "EQUAL", "field": "labels.floor", "values": ["two"]}]}
    scope = {"projectId": {"name": project, "domain": domain}}
    listed = wire.unary(server, f"{RUNS}/ListRuns", {"request": filtered} | scope)["runs"]
    assert [r["action"]["id"]["run"]["name"] for r in listed] == [run["name"]]

    want = {"FROM_SETTINGS": "project", "FROM_TASK": "task", "FROM_RUN": "run"}
    root, below = log_of(server, run, "a0"), log_of(server, run, child)
    assert said(root, "main") == want, "what the task and the run say wins"
    found = said(below, "child")
    assert found.items() >= want.items()
    assert found["file"].startswith(f"{storage}/raw/{run['name']}/{child}/1/")
    assert found["base"] == f"{storage}/bases/{run['name']}"
    for log in (root, below):
        assert any("asks for 1 CPU cores and the settings of its project allow 0.5" in line for line in log), log
        assert any("256 MiB of memory and the settings of its project allow 128" in line for line in log), log
    data = wire.unary(server, f"{RUNS}/GetActionDataURIs", {"actionId": {"run": run, "name": "a0"}})
    assert data["outputsUri"] == f"{storage}/bases/{run['name']}/a0/1/outputs.pb"


def test_a_run_keeps_the_settings_it_began_with(cli, server, domain, project):
    place = Place(server, domain, project)
    place.create({"environmentVariables": pairs(FROM_SETTINGS="first")})
    run, child = follow(cli, server, project, domain)
    place.update({"environmentVariables": pairs(FROM_SETTINGS="second")}, 1)
    again, _ = follow(cli, server, project, domain)
    assert said(log_of(server, run, child), "child")["FROM_SETTINGS"] == "first"
    assert said(log_of(server, again, "a0"), "main")["FROM_SETTINGS"] == "second"
    place.update({}, 2)
    bare, _ = follow(cli, server, project, domain)
    assert "FROM_SETTINGS" not in said(log_of(server, bare, "a0"), "main")
    spec = wire.unary(server, f"{RUNS}/GetRunDetails", {"runId": bare})["details"]["runSpec"]
    assert "defaultSettings" not in spec


def test_runs_go_to_the_default_queue_of_their_place(cli, server, domain, project):
    place, queue = Place(server, domain, project), unique("q")
    with refused("invalid_argument", f"settings.run.default_queue: queue {queue} does not exist", "aloft create queue"):
        place.create({"run": {"defaultQueue": text(queue)}})
    wire.unary(server, "aloft.v1.QueueService/CreateQueue", {"id": {"name": queue}, "spec": {}})
    place.create({"run": {"defaultQueue": text(queue)}})
    run, _ = follow(cli, server, project, domain)
    spec = wire.unary(server, f"{RUNS}/GetRunDetails", {"runId": run})["details"]["runSpec"]
    assert spec["queue"] == queue


def test_a_gpu_that_settings_give_is_not_the_tasks_fault(cli, server, domain, project):
    Place(server, domain, project).create({"taskResource": {"min": {"gpu": amount("1")}}})
    place = ("--project", project, "--domain", domain)
    output = cli("run", *place, "--follow", "settings_probe.py", "main", cwd=WORKFLOWS, code=None)
    run = {"project": project, "domain": domain, "name": output.run_name}
    details = wire.unary(server, f"{RUNS}/GetActionDetails", {"actionId": {"run": run, "name": "a0"}})["details"]
    assert "task_resource.min.gpu" in details["errorInfo"]["message"]


# Projects


def test_an_archived_project_takes_nothing_new(cli, server, project):
    assert "archived" in cli("update", "project", project, "--archive").text
    assert project not in {p["id"] for p in cli("get", "project").json()}
    assert project in {p["id"] for p in cli("get", "project", "--archived").json()}
    output = cli("run", "--project", project, "hello.py", "main", code=None)
    remedy = f"flyte update project {project} --unarchive"
    assert output.code != 0 and remedy in " ".join(output.text.split()), output.text

    here = {"org": "local", "project": project, "domain": "development"}
    place = {"organization": "local", "name": project, "domain": "development"}
    spec = {"taskTemplate": {"id": {"name": "a.b", "version": "1"}, "type": "python", "container": {}}}
    for method, request in [
        (f"{RUNS}/CreateRun", {"projectId": place, "taskSpec": spec}),
        ("flyteidl2.task.TaskService/DeployTask", {"taskId": here | {"name": "a.b", "version": "1"}, "spec": spec}),
        ("flyteidl2.dataproxy.DataProxyService/UploadInputs", {"projectId": place, "taskSpec": spec}),
        ("flyteidl2.dataproxy.DataProxyService/CreateUploadLocation", here | {"filenameRoot": "r", "filename": "f"}),
    ]:
        with refused("failed_precondition", f"project {project} is archived", "--unarchive"):
            wire.unary(server, method, request)

    cli("update", "project", project, "--unarchive")
    assert project in {p["id"] for p in cli("get", "project").json()}
    cli("run", "--project", project, "--follow", "hello.py", "main")


def test_an_update_of_a_project_keeps_what_it_does_not_say(cli, server):
    name = unique("p")
    cli("create", "project", "--id", name, "--name", "One", "--description", "First", "--label", "team=mice")
    cli("update", "project", name, "--description", "Second")
    get = lambda: wire.unary(server, f"{PROJECTS}/GetProject", {"id": name})["project"]  # noqa: E731
    found = get()
    assert (found["name"], found["description"]) == ("One", "Second")
    assert found["labels"]["values"] == {"team": "mice"}
    cli("update", "project", name, "--label", "floor=two")
    assert get()["labels"]["values"] == {"floor": "two"}
    update = f"{PROJECTS}/UpdateProject"
    wire.unary(server, update, {"project": {"id": name}})
    assert (get()["name"], get()["labels"]["values"]) == ("One", {"floor": "two"}), "labels that were not sent stay"
    wire.unary(server, update, {"project": {"id": name, "labels": {}}})
    assert "values" not in get()["labels"]
    with refused("invalid_argument", "project.domains"):
        wire.unary(server, update, {"project": {"id": name, "domains": [{"id": "x"}]}})
    for state in (2, 77):
        with refused("invalid_argument", "project.state"):
            wire.unary(server, update, {"project": {"id": name, "state": state}})
    with refused("invalid_argument", "project.state", "platform's own"):
        wire.unary(server, update, {"project": {"id": "system", "state": 1}})
    with refused("not_found", "flyte create project --id"):
        wire.unary(server, update, {"project": {"id": "nowhere"}})


def test_projects_belong_to_an_organisation(server):
    name, other = unique("p"), unique("org")
    for org in ("", other):
        wire.unary(server, f"{PROJECTS}/CreateProject", {"project": {"id": name, "name": org or "ours", "org": org}})
    ours, theirs = (wire.unary(server, f"{PROJECTS}/GetProject", {"id": name, "org": org})["project"] for org in ("", other))
    assert (ours["org"], ours["name"], theirs["org"], theirs["name"]) == ("local", "ours", other, other)
    listed = wire.unary(server, f"{PROJECTS}/ListProjects", {"org": other})["projects"]["projects"]
    assert [p["id"] for p in listed] == [name]
    assert [d["id"] for d in theirs["domains"]] == ["development", "staging", "production"]


def test_projects_are_filtered_sorted_and_paged(server):
    org = unique("org")
    for number in range(5):
        project = {"id": f"p{number}", "name": f"Name {9 - number}", "org": org, "state": number % 2}
        wire.unary(server, f"{PROJECTS}/CreateProject", {"project": project})

    def ids(**request) -> list[str]:
        found, token = [], ""
        while True:
            answer = wire.unary(server, f"{PROJECTS}/ListProjects", {"org": org, "token": token} | request)
            found += [p["id"] for p in answer["projects"].get("projects", [])]
            token = answer["projects"].get("token", "")
            if not token:
                return found

    active, everything = ["p0", "p2", "p4"], "value_in(state, 0;1)"
    assert ids() == ids(limit=1) == active
    assert ids(filters="eq(state, 1)") == ["p1", "p3"]
    assert ids(filters=everything) == ids(filters=everything, limit=2) == [f"p{n}" for n in range(5)]
    assert ids(filters=f"{everything}+contains(name, ame 8)") == ["p1"]
    assert ids(filters="ne(id, p2)+value_in(name, Name 9;Name 7;Name 8)") == ["p0"]
    for key in ("name", "created_at", "id"):
        for direction in ("ASCENDING", "DESCENDING"):
            want = active[::-1] if (key == "name") != (direction == "DESCENDING") else active
            for limit in (0, 1, 2):
                assert ids(sortBy={"key": key, "direction": direction}, limit=limit) == want, (key, direction)
    with refused("invalid_argument", "sort_by.key"):
        ids(sortBy={"key": "colour"})


# Domains


def test_domains_are_made_renamed_and_deleted(server, cli):
    name = unique("qa")
    org = {"org": "local"}

    def listed() -> dict:
        return {d["id"]: d for d in wire.get(server, f"{DOMAINS}/ListDomains", org)["domains"]}

    assert list(listed())[:3] == ["development", "staging", "production"]
    made = wire.unary(server, f"{DOMAINS}/CreateDomain", org | {"id": name, "friendlyName": "Quality"})["domain"]
    assert (made["id"], made["org"], made["friendlyName"]) == (name, "local", "Quality") and made["createdAt"]
    assert wire.get(server, f"{DOMAINS}/GetDomain", org | {"id": name})["domain"] == made
    with refused("already_exists", f"domain {name} exists"):
        wire.unary(server, f"{DOMAINS}/CreateDomain", org | {"id": name})
    renamed = wire.unary(server, f"{DOMAINS}/UpdateDomain", org | {"id": name, "friendlyName": "QA"})["domain"]
    assert renamed == made | {"friendlyName": "QA"} == listed()[name]

    # Every project has it at once, and runs can be made in it.
    (shown,) = [p for p in cli("get", "project").json() if p["id"] == PROJECT]
    assert {"id": name, "name": "QA"} in shown["domains"]
    cli("run", "--domain", name, "--follow", "hello.py", "main")
    cli("deploy", "--domain", name, "hello.py", "env")
    with refused("failed_precondition", f"domain {name} has 1 run and ", "deployed task"):
        wire.unary(server, f"{DOMAINS}/DeleteDomain", org | {"id": name})
    empty = unique("empty")
    wire.unary(server, f"{DOMAINS}/CreateDomain", org | {"id": empty})
    assert wire.unary(server, f"{DOMAINS}/DeleteDomain", org | {"id": empty}) == {}
    assert empty not in listed()
    for method in ("GetDomain", "UpdateDomain", "DeleteDomain"):
        with refused("not_found", f"domain {empty} does not exist", "development, staging, production"):
            wire.unary(server, f"{DOMAINS}/{method}", org | {"id": empty})
    output = cli("run", "--domain", empty, "hello.py", "main", code=None)
    assert output.code != 0 and f"domain {empty} does not exist" in " ".join(output.text.split())


@pytest.mark.parametrize("bad", ["", "Dev", "-a", "a-", "a_b", "a.b", "x" * 64, "a/b", "ü"])
def test_a_domain_must_have_a_name_of_the_contract(server, bad):
    with refused("invalid_argument", "id"):
        wire.unary(server, f"{DOMAINS}/CreateDomain", {"org": "local", "id": bad})
    with refused("invalid_argument", "friendly_name"):
        wire.unary(server, f"{DOMAINS}/CreateDomain", {"id": "fine", "friendlyName": "x" * 256})


def test_an_organisation_begins_with_the_usual_domains(server):
    org = {"org": unique("org")}
    usual = ["development", "staging", "production"]

    def ids() -> list[str]:
        return [d["id"] for d in wire.get(server, f"{DOMAINS}/ListDomains", org)["domains"]]

    assert ids() == usual, "reading makes no records, and shows what there will be"
    for gone in usual[:2]:
        wire.unary(server, f"{DOMAINS}/DeleteDomain", org | {"id": gone})
    assert ids() == usual[2:]
    with refused("failed_precondition", "the last one"):
        wire.unary(server, f"{DOMAINS}/DeleteDomain", org | {"id": "production"})
    assert ids() == usual[2:]


def test_there_is_a_most_of_domains(server):
    org = {"org": unique("org")}
    for number in range(97):
        wire.unary(server, f"{DOMAINS}/CreateDomain", org | {"id": f"d{number}"})
    with refused("resource_exhausted", "100 domains"):
        wire.unary(server, f"{DOMAINS}/CreateDomain", org | {"id": "onemore"})
