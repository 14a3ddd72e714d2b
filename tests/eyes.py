"""A detector and a classifier of colours, whose answers can be told from the picture by eye."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from PIL import Image

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions

SIDE = 32
CELL = 8
# A convolution that changes nothing, so that an Edge TPU has something to do.
SAME = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
LABELS = ["red", "green", "blue"]
PICTURE = {
    "input": "x",
    "layout": "NCHW",
    "size": [SIDE, SIDE],
    "colours": "RGB",
    "fit": "letterbox",
    "mean": [0.0],
    "std": [255.0],
}
HEAD = {"kind": "yolo", "output": "y", "rows": False, "objectness": False, "strides": []}
DETECT = {"picture": PICTURE, "task": "detect", "labels": LABELS, "head": HEAD}
CLASSIFY = {
    "picture": PICTURE,
    "task": "classify",
    "labels": LABELS[:2],  # blue has none
    "scores": "y",
    "softmax": True,
}


def detector() -> onnx.ModelProto:
    """Finds cells of 8 x 8 pixels: the score of a class is the mean of its colour in the cell."""
    count = SIDE // CELL
    rows, columns = np.mgrid[:count, :count]
    centres = np.stack([columns.reshape(-1), rows.reshape(-1)]) * CELL + CELL / 2
    boxes = np.concatenate([centres, np.full_like(centres, CELL)])[None].astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "same"], ["c"]),
        helper.make_node("AveragePool", ["c"], ["p"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        helper.make_node("Reshape", ["p", "shape"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]
    weights = {"boxes": boxes, "shape": np.array([1, 3, count * count]), "same": SAME}
    return _model(nodes, weights, (1, 7, count * count))


def classifier() -> onnx.ModelProto:
    """The logit of a class is ten times the mean of its colour."""
    nodes = [
        helper.make_node("Conv", ["x", "same"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Mul", ["f", "ten"], ["y"]),
    ]
    return _model(nodes, {"ten": np.float32(10), "same": SAME}, (1, 3))


def _model(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], shape: tuple[int, ...]
) -> onnx.ModelProto:
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "eyes",
        [helper.make_tensor_value_info("x", float32, (1, 3, SIDE, SIDE))],
        [helper.make_tensor_value_info("y", float32, shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def build(folder: Path, model: onnx.ModelProto, vision: dict[str, Any]) -> Path:
    """A bundle of the model that says how it takes pictures."""
    onnx.save(model, folder / "eyes.onnx")
    samples = np.random.default_rng(0).random((4, 1, 3, SIDE, SIDE), np.float32)
    samples[0] = 1
    np.savez(folder / "samples.npz", x=samples)
    options = BuildOptions(
        calibration=folder / "samples.npz", partitioning=PartitionOptions(tpus=2)
    )
    building.build(folder / "eyes.onnx", folder / "eyes.bundle", options)
    add_vision(folder / "eyes.bundle", vision)
    return folder / "eyes.bundle"


def add_vision(bundle: Path, vision: dict[str, Any] | None) -> None:
    """Change what a bundle says of pictures."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest.pop("vision", None)
    if vision is not None:
        manifest["vision"] = vision
    file.write_text(json.dumps(manifest))


def street() -> Image.Image:
    """128 x 64 pixels: a red square from (32, 0) to (64, 32), a greenish one from (96, 32) to
    (128, 64). Letterboxed to 32 x 32, four pixels become one, and they fill a cell each."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[0:32, 32:64, 0] = 255
    pixels[32:64, 96:128, 1] = 204
    return Image.fromarray(pixels)


RED_BOX = (32.0, 0.0, 64.0, 32.0)
GREEN_BOX = (96.0, 32.0, 128.0, 64.0)
