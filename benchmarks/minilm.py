"""Sentence embeddings of a MiniLM-L6 bundle beside the float model's, on sentences it was not
calibrated on.

Prints the predicted milliseconds on several links and hosts, the cosine similarity of mean pooled
embeddings, and Spearman's correlation of the similarities of all pairs.

python -m benchmarks.minilm FOLDER [--with STEP] [--without STEP] [--place auto] [--observer ...]
                                                    FOLDER as export_minilm.py wrote it
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compiler.checks.verify import Embeddings
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.emit import bundle
from compiler.partition import PartitionOptions
from compiler.quantize.calibrate import Observers
from compiler.runtime import Pipeline

# (target, host) that times are predicted for.
PLACES = (("usb3", "pi5"), ("pcie", "pi5"), ("usb3", "pi4"))


def main(folder: Path, options: BuildOptions, count: int) -> None:
    path = folder / "model.onnx"
    for target, host in PLACES:
        partitioning = replace(options.partitioning, host=host)
        there = replace(options, target=target, partitioning=partitioning)
        for also in (options.also, options.also | {"fuse_blocks"}):
            chosen = replace(there, also=also)
            program = building.plan_program(building.read(path, chosen), chosen)
            plan = program.plan
            on_tpu = [segment for segment in plan.segments if segment.device == "tpu"]
            print(
                f"{target} {host}{', fused blocks' if 'fuse_blocks' in also else ''}: "
                f"{1e3 * plan.latency:.1f} ms, {len(on_tpu)} TPU segments"
            )

    test = dict(np.load(folder / "test.npz"))
    session = ort.InferenceSession(path)
    with tempfile.TemporaryDirectory() as made:
        started = time.perf_counter()
        manifest = building.build(path, Path(made) / "b", options)
        seconds = time.perf_counter() - started
        print(f"build {seconds:.1f} s: {manifest['prediction']['latency_ms']:.1f} ms predicted")
        pipeline = Pipeline(bundle.load(Path(made) / "b"))
        embeddings = Embeddings()
        for index in range(min(count, len(test["input_ids"]))):
            sample = {name: array[index : index + 1] for name, array in test.items()}
            (want,), got = session.run(None, sample), pipeline.run(sample)["last_hidden_state"]
            embeddings.add(got, want, sample["attention_mask"])
    found = embeddings.report()
    print(
        f"pooled cosine over {len(embeddings.got)} sentences: mean {found['cosine']}, "
        f"least {found['least_cosine']}"
    )
    print(f"Spearman's correlation of the similarities of all pairs: {found['spearman']}")


def parsed() -> tuple[Path, BuildOptions, int]:
    """(folder, options, how many sentences) from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--with", action="append", default=[], dest="also")
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--place", default="auto")
    parser.add_argument("--observer", action="append", default=[], dest="observers")
    parser.add_argument("--sentences", type=int, default=200)
    given = parser.parse_args()
    options = BuildOptions(
        calibration=given.folder / "calibration.npz",
        observers=Observers.parse(given.observers),
        also=frozenset(given.also),
        without=frozenset(given.without),
        partitioning=PartitionOptions(place=given.place),
    )
    return given.folder, options, given.sentences


if __name__ == "__main__":
    main(*parsed())
