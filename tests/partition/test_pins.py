"""Pins by the names of the user's file, whatever the passes made of the nodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import OptionError
from compiler.graph import origin_of


def network(path: Path) -> Path:
    """Two blocks of Conv, BatchNormalization and Relu."""
    rng = np.random.default_rng(0)
    nodes = []
    weights = []
    value = "x"
    for block in (1, 2):
        arrays = {f"w{block}": rng.standard_normal((4, 4, 3, 3)) / 6}
        for name in ("scale", "shift", "mean", "variance"):
            arrays[f"{name}{block}"] = rng.random(4) + 0.5
        weights += [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
        _, *normal = arrays
        nodes += [
            helper.make_node("Conv", [value, f"w{block}"], [f"c{block}"], f"block{block}/conv"),
            helper.make_node(
                "BatchNormalization", [f"c{block}", *normal], [f"b{block}"], f"block{block}/norm"
            ),
            helper.make_node("Relu", [f"b{block}"], [f"r{block}"], f"block{block}/act"),
        ]
        value = f"r{block}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 16, 16])]
    outputs = [helper.make_tensor_value_info("r2", TensorProto.FLOAT, [1, 4, 12, 12])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def planned(path: Path, pins: dict[str, str]) -> dict[str, str]:
    """The device of each convolution of the plan, by its name in the file."""
    options = BuildOptions(partitioning=compiler.PartitionOptions(pins=pins))
    model = building.read(path, options)
    program = building.plan_program(model, options)
    devices = {}
    for segment in program.plan.segments:
        for node in segment.nodes:
            if node.op_type in ("Conv", "Conv2D"):
                devices[origin_of(node)] = segment.device
    return devices


def test_a_name_that_was_folded_into_another_pins_that(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    for name in ("block2/conv", "block2/norm"):
        devices = planned(path, {name: "host"})
        assert devices == {"block1/conv": "tpu", "block2/conv": "host"}


def test_the_closest_names_are_given(tmp_path: Path) -> None:
    path = network(tmp_path / "m.onnx")
    with pytest.raises(OptionError, match="closest are 'block2/conv'"):
        planned(path, {"block2/cnv": "host"})
    with pytest.raises(OptionError, match=r"closest are .*'block1/norm'"):
        planned(path, {"norm": "host"})
