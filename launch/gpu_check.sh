#!/bin/sh
# What one CUDA card does with this project, in under nine minutes: checks, kernel benchmarks, a real run, a profile.
# Needs a checkout and its packages, no installation and no network. Options: launch/gpu_check.sh --help
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu_check "$@"
