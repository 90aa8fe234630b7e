#!/usr/bin/env bash
# Generate services/vigil/api from proto/. The output is committed; lint regenerates it and compares.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-services}
export PATH="$PWD/.venv/bin:$PATH"
mapfile -t sources < <(find proto/vigil -name '*.proto' | LC_ALL=C sort)
python -m grpc_tools.protoc -I proto --python_out="$out" --grpc_python_out="$out" \
  --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" "${sources[@]}"
find "$out/vigil/api" -type d ! -name __pycache__ -exec touch {}/__init__.py \;
