"""What a plan counts as parameters is what the written segments hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler import BuildOptions, build
from compiler.device.tflite_file import read_operators
from compiler.ops import BUILTINS
from compiler.partition import PartitionOptions
from compiler.targets import Target, stored_bytes


def normalised_network(shifts: bool) -> onnx.ModelProto:
    """Conv, Relu, Mul and perhaps Add with constants per channel, Sigmoid, Conv without a bias."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((24, 3, 3, 3)).astype(np.float32) / 5,
        "b1": rng.standard_normal(24).astype(np.float32) / 5,
        "factor": rng.uniform(0.5, 2, (24, 1, 1)).astype(np.float32),
        "offset": rng.standard_normal((1, 24, 1, 1)).astype(np.float32),
        "w2": rng.standard_normal((70, 24, 1, 1)).astype(np.float32) / 5,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="first"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Mul", ["r", "factor"], ["m"], name="scale"),
        helper.make_node("Sigmoid", ["n" if shifts else "m"], ["s"], name="gate"),
        helper.make_node("Conv", ["s", "w2"], ["y"], name="last"),
    ]
    if shifts:
        nodes.insert(3, helper.make_node("Add", ["m", "offset"], ["n"], name="shift"))
    else:
        del weights["offset"]
    graph = helper.make_graph(
        nodes,
        "normalised",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, 18, 18))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 70, 16, 16))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("without", "streamed"), [((), 0), (("cache_constants",), 16 * 24)])
def test_segments_hold_what_was_counted(
    without: tuple[str, ...], streamed: int, tmp_path: Path
) -> None:
    """The constants of a Mul stream, unless they become a layer."""
    onnx.save(normalised_network(shifts=not without), tmp_path / "m.onnx")
    options = BuildOptions(without=without, partitioning=PartitionOptions(place="tpu"))
    bundle = build(tmp_path / "m.onnx", options, tmp_path / "b")
    target = Target.load()
    (segment,) = [s for s in bundle.manifest["segments"] if s["device"] == "tpu"]
    (file,) = segment["files"]
    layers = []
    for op in read_operators(bundle.path / file["path"]):
        layer = BUILTINS[op.builtin].layer(op)
        if layer is not None:
            layers.append(layer)
    assert len(layers) == 3
    assert layers[0].bias and layers[-1].bias
    assert sum(stored_bytes(layer, target) for layer in layers) == segment["parameter_bytes"]
    always = [layer for layer in layers if layer.is_streamed]
    assert sum(stored_bytes(layer, target) for layer in always) == streamed
    assert segment["streamed_bytes"] == streamed
