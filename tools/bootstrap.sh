#!/usr/bin/env bash
# Makes sure of the tools that the build needs, and with `test` of those that the tests need besides. Quick when
# everything is there.
set -euo pipefail

need() { command -v "$1" >/dev/null 2>&1; }

need cargo || { echo "Rust is missing: install rustup, then run this again" >&2; exit 1; }
need python3 || { echo "python3 (3.10 or newer) is missing: install it, then run this again" >&2; exit 1; }
if ! need tar || ! need cc || ! need make; then
    apt-get update -qq && apt-get install -y -qq tar gcc make >/dev/null
fi
# The engine on Postgres is tested on a real one (tools/postgres.sh).
if [ "${1:-}" = test ] && ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    # Only the programs: the package's own server is not made. Its settings come with the first of the two.
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql-common &&
        echo "create_main_cluster = false" >>/etc/postgresql-common/createcluster.conf &&
        apt-get install -y -qq --no-install-recommends postgresql; } >/dev/null ||
        { echo "Postgres is missing and could not be installed: install the package postgresql, then run this again" >&2; exit 1; }
fi
# The page is tested in a browser; without one, those tests are skipped.
if [ "${1:-}" = test ] && ! need chromium && need apt-get; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo "chromium could not be installed: the tests of the page will be skipped" >&2
fi
# uv makes the Python environments, those of the tests and those of images. Also found below the cache, so that nothing
# has to be installed into the system's Python.
if ! need uv; then
    python3 -m pip install --quiet --disable-pip-version-check uv 2>/dev/null ||
        python3 -m pip install --quiet --disable-pip-version-check --break-system-packages uv
fi
need uv || { echo "uv was installed but is not on PATH: add $(python3 -m site --user-base)/bin to PATH" >&2; exit 1; }
