"""Runs in a process of its own, which can be ended: one ONNX file on ONNX's reference evaluator.

    python evaluate.py MODEL FOLDER

FOLDER has inputs.npz; outputs.npz is written there, with those outputs that are tensors.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator


def main(path: str, folder: Path) -> None:
    evaluator = ReferenceEvaluator(onnx.load(path))
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        feeds = {name: file[name] for name in evaluator.input_names if name in file.files}
    with np.errstate(all="ignore"):
        results = evaluator.run(None, feeds)
    tensors = {}
    for name, result in zip(evaluator.output_names, results, strict=True):
        if isinstance(result, np.ndarray | np.generic):
            tensors[name] = np.asarray(result)
    np.savez(folder / "outputs.npz", **tensors)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
