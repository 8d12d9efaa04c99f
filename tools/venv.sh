#!/usr/bin/env bash
# Makes the Python environment of the tests in $1 with the requirements in $2, unless it is there already.
set -euo pipefail
venv=$1 requirements=$2
stamp="$venv/.requirements-$(sha256sum "$requirements" | cut -c1-16)"
[ -e "$stamp" ] && exit 0
rm -rf "$venv"
mkdir -p "$(dirname "$venv")"
uv venv --quiet "$venv"
uv pip install --quiet --python "$venv/bin/python" -r "$requirements"
touch "$stamp"
