"""Resize of images: RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR.

ONNX has many rules for coordinates, TFLite three per operator. A node is taken where one of
TFLite's rules gives every source coordinate that ONNX asks for; the dialect's Resize2D then names
that rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

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
from compiler.ops.rules import Builtin, OpInfo, Rule, example, integers
from compiler.ops.writer import Writer
from compiler.targets import Target


@dataclass(frozen=True)
class _Rule:
    """Options of TFLite, and what ONNX calls their coordinates and their rounding of nearest."""

    align_corners: bool
    half_pixel_centers: bool
    coordinates: str
    rounding: str


# Plainest first: half pixels need operator version 3.
_RULES = (
    _Rule(False, False, "asymmetric", "floor"),
    _Rule(True, False, "align_corners", "round_prefer_ceil"),
    _Rule(False, True, "half_pixel", "round_prefer_ceil"),
)


@dataclass(frozen=True)
class _Axis:
    """One axis of a resize: pixels before and after, and ONNX's scale, which need not be their
    quotient."""

    size: int
    new: int
    scale: float


def onnx_coordinates(
    mode: str, size: int, new: int, scale: float, dtype: DTypeLike = np.float64
) -> np.ndarray:
    """Source coordinate of each of `new` pixels, computed in `dtype`.

    From ONNX's operator Resize, attribute coordinate_transformation_mode. Raises RefuseError for
    other modes.
    """
    i = np.arange(new, dtype=dtype)
    half = i.dtype.type(0.5)
    step = i.dtype.type(scale)
    if mode == "asymmetric":
        return np.asarray(i / step)
    if mode == "align_corners":
        return i * (size - 1) / (new - 1) if new > 1 else i * 0
    if mode == "pytorch_half_pixel" and new == 1:
        return i * 0
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return np.asarray((i + half) / step - half)
    if mode == "half_pixel_symmetric":
        adjust = i.dtype.type(new / (scale * size))
        center = i.dtype.type(size / 2)
        return np.asarray(center * (1 - adjust) + (i + half) / step - half)
    raise RefuseError(f"its coordinate mode is {mode}")


def onnx_nearest(mode: str, coordinates: np.ndarray, size: int) -> np.ndarray:
    """The pixel next to each source coordinate, by ONNX's attribute nearest_mode."""
    # In float32 the halves below would be rounded a second time.
    coordinates = coordinates.astype(np.float64)
    rounded: np.ndarray = {
        "round_prefer_floor": np.ceil(coordinates - 0.5),
        "round_prefer_ceil": np.floor(coordinates + 0.5),
        "floor": np.floor(coordinates),
        "ceil": np.ceil(coordinates),
    }[mode]
    return rounded.clip(0, size - 1)


def tflite_coordinates(rule: _Rule, size: int, new: int) -> np.ndarray:
    """Source coordinate of each of `new` pixels (TensorFlow Lite's resize_bilinear.h)."""
    i = np.arange(new, dtype=np.float64)
    scale = _tflite_scale(rule, size, new)
    return (i + 0.5) * scale - 0.5 if rule.half_pixel_centers else i * scale


def tflite_nearest(rule: _Rule, size: int, new: int, dtype: DTypeLike = np.float64) -> np.ndarray:
    """The pixel that each of `new` pixels is, by coordinates computed in `dtype` (TensorFlow Lite's
    resize_nearest_neighbor.h)."""
    i = np.arange(new, dtype=dtype)
    offset = i.dtype.type(0.5 if rule.half_pixel_centers else 0.0)
    position = (i + offset) * i.dtype.type(_tflite_scale(rule, size, new))
    position = position.astype(np.float64)
    pixels: np.ndarray = np.floor(position + 0.5 if rule.align_corners else position)
    return pixels.clip(max=size - 1)


def _tflite_scale(rule: _Rule, size: int, new: int) -> float:
    """Pixels of the source per pixel of the result."""
    if rule.align_corners and new > 1:
        return (size - 1) / (new - 1)
    return size / new


def _matching_rule(node: ir.Node) -> _Rule | None:
    """TFLite's rule under which every pixel of an NCHW image comes from where ONNX takes it."""
    old, new = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    scales = _scales(node)
    height = _Axis(old[2], new[2], scales[2])
    width = _Axis(old[3], new[3], scales[3])
    for rule in _RULES:
        if _is_same(node, rule, height) and _is_same(node, rule, width):
            return rule
    return None


def _is_same(node: ir.Node, rule: _Rule, axis: _Axis) -> bool:
    if _mode(node) == "nearest":
        return _takes_same_pixels(node, rule, axis)
    last = axis.size - 1
    wanted = onnx_coordinates(_coordinate_mode(node), axis.size, axis.new, axis.scale)
    # Both repeat the pixels at the border beyond it.
    theirs = tflite_coordinates(rule, axis.size, axis.new)
    return bool(np.allclose(np.clip(wanted, 0, last), np.clip(theirs, 0, last), atol=1e-5))


def _takes_same_pixels(node: ir.Node, rule: _Rule, axis: _Axis) -> bool:
    """Whether nearest takes the same pixels by the node, by TFLite, and by the body of Resize2D,
    whose rounding and scale are the rule's.

    Where a coordinate lies between two pixels, such as 7.5, their formulas may fall to different
    sides, and each of them elsewhere in float32, which onnxruntime and TFLite compute in, than in
    float64. So all must agree in both.
    """
    size, new = axis.size, axis.new
    rounding = attribute_of(node, "nearest_mode", "round_prefer_floor")
    ways = []
    for dtype in (np.float32, np.float64):
        wanted = onnx_coordinates(_coordinate_mode(node), size, new, axis.scale, dtype)
        ways.append(onnx_nearest(rounding, wanted, size))
        body = onnx_coordinates(rule.coordinates, size, new, new / size, dtype)
        ways.append(onnx_nearest(rule.rounding, body, size))
        ways.append(tflite_nearest(rule, size, new, dtype))
    return all(np.array_equal(ways[0], way) for way in ways)


def _mode(node: ir.Node) -> str:
    return str(attribute_of(node, "mode", "nearest"))


def _coordinate_mode(node: ir.Node) -> str:
    return str(attribute_of(node, "coordinate_transformation_mode", "half_pixel"))


def _scales(node: ir.Node) -> list[float]:
    """The scale along each axis."""
    old, new = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    found = [after / before for before, after in zip(old, new, strict=True)]
    given = constant_of(input_at(node, 2))
    if given is not None and given.size:
        axes = attribute_of(node, "axes") or range(len(old))
        for axis, scale in zip(axes, given, strict=True):
            found[axis_of(axis, len(old))] = float(scale)
    return found


def lower(node: ir.Node, builder: Builder) -> None:
    """An NCHW image resized in height and width, as NHWC."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    old, new = shape_of(x), shape_of(y)
    if len(old) != 4 or old[:2] != new[:2]:
        raise RefuseError("it does not resize the height and width of an image")
    mode = _mode(node)
    if mode not in ("nearest", "linear"):
        raise RefuseError(f"its mode is {mode}; the Edge TPU has nearest and linear")
    if attribute_of(node, "antialias", 0) or attribute_of(node, "exclude_outside", 0):
        raise RefuseError("it smooths or excludes the border; the Edge TPU does not")
    if attribute_of(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise RefuseError("its scale follows from its policy for the aspect ratio, not its sizes")
    rule = _matching_rule(node)
    if rule is None:
        coordinates = _coordinate_mode(node)
        raise RefuseError(
            f"TFLite has no resize with the coordinates of '{coordinates}' "
            f"from {old[2:]} to {new[2:]}"
        )
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": rule.coordinates,
        "nearest_mode": rule.rounding,
    }
    sizes = builder.const(np.array(new, np.int64), "sizes")
    resized = builder.op("Resize2D", [to_nhwc(builder, x), sizes], attributes, DIALECT)
    builder.replace(to_nchw(builder, resized))


def emit(node: ir.Node, writer: Writer) -> None:
    y = node.outputs[0]
    found = attribute_of(node, "coordinate_transformation_mode")
    rule = next(rule for rule in _RULES if rule.coordinates == found)
    name = "RESIZE_BILINEAR" if _mode(node) == "linear" else "RESIZE_NEAREST_NEIGHBOR"
    version = 3 if rule.half_pixel_centers else 2
    inputs = [writer.tensor(node.inputs[0]), writer.ints(shape_of(y)[1:3])]
    options = {
        "alignCorners": rule.align_corners,
        "halfPixelCenters": rule.half_pixel_centers,
    }
    writer.add(name, version, inputs, [writer.tensor(y)], options)


def _one_pixel(op: OpInfo, target: Target) -> str | None:
    image = op.inputs[0]
    if image is None or image.shape[1:3] != (1, 1):
        return None
    return f"it is {list(image.shape)}"


def _elements(op: OpInfo, target: Target) -> str | None:
    count = max(tensor.elements for tensor in op.activations)
    is_large = count > target.interpolated_elements
    return f"its larger image has {count:,}" if is_large else None


def _example(x: tuple[int, ...], *y: int) -> OpInfo:
    return example("RESIZE_BILINEAR", x, integers(*y[1:3]), y)


_BILINEAR_RULES = (
    Rule(
        "the image is larger than one pixel",
        _one_pixel,
        "measured",
        accepts=_example((1, 24, 24, 24), 1, 48, 48, 24),
        refuses=_example((1, 1, 1, 256), 1, 33, 33, 256),
        source="movenet and deeplabv3 of google-coral test_data",
    ),
    Rule(
        "its images have at most 524,288 elements (that many were mapped, 5,000,211 were not)",
        _elements,
        "measured",
        accepts=_example((1, 64, 64, 32), 1, 128, 128, 32),
        refuses=_example((1, 33, 33, 19), 1, 513, 513, 19),
        source="issue 31 of google-coral/edgetpu; deeplab cityscapes of google-coral test_data",
    ),
)

BUILTINS = (Builtin("RESIZE_BILINEAR", 3, _BILINEAR_RULES), Builtin("RESIZE_NEAREST_NEIGHBOR", 3))

OPERATORS = (
    Operator("Resize", lower=lower),
    Operator(
        "Resize2D",
        DIALECT,
        body="""
    Resize2D <mode, coordinate_transformation_mode, nearest_mode> (x, sizes) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        resized = Resize <mode: string = @mode, nearest_mode: string = @nearest_mode,
            coordinate_transformation_mode: string = @coordinate_transformation_mode>
            (nchw, , , sizes)
        y = Transpose <perm = [0, 2, 3, 1]> (resized)
    }""",
        scales=same_scale,
        emit=emit,
        ties=same_channels,
    ),
)
