"""Sentence embeddings of a MiniLM-L6 bundle beside the float model's, on sentences it was not calibrated on.

Prints the cosine similarity of mean pooled embeddings, and Spearman's correlation of the similarities of all pairs.

python benchmarks/minilm.py FOLDER [--observer ...]     FOLDER as export_minilm.py wrote it
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compiler import build as building
from compiler import bundle
from compiler.quantize.calibrate import Observers
from compiler.runtime import Pipeline


def pooled(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the tokens of a sentence: [1, S, K] and [1, S] to [K]."""
    weights = mask[0, :, None].astype(np.float64)
    return (states[0] * weights).sum(axis=0) / weights.sum()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def ranks(similarities: np.ndarray) -> np.ndarray:
    """Ranks of the similarities of all pairs of unit vectors [count, K]."""
    pairs = (similarities @ similarities.T)[np.triu_indices(len(similarities), 1)]
    return np.argsort(np.argsort(pairs)).astype(np.float64)


def main(folder: Path, observers: list[str]) -> None:
    options = building.Options(calibration=folder / "calibration.npz", observers=Observers.parse(observers))
    test = dict(np.load(folder / "test.npz"))
    session = ort.InferenceSession(folder / "model.onnx")
    with tempfile.TemporaryDirectory() as made:
        started = time.perf_counter()
        manifest = building.build(folder / "model.onnx", Path(made) / "b", options)
        print(f"build {time.perf_counter() - started:.1f} s, {len(manifest['segments'])} segments")
        pipeline = Pipeline(bundle.load(Path(made) / "b"))
        found, vectors = [], []
        for index in range(len(test["input_ids"])):
            sample = {name: array[index : index + 1] for name, array in test.items()}
            (want,), got = session.run(None, sample), pipeline.run(sample)["last_hidden_state"]
            both = [pooled(states, sample["attention_mask"]) for states in (got, want)]
            found.append(cosine(*both))
            vectors.append([v / np.linalg.norm(v) for v in both])
    ours, theirs = (ranks(v) for v in np.array(vectors).transpose(1, 0, 2))
    print(f"pooled cosine over {len(found)} sentences: mean {np.mean(found):.4f}, least {np.min(found):.4f}")
    print(f"Spearman's correlation of the similarities of all pairs: {np.corrcoef(ours, theirs)[0, 1]:.4f}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0]), [a for a in arguments[1:] if a != "--observer"])
