#!/bin/sh
# Regenerates the committed protobuf code. `generate.sh DIR` writes it elsewhere, so that a test can compare.
set -eu
cd "$(dirname "$0")"
out=${1:-.}
exec python -m grpc_tools.protoc -I . --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    shiftprotos/v1/inference.proto shiftprotos/v1/control.proto shiftprotos/kserve/open_inference.proto
