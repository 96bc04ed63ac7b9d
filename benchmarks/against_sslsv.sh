#!/usr/bin/env bash
# Views per second of this package and of sslsv on the same encoder, files,
# batch, crops and precision, and their ratio:
#
#     benchmarks/against_sslsv.sh SSLSV_CHECKOUT --audio FOLDER [--steps 30] [--precision fp32]
#
# See benchmarks/against_sslsv.py. Nothing is downloaded.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$here/benchmarks/against_sslsv.py" "$@"
