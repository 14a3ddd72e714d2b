"""Resize of images: RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR.

ONNX has many coordinate rules, TFLite three per operator. A node is taken where every source
coordinate of one of TFLite's rules is the one that ONNX asks for; the dialect's Resize2D then names
that rule.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    attribute_of,
    axis_of,
    constant_of,
    input_at,
    shape_of,
    to_nchw,
    to_nhwc,
)
from compiler.ops.common import Operator, RefuseError, same_channels, same_scale
from compiler.ops.rules import Builtin, OpInfo, Rule
from compiler.ops.writer import Writer
from compiler.targets import Target

# (align_corners, half_pixel_centers) as ONNX's (coordinate mode, rounding of nearest), plainest
# first: half pixels need operator version 3.
_RULES = {
    (False, False): ("asymmetric", "floor"),
    (True, False): ("align_corners", "round_prefer_ceil"),
    (False, True): ("half_pixel", "round_prefer_ceil"),
}


def onnx_coordinates(mode: str, size: int, new: int, scale: float) -> np.ndarray:
    """Source coordinate of each output pixel; ONNX operator Resize, coordinate_transformation_mode."""
    i = np.arange(new, dtype=np.float64)
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return i * (size - 1) / (new - 1) if new > 1 else i * 0
    if mode == "pytorch_half_pixel" and new == 1:
        return i * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        adjust = new / (scale * size)
        center = size / 2
        return center * (1 - adjust) + (i + 0.5) / scale - 0.5
    raise RefuseError(f"its coordinate mode is {mode}")


def tflite_coordinates(rule: tuple[bool, bool], size: int, new: int) -> np.ndarray:
    align, half = rule
    i = np.arange(new, dtype=np.float64)
    scale = (size - 1) / (new - 1) if align and new > 1 else size / new
    return (i + 0.5) * scale - 0.5 if half else i * scale


def onnx_nearest(mode: str, coordinates: np.ndarray, size: int) -> np.ndarray:
    rounded = {
        "round_prefer_floor": np.ceil(coordinates - 0.5),
        "round_prefer_ceil": np.floor(coordinates + 0.5),
        "floor": np.floor(coordinates),
        "ceil": np.ceil(coordinates),
    }[mode]
    return np.clip(rounded, 0, size - 1)


def tflite_nearest(rule: tuple[bool, bool], size: int, new: int) -> np.ndarray:
    align, half = rule
    scale = (size - 1) / (new - 1) if align and new > 1 else size / new
    position = (np.arange(new) + (0.5 if half else 0.0)) * scale
    return np.minimum(np.floor(position + 0.5) if align else np.floor(position), size - 1)


def matching_rule(node: ir.Node) -> tuple[bool, bool] | None:
    """TFLite's rule under which every pixel of an NCHW image comes from where ONNX takes it."""
    x, y = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    mode = attribute_of(node, "coordinate_transformation_mode", "half_pixel")
    scales = _scales(node)
    for rule in _RULES:
        if all(_same(node, mode, rule, (x[a], y[a], scales[a])) for a in (2, 3)):
            return rule
    return None


def _same(node: ir.Node, mode: str, rule: tuple[bool, bool], axis: tuple[int, int, float]) -> bool:
    size, new, scale = axis
    coordinates = onnx_coordinates(mode, size, new, scale)
    if attribute_of(node, "mode", "nearest") == "nearest":
        rounding = attribute_of(node, "nearest_mode", "round_prefer_floor")
        return np.array_equal(
            onnx_nearest(rounding, coordinates, size), tflite_nearest(rule, size, new)
        )
    theirs = tflite_coordinates(rule, size, new)
    return bool(
        np.allclose(np.clip(coordinates, 0, size - 1), np.clip(theirs, 0, size - 1), atol=1e-5)
    )


def _scales(node: ir.Node) -> list[float]:
    """The scale along each axis."""
    x, y = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    found = [new / size for size, new in zip(x, y, strict=True)]
    given = constant_of(input_at(node, 2))
    if given is not None and given.size:
        axes = attribute_of(node, "axes") or range(len(x))
        for axis, scale in zip(axes, given, strict=True):
            found[axis_of(axis, len(x))] = float(scale)
    return found


def lower(node: ir.Node, b: Builder) -> None:
    """An NCHW image resized in height and width, as NHWC."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    shape, new = shape_of(x), shape_of(y)
    if len(shape) != 4 or shape[:2] != new[:2]:
        raise RefuseError("it does not resize the height and width of an image")
    if attribute_of(node, "mode", "nearest") not in ("nearest", "linear"):
        raise RefuseError(
            f"its mode is {attribute_of(node, 'mode')}; the Edge TPU has nearest and linear"
        )
    if attribute_of(node, "antialias", 0) or attribute_of(node, "exclude_outside", 0):
        raise RefuseError("it smooths or excludes the border; the Edge TPU does not")
    rule = matching_rule(node)
    if rule is None:
        mode = attribute_of(node, "coordinate_transformation_mode", "half_pixel")
        raise RefuseError(
            f"TFLite has no resize with the coordinates of '{mode}' from {shape[2:]} to {new[2:]}"
        )
    coordinates, rounding = _RULES[rule]
    attributes = {
        "mode": attribute_of(node, "mode", "nearest"),
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": rounding,
    }
    sizes = b.const(np.array(new, np.int64), "sizes")
    b.replace(to_nchw(b, b.op("Resize2D", [to_nhwc(b, x), sizes], attributes, DIALECT)))


def emit(node: ir.Node, w: Writer) -> None:
    y = node.outputs[0]
    found = attribute_of(node, "coordinate_transformation_mode")
    align, half = next(rule for rule, (coordinates, _) in _RULES.items() if coordinates == found)
    linear = attribute_of(node, "mode") == "linear"
    name = "RESIZE_BILINEAR" if linear else "RESIZE_NEAREST_NEIGHBOR"
    inputs = [w.tensor(node.inputs[0]), w.ints(shape_of(y)[1:3])]
    w.add(
        name,
        3 if half else 2,
        inputs,
        [w.tensor(y)],
        {"alignCorners": align, "halfPixelCenters": half},
    )


def _one_pixel(op: OpInfo, target: Target) -> str | None:
    image = op.inputs[0]
    return (
        f"it is {list(image.shape)}" if image is not None and image.shape[1:3] == (1, 1) else None
    )


_PIXELS = Rule(
    "the image is larger than one pixel",
    _one_pixel,
    "measured",
    "deeplabv3 of google-coral test_data",
)

BUILTINS = (Builtin("RESIZE_BILINEAR", 3, (_PIXELS,)), Builtin("RESIZE_NEAREST_NEIGHBOR", 3))

OPERATORS = (
    Operator("Resize", lower=lower),
    Operator("Resize2D", DIALECT, scales=same_scale, emit=emit, ties=same_channels),
)
