#!/bin/sh
# Generate delta/v1 from proto/delta/v1. Usage: scripts/gen_protos.sh [OUTPUT_FOLDER]
set -eu
cd "$(dirname "$0")/.."
out="${1:-.}"
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
# protoc finds its plug-ins (mypy-protobuf) on PATH.
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
export PATH
mkdir -p "$out"
"$python" -m grpc_tools.protoc -Iproto \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  proto/delta/v1/*.proto
