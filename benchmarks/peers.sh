#!/usr/bin/env bash
# An environment for the peers that benchmarks/minilm.py compares with; PyTorch's own are in .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.23.0 onnx onnxscript onnxruntime openvino nncf numpy
