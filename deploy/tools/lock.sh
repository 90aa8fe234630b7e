#!/usr/bin/env bash
# Write requirements.lock and requirements-dev.lock from pyproject.toml, for any Python from 3.11 on.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=(.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url
    --no-annotate --no-header)
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
"${uv[@]}" pyproject.toml deploy/tools/build-requirements.in -o requirements.lock
"${uv[@]}" pyproject.toml deploy/tools/build-requirements.in --group dev -c requirements.lock -o requirements-dev.lock
