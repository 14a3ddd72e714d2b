"""Time of one inference of a bundle on this machine's CPU, beside onnxruntime with the float model.

    python benchmarks/run_time.py BUNDLE MODEL.onnx

Two threads each, alternating, the median of 20 runs; TPU segments run on LiteRT's int8 kernels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compiler.emit import bundle
from compiler.runtime import Pipeline

RUNS, THREADS = 20, 2


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main(path: Path, model: Path) -> None:
    pipeline = Pipeline(bundle.load(path), THREADS)
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options)
    rng = np.random.default_rng(0)
    sample = {i["name"]: rng.random(i["shape"]).astype(i["dtype"]) for i in pipeline.inputs}
    times = []
    for _ in range(RUNS):
        mine = seconds(lambda: pipeline.run(sample))
        times.append((mine, seconds(lambda: session.run(None, sample))))
    ours, theirs = np.median(times, axis=0)
    print(
        f"bundle {ours * 1e3:.1f} ms, onnxruntime float {theirs * 1e3:.1f} ms, "
        f"ratio {ours / theirs:.2f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
