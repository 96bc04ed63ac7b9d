#!/usr/bin/env bash
# Everything that needs a GPU, in one command of at most 15 minutes:
#
#     benchmarks/gpu.sh [--audio FOLDER] [--out FOLDER] [--small] [--trace] [PART ...]
#
# See benchmarks/gpu.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$here/benchmarks/gpu.py" "$@"
