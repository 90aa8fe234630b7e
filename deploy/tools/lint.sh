#!/usr/bin/env bash
# Every static check. Each prints its name; the first that fails ends the run.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.tools/bin:$PWD/.venv/bin:$PATH"
step() { echo "lint: $1"; shift; "$@"; }

generated_is_current() {
  local fresh
  fresh=$(mktemp -d)
  mkdir -p "$fresh/vigil"
  cp services/vigil/__init__.py "$fresh/vigil/"
  bash deploy/tools/protos.sh "$fresh"
  diff -r --exclude=__pycache__ "$fresh/vigil/api" services/vigil/api || {
    echo "services/vigil/api is not what proto/ generates: run 'make protos' and commit." >&2; return 1; }
  rm -rf "$fresh"
}

step "ruff check" ruff check --quiet .
step "ruff format" ruff format --check --quiet .
step "buf lint" buf lint proto
step "buf format" buf format --diff --exit-code proto --path proto/vigil
step "generated code" generated_is_current
step "opa fmt" opa fmt --fail --list policies
step "opa check" opa check --strict policies
step "secrets" python deploy/tools/secret_scan.py
step "policy bundle" python -m vigil.policy.engine.build --check
step "mypy" mypy
