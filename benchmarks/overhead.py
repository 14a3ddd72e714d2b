"""What the runtime adds to its segments: `Runner.run` beside bare interpreters and sessions on the same arrays.

    python -m benchmarks.overhead

A bundle with one segment (a convolutional network, int8 in and out of one TFLite file) against Interpreter.invoke, and
a chain of eight segments against the sum of theirs. One thread, alternating, medians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler import build as building
from compiler.partition import Wishes
from compiler.runtime import Bundle, Runner
from compiler.runtime.interpreter import interpreter_module

ROUNDS, CHANNELS = 300, 64


def network(layers: int) -> onnx.ModelProto:
    """Convolutions 3x3 on [1, 64, 32, 32]: about a millisecond each."""
    rng = np.random.default_rng(0)
    weights, nodes = [], []
    for i in range(layers):
        w = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 24
        weights.append(numpy_helper.from_array(w, f"w{i}"))
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"], name=f"relu{i}"))
    shape = (1, CHANNELS, 32, 32)
    value = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def bare(runner: Runner) -> list[Callable[[], object]]:
    """For each segment, its interpreter's invoke or its session's run on arrays that it was given in the pipeline."""
    found: list[Callable[[], object]] = []
    pipeline = runner.pipeline
    values = pipeline.check_inputs(sample(runner))
    for index, segment in enumerate(pipeline.segments):
        arrays = [values[t["name"]] for t in segment["inputs"]]
        path = pipeline.bundle.path / segment["files"][0]["path"]
        if segment["device"] == "tpu":
            interpreter = interpreter_module().Interpreter(str(path), num_threads=1)
            interpreter.allocate_tensors()
            for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
                if array.dtype == np.int8:
                    interpreter.set_tensor(detail["index"], array)
            found.append(interpreter.invoke)
        else:
            session = pipeline._opened[index][1]  # type: ignore[index]
            found.append(lambda session=session, arrays=arrays: session.run(arrays))
        values.update(pipeline.run_segment(index, values))
    return found


def sample(runner: Runner) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {t["name"]: rng.standard_normal(t["shape"]).astype(t["dtype"]) for t in runner.pipeline.inputs}


def measure(layers: int, cuts: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder) / "m.onnx", Path(folder) / "b"
        onnx.save(network(layers), model)
        building.build(model, path, building.Options(wishes=Wishes(tpus=8, cuts=cuts)))
        with Runner(Bundle.open(path), "cpu", threads=1) as runner:
            inputs, parts = sample(runner), bare(runner)
            for _ in range(20):
                runner.run(inputs)
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(seconds(lambda: runner.run(inputs)))
                theirs.append(sum(seconds(part) for part in parts))
            mine, sums = np.median(ours), np.median(theirs)
            kinds = [s["device"] for s in runner.pipeline.segments]
            print(
                f"{len(kinds)} segments ({' '.join(kinds)}): {mine * 1e3:.3f} ms, bare {sums * 1e3:.3f} ms, "
                f"{(mine - sums) * 1e6:+.0f} us, {100 * (mine / sums - 1):+.1f}%"
            )


def main() -> None:
    measure(4, ())
    measure(8, tuple(f"relu{i}" for i in range(7)))


if __name__ == "__main__":
    main()
