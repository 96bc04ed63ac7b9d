#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most 15 minutes, and the
# first 200 steps of each full-scale YAML, in half an hour:
#
#     benchmarks/gpu.sh [--audio FOLDER] [--out FOLDER] [--small] [--trace] [PART ...]
#     benchmarks/gpu.sh curves [--only YAML ...] [--audio FOLDER] [--out FOLDER]
#
# See benchmarks/gpu.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$here/benchmarks/gpu.py" "$@"
