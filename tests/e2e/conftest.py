"""Fixtures of the end-to-end suite: a real `aloft dev`, driven by the unmodified SDK and CLI.

    python -m venv .venv && .venv/bin/pip install -r tests/e2e/requirements.txt
    cargo build && .venv/bin/pytest tests/e2e            # or with -n 2

Environment:
    ALOFT_BIN               the binary to test (default: $CARGO_TARGET_DIR/debug/aloft)
    ALOFT_E2E_ENDPOINT      test a server that already runs, e.g. http://localhost:30080
    ALOFT_E2E_PYTHON        the interpreter tasks run with (default: the one running pytest)
    ALOFT_E2E_RUN_TIMEOUT   seconds a run may take (default 120)

Each pytest session, and with xdist each worker, has a server and a home directory of its own.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

# The SDK looks for its caches and configuration when it is imported, so it gets a clean world first.
SERVER_ENV = dict(os.environ, DO_NOT_TRACK="1")
HOME = Path(tempfile.mkdtemp(prefix="aloft-e2e-home-"))
for name in [name for name in os.environ if name.startswith(("FLYTE", "UCTL", "_U_", "_F_"))]:
    del os.environ[name]
os.environ.update(HOME=str(HOME), DO_NOT_TRACK="1", NO_COLOR="1")

sys.path.insert(0, str(Path(__file__).parent))
from harness import EXAMPLES, REPOSITORY, Cli, Sdk, Server, write_config  # noqa: E402

PYTHON = os.environ.get("ALOFT_E2E_PYTHON", sys.executable)
FLYTE = Path(sys.executable).parent / "flyte"


@pytest.fixture(scope="session")
def binary() -> Path:
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    path = Path(os.environ.get("ALOFT_BIN", target / "debug" / "aloft"))
    if not path.exists():
        pytest.fail(f"{path} does not exist: build it with `cargo build`, or say where it is with ALOFT_BIN")
    return path.resolve()


@pytest.fixture(scope="session")
def spawn(binary):
    """Start another server: `spawn(data_dir, log)`."""

    def start(data_dir: Path, log: Path) -> Server:
        return Server.start(binary, data_dir, log, PYTHON, SERVER_ENV)

    return start


@pytest.fixture(scope="session")
def server(request, tmp_path_factory):
    """The server of this session. It must stop cleanly and must not have panicked."""
    if endpoint := os.environ.get("ALOFT_E2E_ENDPOINT"):
        yield Server(endpoint)
        return
    directory = tmp_path_factory.mktemp("aloft")
    server = request.getfixturevalue("spawn")(directory / "data", directory / "server.log")
    yield server
    code = server.stop()
    log = server.log_since(0)
    assert code == 0, f"the server exited with {code} after SIGINT\n{log[-4000:]}"
    assert "panicked at" not in log, log[log.index("panicked at") - 200 :][:4000]


@pytest.fixture(scope="session")
def config(server, tmp_path_factory) -> Path:
    return write_config(tmp_path_factory.mktemp("config") / "config.yaml", server.authority)


@pytest.fixture(scope="session")
def sdk(server, config) -> Sdk:
    import flyte

    flyte.init_from_config(config, root_dir=EXAMPLES)
    return Sdk(server)


@pytest.fixture(scope="session")
def cli(config, sdk) -> Cli:
    return Cli(FLYTE, config, HOME, sdk.describe)


@pytest.fixture(scope="session")
def examples():
    """Every example, imported once, so that one code bundle serves all runs of the session."""
    sys.path.insert(0, str(EXAMPLES))
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


LOG_START = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def mark_log(request):
    """Remember where the server's log stood when the test began."""
    if "server" in request.fixturenames:
        request.node.stash[LOG_START] = request.getfixturevalue("server").log_size()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What the server wrote during a test that failed is part of its report."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        lines = server.log_since(item.stash.get(LOG_START, 0)).splitlines()
        report.sections.append(("server log", "\n".join(lines[-200:])))
    return report
