#!/usr/bin/env bash
# Runs a Postgres of its own for tests and measurements, in the foreground: tools/postgres.sh DIRECTORY [setting=value ...]
# It listens on a socket in DIRECTORY only, unless a setting says otherwise; role `aloft`, database `aloft`, no password. What
# is in DIRECTORY is used again. Postgres does not run as root, so root runs it as the user of Debian's package.
set -euo pipefail

dir=$(realpath -m "$1")
shift
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[ -n "$bin" ] || { echo "Postgres is missing: install the package postgresql" >&2; exit 1; }

as=()
mkdir -p "$dir"
if [ "$(id -u)" = 0 ]; then
    chown postgres "$dir"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
cd "$dir"
if [ ! -e data/PG_VERSION ]; then
    "${as[@]}" "$bin/initdb" -D data -U aloft --auth=trust --encoding=UTF8 --locale=C.UTF-8 -N >/dev/null
    echo "CREATE DATABASE aloft;" | "${as[@]}" "$bin/postgres" --single -D data -j postgres >/dev/null
fi
settings=(-c listen_addresses= -c unix_socket_directories="$dir")
for setting in "$@"; do settings+=(-c "$setting"); done
exec "${as[@]}" "$bin/postgres" -D data "${settings[@]}"
