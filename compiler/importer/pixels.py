"""Inputs in another form than the file's: pixels instead of normalised floats, NHWC instead of
NCHW.

    x [1, 3, H, W]   ->   Transpose(DequantizeLinear(x [1, H, W, 3], scale, zero)) * factor + shift

The scale is that of the pixels where one holds for all channels; then no arithmetic is left where
the mean is a whole pixel. What is left, passes fold into the layers that read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from compiler.errors import OptionError
from compiler.graph import NCHW, NHWC, Builder, Names, Shape, is_current, shape_of

Layout = Literal["NCHW", "NHWC"]
PixelType = Literal["float32", "uint8", "int8"]

# Where an imported model keeps its `PixelInput`.
META = "edgetpu.pixels"
# Where a model keeps what takes up the normalisation of pixels: "scale", "convolution" or "layer".
NORMALISED = "edgetpu.normalised"
# What int8 is less than the pixel that it stands for.
INT8_SHIFT = 128
_TYPES = {
    "float32": ir.DataType.FLOAT,
    "uint8": ir.DataType.UINT8,
    "int8": ir.DataType.INT8,
}


@dataclass(frozen=True)
class PixelInput:
    """An input that takes `dtype` in `layout`, where the file takes (pixel - mean) / std as float
    in `file_layout`. int8 is the pixel less 128. A float32 input takes the file's own values."""

    name: str
    dtype: PixelType
    layout: Layout
    file_layout: Layout
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def changes_nothing(self) -> bool:
        return self.dtype == "float32" and self.layout == self.file_layout

    def file_order(self, shape: Shape) -> Shape:
        """A shape of the model's input in the order of axes that the file has."""
        if self.layout == self.file_layout:
            return shape
        order = NCHW if self.layout == "NHWC" else NHWC
        return tuple(shape[axis] for axis in order)

    def as_in_file(self, array: np.ndarray) -> np.ndarray:
        """What the file takes for an array of the model's input."""
        values = array
        if self.dtype != "float32":
            pixels = array.astype(np.float32)
            if self.dtype == "int8":
                pixels += INT8_SHIFT
            mean = _along_channels(self.mean, self.layout)
            values = (pixels - mean) / _along_channels(self.std, self.layout)
        if self.layout != self.file_layout:
            values = values.transpose(NCHW if self.layout == "NHWC" else NHWC)
        return np.ascontiguousarray(values)

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """What the model takes for an array that the file takes. Raises ValueError for floats that
        no pixels give by this mean and std."""
        values = array
        if self.layout != self.file_layout:
            values = values.transpose(NHWC if self.layout == "NHWC" else NCHW)
        if self.dtype == "float32":
            return np.ascontiguousarray(values)
        mean = _along_channels(self.mean, self.layout)
        pixels = np.rint(values * _along_channels(self.std, self.layout) + mean)
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
            lowest, highest = float(pixels.min()), float(pixels.max())
            raise ValueError(
                f"its values would be pixels from {lowest:g} to {highest:g}, not 0 to 255: "
                "give the mean and std that made them"
            )
        if self.dtype == "int8":
            pixels -= INT8_SHIFT
        return np.ascontiguousarray(pixels.astype(self.dtype))


def _along_channels(numbers: tuple[float, ...], layout: Layout) -> np.ndarray:
    shape = (1, 1, 1, -1) if layout == "NHWC" else (1, -1, 1, 1)
    return np.array(numbers, np.float32).reshape(shape)


def of(model: ir.Model) -> PixelInput | None:
    """The input of an imported model that has another form than in the file, if there is one."""
    found: PixelInput | None = model.meta.get(META)
    return found


def file_shapes(model: ir.Model) -> dict[str, Shape]:
    """The shapes of a model's inputs as its file takes them."""
    shapes = {str(value.name): shape_of(value) for value in model.graph.inputs}
    pixels = of(model)
    if pixels is not None:
        shapes[pixels.name] = pixels.file_order(shapes[pixels.name])
    return shapes


def as_in_file(model: ir.Model, sample: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A sample of a model as its file takes it."""
    pixels = of(model)
    if pixels is None:
        return dict(sample)
    return {**sample, pixels.name: pixels.as_in_file(sample[pixels.name])}


def take(model: ir.Model, pixels: PixelInput) -> None:
    """Give a model the form of its input that `pixels` says, in place. Raises OptionError for a
    model that keeps an old opset."""
    if pixels.changes_nothing:
        return
    if not is_current(model):
        name, given = "input", str(pixels.dtype)
        if pixels.dtype == "float32":
            name, given = "layout", pixels.layout.lower()
        raise OptionError(
            f"{given}: the model keeps its opset, in which its input stays as it is", name
        )
    graph = model.graph
    (index,) = [i for i, value in enumerate(graph.inputs) if value.name == pixels.name]
    old = graph.inputs[index]
    shape = shape_of(old)
    if pixels.layout != pixels.file_layout:
        order = NHWC if pixels.layout == "NHWC" else NCHW
        shape = tuple(shape[axis] for axis in order)
    old.name = Names(graph).fresh(f"{pixels.name}/normalised")
    new = ir.Value(
        name=pixels.name,
        type=ir.TensorType(_TYPES[pixels.dtype]),
        shape=ir.Shape(shape),
    )
    graph.inputs[index] = new
    _replace_input(model, old, new, pixels)
    model.meta[META] = pixels


def _replace_input(model: ir.Model, old: ir.Value, new: ir.Value, pixels: PixelInput) -> None:
    """Compute what was the input from the new one."""
    graph = model.graph
    # A builder works in front of a node: this one stands at the start and goes again.
    anchor = ir.node("Identity", [old], num_outputs=1)
    anchor.name = pixels.name
    anchor.outputs[0].name = f"{old.name}/anchor"
    graph.insert_before(graph[0], anchor)
    builder = Builder(model, Names(graph), anchor)
    values = new
    if pixels.dtype != "float32":
        values = _dequantized(builder, new, pixels)
    if pixels.layout != pixels.file_layout:
        values = builder.transpose(values, NCHW if pixels.layout == "NHWC" else NHWC)
    if pixels.dtype != "float32":
        dequantized = values
        values = _normalised(builder, dequantized, pixels)
        # Arithmetic goes into a convolution, or fold_pixels says otherwise.
        model.meta[NORMALISED] = "scale" if values is dequantized else "convolution"
    anchor.replace_input_with(0, None)
    graph.remove(anchor, safe=True)
    ir.convenience.replace_all_uses_with(old, values, replace_graph_outputs=True)


@contextmanager
def nudged(model: ir.Model, by: float) -> Iterator[None]:
    """Pixels are worth more by this share for the time being: what that changes shows how much the
    model amplifies rounding, which pixels themselves cannot show."""
    pixels = of(model)
    scale = None if pixels is None else model.graph.initializers.get(_scale_name(pixels.name))
    if scale is None or scale.const_value is None:
        yield
        return
    kept = scale.const_value
    scale.const_value = ir.tensor(kept.numpy() * np.float32(1 + by))
    try:
        yield
    finally:
        scale.const_value = kept


def _scale_name(name: str) -> str:
    return f"{name}/scale"


def zero_pixel(pixels: PixelInput) -> int:
    """The pixel that a zero of the dequantized input stands for: the mean, rounded."""
    return int(np.clip(np.rint(np.mean(pixels.mean)), 0, 255))


def _step(pixels: PixelInput) -> float:
    """What a step of one pixel is worth: 1 / std where all channels have the same, else 1."""
    sizes = {abs(number) for number in pixels.std}
    return float(np.float32(1 / sizes.pop())) if len(sizes) == 1 else 1.0


def _dequantized(builder: Builder, value: ir.Value, pixels: PixelInput) -> ir.Value:
    zero = zero_pixel(pixels)
    if pixels.dtype == "int8":
        zero_point: np.generic = np.int8(zero - INT8_SHIFT)
    else:
        zero_point = np.uint8(zero)
    scale = builder.scalar(_step(pixels), _scale_name(pixels.name))
    zero_value = builder.const(np.asarray(zero_point), f"{pixels.name}/zero_point")
    return builder.op("DequantizeLinear", [value, scale, zero_value])


def _normalised(builder: Builder, value: ir.Value, pixels: PixelInput) -> ir.Value:
    """What is left of (pixel - mean) / std behind the dequantization."""
    mean = np.array(pixels.mean, np.float64)
    std = np.array(pixels.std, np.float64)
    factor = 1 / (std * _step(pixels))
    shift = (zero_pixel(pixels) - mean) / std
    along = (1, -1, 1, 1) if pixels.file_layout == "NCHW" else (1, 1, 1, -1)
    if np.abs(factor - 1).max() > np.finfo(np.float32).eps:
        constant = factor.astype(np.float32).reshape(along)
        value = builder.op("Mul", [value, builder.const(constant, f"{pixels.name}/factor")])
    if np.any(shift):
        constant = shift.astype(np.float32).reshape(along)
        value = builder.op("Add", [value, builder.const(constant, f"{pixels.name}/shift")])
    return value
