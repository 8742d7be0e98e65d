"""Writes MiniLM with pooling and normalisation as ONNX: run in the peers' environment.

python benchmarks/export_minilm.py MODEL_FOLDER OUT.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import sentences
import transformers


def main(folder: str, out: str) -> None:
    """Export with free batch and length."""
    network = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    model = sentences.Encoder(network).eval()
    ids = torch.randint(5, 1000, (2, 16))
    given = (ids, torch.ones_like(ids))
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=512)
    torch.onnx.export(
        model,
        given,
        out,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence"],
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
