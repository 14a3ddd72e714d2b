"""Exports BERT-base and ViT-B/16, 12 layers each, with random weights.

Runs in an environment of its own:  pip install torch transformers==4.57.6 onnx onnxscript
    python export_encoders.py FOLDER     writes bert_base.onnx and vit_b16.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

TOKENS = 128


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    bert, tokens = BertModel(BertConfig()), torch.randint(0, 30522, (1, TOKENS))
    export(
        bert,
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
        folder / "bert_base.onnx",
    )
    vit = ViTModel(ViTConfig())
    export(vit, {"pixel_values": torch.randn(1, 3, 224, 224)}, folder / "vit_b16.onnx")


def export(model: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    model.eval()
    names = {"input_names": list(inputs), "output_names": ["states", "pooled"]}
    torch.onnx.export(
        model, (), path, kwargs=inputs, **names, opset_version=18, dynamo=True, external_data=False
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
