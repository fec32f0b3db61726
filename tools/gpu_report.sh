#!/usr/bin/env bash
# What a machine with a GPU can say of this project, in at most 25 minutes: builds the operators, tests operators and models
# on the card, times them, trains a little, and writes outputs/gpu-report/report.md and .json: tools/gpu_report.sh [--dry-run]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
PYTHONPATH="projects/PIIP:.:tools${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m lab.gpu_report "$@"
