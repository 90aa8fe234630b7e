#!/usr/bin/env bash
# Make a virtual environment, or say in one sentence what is missing.
set -euo pipefail
python=$1 venv=$2
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "Vigil needs Python 3.11 or newer: install it (Debian 12: apt-get install python3) or run make PYTHON=/path/to/python3." >&2
  exit 1
fi
[ -x "$venv/bin/python" ] && exit 0
if "$python" -c 'import ensurepip' 2>/dev/null; then
  exec "$python" -m venv "$venv"
fi
# Debian keeps venv in a package of its own.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
  exec "$python" -m venv "$venv"
fi
echo "Python's venv module is missing: run 'sudo apt-get install python3-venv' and try again." >&2
exit 1
