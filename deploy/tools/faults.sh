#!/usr/bin/env bash
# What tests put below and beside a process, from Debian: libfaketime for clocks, iproute2 for networks, a PostgreSQL
# server, which the tests start in a folder of their own (the one that the package may start is not used). As root they
# are installed; otherwise it is said what is missing, and the tests that need it are skipped with the same words.
set -euo pipefail
missing=()
compgen -G "/usr/lib/*/faketime/libfaketime.so.1" >/dev/null || missing+=(faketime)
command -v ip >/dev/null || missing+=(iproute2)
{ compgen -G "/usr/lib/postgresql/*/bin/initdb" || command -v initdb; } >/dev/null || missing+=(postgresql)
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null && exit 0
fi
echo "Some tests are skipped: run 'sudo apt-get install ${missing[*]}' for them." >&2
