"""Resize against onnxruntime on the untouched file, also where a coordinate is between two pixels
exactly."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.graph.reference import Reference
from tests.conftest import save

COORDINATES = (
    "asymmetric",
    "align_corners",
    "half_pixel",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
# With align_corners, 1.7 and 27 pixels put row 13 on 7.5; the others are plain or odd factors.
SCALES = (0.5, 1.7, 2.0, 2.3, 3.0)
SIZES = (8, 27, 31, 36)
SIDE = 16


def resizes() -> onnx.ModelProto:
    """Every combination as a node of its own; a scale or sizes, one of the two."""
    nodes, outputs, constants = [], [], []
    roi = np.array([0, 0, 0.1, 0.1, 1, 1, 0.8, 0.9], np.float32)
    constants.append(numpy_helper.from_array(roi, "roi"))
    for scale in SCALES:
        array = np.array([1, 1, scale, scale], np.float32)
        constants.append(numpy_helper.from_array(array, f"scale{scale}"))
    for size in SIZES:
        constants.append(numpy_helper.from_array(np.array([1, 1, size, size]), f"size{size}"))
    for coordinates, rounding, number in product(COORDINATES, ROUNDINGS, SCALES + SIZES):
        name = f"{coordinates}/{rounding}/{number}"
        given = ["", f"size{number}"] if number in SIZES else [f"scale{number}"]
        node = helper.make_node(
            "Resize",
            ["x", "roi", *given],
            [name],
            name=name,
            mode="nearest",
            coordinate_transformation_mode=coordinates,
            nearest_mode=rounding,
        )
        side = int(number) if number in SIZES else int(np.float32(number) * SIDE)
        nodes.append(node)
        outputs.append(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 1, side, side))
        )
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 1, SIDE, SIDE))
    graph = helper.make_graph(nodes, "resizes", [x], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_lowering_takes_the_pixels_of_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", resizes())
    x = np.arange(SIDE * SIDE, dtype=np.float32).reshape(1, 1, SIDE, SIDE)
    session = ort.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    wanted = dict(zip(names, session.run(None, {"x": x}), strict=True))
    model = building.read(path, BuildOptions())
    building.rewrite(model, BuildOptions())
    lowered = [node for node in model.graph if node.op_type == "Resize2D"]
    assert len(lowered) > 20
    with Reference(model) as reference:
        found = reference.run({"x": x})
    wrong = [name for name in names if not np.array_equal(found[name], wanted[name])]
    assert not wrong


def test_a_tie_stays_as_the_user_wrote_it(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", resizes())
    model = building.read(path, BuildOptions())
    building.rewrite(model, BuildOptions())
    kept = {str(node.name) for node in model.graph if node.op_type == "Resize"}
    assert "align_corners/round_prefer_floor/1.7" in kept
    assert "align_corners/round_prefer_floor/27" in kept
    assert "asymmetric/floor/2.0" not in kept
