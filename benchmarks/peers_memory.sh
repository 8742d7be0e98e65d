#!/usr/bin/env bash
# An environment for the memory packer that benchmarks/packers.py compares with.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .venv-memory
.venv-memory/bin/python -m pip install --quiet --disable-pip-version-check omnimalloc==1.0.0
