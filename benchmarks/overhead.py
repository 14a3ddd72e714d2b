"""What the runtime adds to its segments: `Runner.run` beside bare interpreters and sessions on the
same arrays.

    python -m benchmarks.overhead

A single dense layer, which is one segment, against Interpreter.invoke; SqueezeNet; and ResNet-50 in
eight segments for the Edge TPU against the sum of its segments. Then eight segments of 5 ms that
run at once on eight devices, against one of them alone. One thread, alternating, medians and the
least.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions
from compiler.runtime import Bundle, Device, Pipeline, Runner
from compiler.runtime.bench import random_inputs
from compiler.runtime.devices import Cpu, Executable
from compiler.runtime.executor import Executor
from compiler.runtime.fleet import Fleet
from compiler.runtime.manifest import SegmentEntry
from fixtures import light
from tests import schedules

ROUNDS = 200


def dense(path: Path) -> Path:
    """2688 x 2688 on one row: as large as one layer fits the SRAM."""
    w = np.random.default_rng(0).standard_normal((2688, 2688)).astype(np.float32)
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, (1, 2688)) for n in "xy"]
    node = helper.make_node("Gemm", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [node], "dense", value[:1], value[1:], [numpy_helper.from_array(w, "w")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def bare(runner: Runner) -> list[Callable[[], object]]:
    """For each segment its own interpreter's invoke, or its session's run on what it was given in
    the pipeline.

    Other ones with the same weights would take turns with them in the CPU's caches.
    """
    found: list[Callable[[], object]] = []
    pipeline = runner.pipeline
    values = pipeline.check_inputs(random_inputs(pipeline.inputs))
    for index, segment in enumerate(pipeline.segments):
        executable: Any = pipeline._opened[index][runner.fleet.cpu]
        arrays = [values[t["name"]] for t in segment["inputs"]]
        if segment["device"] == "tpu":
            found.append(executable._idle[0]._interpreter.invoke)
        else:
            found.append(functools.partial(executable.run, arrays))
        values.update(pipeline.run_segment(index, values))
    return found


def measure(model: Path, tpus: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b"
        building.build(model, path, BuildOptions(partitioning=PartitionOptions(tpus, "throughput")))
        with Runner(Bundle.open(path), "cpu", threads=1) as runner:
            inputs, parts = random_inputs(runner.pipeline.inputs), bare(runner)
            for _ in range(20):
                runner.run(inputs)
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(seconds(lambda: runner.run(inputs)))
                theirs.append(sum(seconds(part) for part in parts))
            kinds = [s["device"] for s in runner.pipeline.segments]
            name = f"{model.stem}, {kinds.count('tpu')} + {kinds.count('host')} segments"
            show(name, ours, theirs)


def show(name: str, ours: list[float], theirs: list[float]) -> None:
    """Print the medians, and the least, which says more on a busy machine."""
    for what, of in (("median", np.median), ("least", np.min)):
        mine, bare_seconds = of(ours), of(theirs)
        print(
            f"{name}, {what}: {mine * 1e3:.3f} ms, bare {bare_seconds * 1e3:.3f} ms, "
            f"{(mine - bare_seconds) * 1e6:+.0f} us, {100 * (mine / bare_seconds - 1):+.1f}%"
        )


class Waiting(Device):
    """Each run takes 5 ms, without computing."""

    def open(self, folder: Path, segment: SegmentEntry) -> Executable:
        return self  # type: ignore[return-value]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        time.sleep(0.005)
        return arrays


def measure_parallel(count: int) -> None:
    """So many segments that read the same input, each on a device of its own."""
    segments = [schedules.segment(n, n, ["x"], [f"y{n}"], 5.0) for n in range(count)]
    bundle = schedules.bundle(segments, ["x"], [f"y{n}" for n in range(count)])
    fleet = Fleet([Waiting(f"waiting:{n}") for n in range(count)], Cpu(1))
    pipeline = Pipeline(bundle, fleet=fleet)
    executor = Executor(fleet)
    sample = {"x": np.zeros(schedules.SHAPE, np.int64)}
    alone = Waiting("alone")
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(seconds(lambda: executor.run(pipeline, sample)))
        theirs.append(seconds(lambda: alone.run([])))
    executor.close()
    show(f"{count} segments at once", ours, theirs)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure(dense(Path(folder) / "dense.onnx"), 1)
        measure(light.generate("squeezenet", Path(folder) / "squeezenet.onnx"), 1)
        measure(light.generate("resnet50", Path(folder) / "resnet50.onnx"), 8)
    measure_parallel(8)


if __name__ == "__main__":
    main()
