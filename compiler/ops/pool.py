"""Pooling: AVERAGE_POOL_2D, MAX_POOL_2D, and MEAN and REDUCE_MAX for the global ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    NCHW,
    NHWC,
    Builder,
    Shape,
    attribute_of,
    input_at,
    scalar_of,
    shape_of,
)
from compiler.ops.common import Moves, Operator, RefuseError, same_channels, same_scale
from compiler.ops.rules import NO_FUSED_ACTIVATION, Builtin
from compiler.ops.window import (
    CHANNELS_LAST,
    NO_PADS,
    Window,
    can_pad,
    from_image,
    to_image,
    window_of,
    zero_padded,
)
from compiler.ops.writer import Writer

# A padded image may be this many times larger; beyond, the padding is the work.
LARGEST_PADDING = 4

# Operators whose result is never negative, so that padding it with zero does not change a maximum.
_NON_NEGATIVE = {"Relu", "Sigmoid", "Softmax"}
# Operators whose result is not negative where their inputs are not.
_KEEPS_SIGN = {"MaxPool", "AveragePool", "Concat", "LRN", "Transpose"}


def _declared_window(node: ir.Node, image: ir.Value) -> Window:
    """The window with the pads that the node declares, or that auto_pad stands for."""
    _, height, width, _ = shape_of(image)
    kernel = tuple(attribute_of(node, "kernel_shape"))
    if len(kernel) == 1:
        kernel = (1, *kernel)
    return window_of(node, height, width, kernel)


def _window(node: ir.Node, image: ir.Value) -> Window:
    """The window over an NHWC image, its pads extended to what ceil_mode asks for."""
    sizes = shape_of(image)[1:3]
    window = _declared_window(node, image)
    if set(window.dilations) != {1}:
        raise RefuseError(
            f"its dilations are {list(window.dilations)}; pooling on the Edge TPU has none"
        )
    outputs = shape_of(node.outputs[0])[2:]
    if len(outputs) == 1:
        # The rows are the samples of a batch.
        outputs = (sizes[0], *outputs)
    top, left, bottom, right = window.pads
    before = (top, left)
    after = [bottom, right]
    covers = []
    for axis, size in enumerate(sizes):
        kernel = window.kernel[axis]
        # Where the last window ends; ceil_mode lets it end behind the image.
        reach = (outputs[axis] - 1) * window.strides[axis] + kernel
        after[axis] = max(after[axis], reach - size - before[axis])
        covers.append(outputs[axis] == 1 and kernel - before[axis] >= size)
    if all(covers) and not _counts_padding(node):
        # One window over the whole image: without its pads it pools the same pixels.
        return Window((sizes[0], sizes[1]), window.strides, window.dilations, NO_PADS)
    return replace(window, pads=(top, left, after[0], after[1]))


def _counts_padding(node: ir.Node) -> bool:
    """Whether an average divides by padding too; what ceil_mode adds never counts."""
    if not attribute_of(node, "count_include_pad", 0):
        return False
    has_pads = any(attribute_of(node, "pads", (0,)))
    is_same = bool(attribute_of(node, "auto_pad", "NOTSET").startswith("SAME"))
    return has_pads or is_same


def _attributes(window: Window) -> dict[str, tuple[int, ...]]:
    return {"kernel_shape": window.kernel, "strides": window.strides, "pads": window.pads}


def _padded(builder: Builder, image: ir.Value, window: Window) -> tuple[ir.Value, Window]:
    """An NHWC image with zeros around it, and the window without pads."""
    top, left, bottom, right = window.pads
    _, height, width, _ = shape_of(image)
    if (height + top + bottom) * (width + left + right) > LARGEST_PADDING * height * width:
        raise RefuseError(f"its padding {list(window.pads)} is many times its image")
    return zero_padded(builder, image, window)


def _is_never_negative(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Clip":
        low = scalar_of(input_at(node, 1))
        return low is not None and low >= 0
    if node.op_type in _KEEPS_SIGN:
        return all(map(_is_never_negative, node.inputs))
    return node.op_type in _NON_NEGATIVE


def lower_max(node: ir.Node, builder: Builder) -> None:
    """MAX_POOL_2D pads with the lowest value; other padding is with zeros, which must not win."""
    (x,) = node.inputs
    assert x is not None
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise RefuseError("its indices are used; MAX_POOL_2D gives none")
    image = to_image(builder, x)
    window = _window(node, image)
    if not can_pad(window, image):
        # Zeros around would be larger than negative values.
        if not _is_never_negative(x):
            raise RefuseError(
                f"its padding {list(window.pads)} is not SAME and its input may be negative"
            )
        image, window = _padded(builder, image, window)
    y = builder.op("MaxPool2D", [image], _attributes(window), DIALECT)
    builder.replace(from_image(builder, y, len(shape_of(x))), *list(node.outputs)[1:])


def lower_average(node: ir.Node, builder: Builder) -> None:
    """AVERAGE_POOL_2D divides by the pixels inside the image. Other padding is with zeros, and a
    product makes up for what each output pixel is to be divided by."""
    (x,) = node.inputs
    assert x is not None
    image = to_image(builder, x)
    shape = shape_of(image)
    window = _window(node, image)
    counts_padding = _counts_padding(node)
    counted = _declared_window(node, image).pads if counts_padding else NO_PADS
    is_tflite = not counts_padding and can_pad(window, image)
    if not any(window.pads) or is_tflite:
        y = builder.op("AveragePool2D", [image], _attributes(window), DIALECT)
    else:
        shares = _window_shares(shape, window, counted)
        image, plain = _padded(builder, image, window)
        y = builder.op("AveragePool2D", [image], _attributes(plain), DIALECT)
        if not np.all(shares == 1):
            y = builder.op("Mul", [y, builder.const(shares, "window_share")])
    builder.replace(from_image(builder, y, len(shape_of(x))))


def _window_shares(shape: Shape, window: Window, counted: Sequence[int]) -> np.ndarray:
    """Kernel area over the pixels that ONNX divides by, per output pixel [1, H, W, 1].

    `shape` is that of the NHWC image, `counted` the pads (top, left, bottom, right) whose pixels
    count.
    """
    shares = []
    for axis in range(2):
        size = shape[1 + axis]
        kernel, stride = window.kernel[axis], window.strides[axis]
        before, after = window.pads[axis], window.pads[axis + 2]
        outputs = (size + before + after - kernel) // stride + 1
        begins = np.arange(outputs) * stride - before
        first = np.maximum(begins, -counted[axis])
        last = np.minimum(begins + kernel, size + counted[axis + 2])
        shares.append(kernel / (last - first))
    return np.outer(*shares).astype(np.float32)[None, :, :, None]


def lower_global(node: ir.Node, builder: Builder) -> None:
    """A reduction over all axes behind the channels, which go last in signals and images."""
    (x,) = node.inputs
    assert x is not None
    rank = len(shape_of(x))
    op_type = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[node.op_type]
    if rank not in (3, 4):
        axes = builder.const(np.arange(2, rank, dtype=np.int64), "axes")
        builder.replace(builder.op(op_type, [x, axes], {"keepdims": 1}))
        return
    perm = NHWC if rank == 4 else CHANNELS_LAST
    back = NCHW if rank == 4 else CHANNELS_LAST
    axes = builder.const(np.arange(1, rank - 1, dtype=np.int64), "axes")
    y = builder.op(op_type, [builder.transpose(x, perm), axes], {"keepdims": 1})
    builder.replace(builder.transpose(y, back))


def emit_average(node: ir.Node, writer: Writer) -> None:
    _emit(node, writer, "AVERAGE_POOL_2D")


def emit_max(node: ir.Node, writer: Writer) -> None:
    _emit(node, writer, "MAX_POOL_2D")


def _emit(node: ir.Node, writer: Writer, name: str) -> None:
    kernel = attribute_of(node, "kernel_shape")
    strides = attribute_of(node, "strides")
    options = {
        "padding": writer.padding(attribute_of(node, "pads")),
        "strideH": strides[0],
        "strideW": strides[1],
        "filterHeight": kernel[0],
        "filterWidth": kernel[1],
        "fusedActivationFunction": 0,
    }
    writer.add(name, 2, [writer.tensor(node.inputs[0])], [writer.tensor(node.outputs[0])], options)


BUILTINS = (
    Builtin("MAX_POOL_2D", 2, (NO_FUSED_ACTIVATION,), table="Pool2DOptions"),
    Builtin("AVERAGE_POOL_2D", 2, (NO_FUSED_ACTIVATION,), table="Pool2DOptions"),
)

OPERATORS = (
    Operator("MaxPool", lower=lower_max),
    Operator("AveragePool", lower=lower_average),
    Operator("GlobalAveragePool", lower=lower_global),
    Operator("GlobalMaxPool", lower=lower_global),
    Operator(
        "MaxPool2D",
        DIALECT,
        body="""
    MaxPool2D <kernel_shape, strides, pads> (x) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        pool = MaxPool <kernel_shape: ints = @kernel_shape, strides: ints = @strides,
                        pads: ints = @pads> (nchw)
        y = Transpose <perm = [0, 2, 3, 1]> (pool)
    }""",
        scales=same_scale,
        emit=emit_max,
        ties=same_channels,
        moves=Moves.VALUES,
    ),
    Operator(
        "AveragePool2D",
        DIALECT,
        body="""
    AveragePool2D <kernel_shape, strides, pads> (x) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        pool = AveragePool <kernel_shape: ints = @kernel_shape, strides: ints = @strides,
                            pads: ints = @pads> (nchw)
        y = Transpose <perm = [0, 2, 3, 1]> (pool)
    }""",
        scales=same_scale,
        emit=emit_average,
        ties=same_channels,
    ),
)
