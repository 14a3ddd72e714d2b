"""Sentence embeddings of a MiniLM-L6 bundle beside the float model's, on sentences it was not
calibrated on.

Prints the predicted time of the plan on each link, the cosine similarity of mean pooled embeddings,
and Spearman's correlation of the similarities of all pairs.

python -m benchmarks.minilm FOLDER [OPTION ...]     FOLDER as export_minilm.py wrote it; options are
                                                    those of `coral-bundle build`
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compiler.checks.verify import Embeddings
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.emit import bundle
from compiler.quantize.calibrate import Observers
from compiler.runtime import Pipeline


def main(folder: Path, observers: list[str]) -> None:
    options = BuildOptions(
        calibration=folder / "calibration.npz", observers=Observers.parse(observers)
    )
    test = dict(np.load(folder / "test.npz"))
    session = ort.InferenceSession(folder / "model.onnx")
    with tempfile.TemporaryDirectory() as made:
        started = time.perf_counter()
        manifest = building.build(folder / "model.onnx", Path(made) / "b", options)
        print(f"build {time.perf_counter() - started:.1f} s, {len(manifest['segments'])} segments")
        pipeline = Pipeline(bundle.load(Path(made) / "b"))
        embeddings = Embeddings()
        for index in range(len(test["input_ids"])):
            sample = {name: array[index : index + 1] for name, array in test.items()}
            (want,), got = session.run(None, sample), pipeline.run(sample)["last_hidden_state"]
            embeddings.add(got, want, sample["attention_mask"])
    found = embeddings.report()
    print(
        f"pooled cosine over {len(embeddings.got)} sentences: mean {found['cosine']}, "
        f"least {found['least_cosine']}"
    )
    print(f"Spearman's correlation of the similarities of all pairs: {found['spearman']}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0]), [a for a in arguments[1:] if a != "--observer"])
