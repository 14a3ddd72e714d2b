"""Pooling: AVERAGE_POOL_2D, MAX_POOL_2D, and MEAN and REDUCE_MAX for the global ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    Shape,
    attribute_of,
    input_at,
    scalar_of,
    shape_of,
    to_nchw,
    to_nhwc,
)
from compiler.ops.common import Operator, RefuseError, same_channels, same_scale
from compiler.ops.conv import Window, image, tflite_pads, unimage, window, zero_padded
from compiler.ops.rules import NO_FUSED_ACTIVATION, Builtin
from compiler.ops.writer import Writer

# A padded image may be this many times larger; beyond, the padding is the work.
LARGEST_PADDING = 4

# Operators whose result is never negative, so that padding it with zero does not change a maximum.
_NON_NEGATIVE = {"Relu", "Sigmoid", "Softmax", "Clip"}


def _declared(node: ir.Node, nhwc: ir.Value) -> Window:
    """The pooling window with the pads that the node declares, or that auto_pad stands for."""
    _, height, width, _ = shape_of(nhwc)
    kernel = tuple(attribute_of(node, "kernel_shape"))
    return window(node, height, width, kernel if len(kernel) == 2 else (1, *kernel))


def _window(node: ir.Node, nhwc: ir.Value) -> Window:
    """The pooling window, its pads extended to what ceil_mode asks for."""
    _, height, width, _ = shape_of(nhwc)
    win = _declared(node, nhwc)
    if set(win.dilations) != {1}:
        raise RefuseError(
            f"its dilations are {list(win.dilations)}; pooling on the Edge TPU has none"
        )
    out = shape_of(node.outputs[0])[2:]
    out = out if len(out) == 2 else (1, *out)
    pads = list(win.pads)
    for axis, size in enumerate((height, width)):
        reach = (out[axis] - 1) * win.strides[axis] + win.kernel[axis]
        pads[axis + 2] = max(pads[axis + 2], reach - size - pads[axis])
    made = Window(win.kernel, win.strides, win.dilations, (pads[0], pads[1], pads[2], pads[3]))
    covers = all(
        o == 1 and k - p >= s
        for o, k, p, s in zip(out, win.kernel, pads[:2], (height, width), strict=True)
    )
    if covers and not _counts_padding(node):
        return Window((height, width), win.strides, win.dilations, (0, 0, 0, 0))
    return made


def _counts_padding(node: ir.Node) -> bool:
    """Whether an average divides by padding too; what ceil_mode adds never counts."""
    padded = any(attribute_of(node, "pads", (0,))) or attribute_of(
        node, "auto_pad", "NOTSET"
    ).startswith("SAME")
    return bool(attribute_of(node, "count_include_pad", 0)) and padded


def _attributes(win: Window) -> dict[str, tuple[int, ...]]:
    return {"kernel_shape": win.kernel, "strides": win.strides, "pads": win.pads}


def _zero_padded(b: Builder, x: ir.Value, win: Window) -> tuple[ir.Value, Window]:
    top, left, bottom, right = win.pads
    _, height, width, _ = shape_of(x)
    if (height + top + bottom) * (width + left + right) > LARGEST_PADDING * height * width:
        raise RefuseError(f"its padding {list(win.pads)} is many times its image")
    return zero_padded(b, x, win)


def _never_negative(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type == "Clip":
        low = scalar_of(input_at(node, 1))
        return low is not None and low >= 0
    if node.op_type in ("MaxPool", "AveragePool", "Concat", "LRN", "Transpose"):
        return all(_never_negative(v) for v in node.inputs)
    return node.op_type in _NON_NEGATIVE


def lower_max(node: ir.Node, b: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise RefuseError("its indices are used; MAX_POOL_2D gives none")
    nhwc = image(b, x, node)
    win = _window(node, nhwc)
    if not tflite_pads(win, nhwc):
        if not _never_negative(x):
            raise RefuseError(
                f"its padding {list(win.pads)} is not SAME and its input may be negative"
            )
        nhwc, win = _zero_padded(b, nhwc, win)
    y = b.op("MaxPool2D", [nhwc], _attributes(win), DIALECT)
    b.replace(unimage(b, y, len(shape_of(x))), *list(node.outputs)[1:])


def lower_average(node: ir.Node, b: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    nhwc = image(b, x, node)
    original = shape_of(nhwc)
    win = _window(node, nhwc)
    include = _counts_padding(node)
    pads = _declared(node, nhwc).pads if include else (0, 0, 0, 0)
    if (not any(win.pads)) or (not include and tflite_pads(win, nhwc)):
        y = b.op("AveragePool2D", [nhwc], _attributes(win), DIALECT)
    else:
        counted = _counts(original, win, pads)
        nhwc, plain = _zero_padded(b, nhwc, win)
        y = b.op("AveragePool2D", [nhwc], _attributes(plain), DIALECT)
        if not np.all(counted == 1):
            y = b.op("Mul", [y, b.const(counted, "window_share")])
    b.replace(unimage(b, y, len(shape_of(x))))


def _counts(shape: Shape, win: Window, counted: Sequence[int]) -> np.ndarray:
    """Kernel area over the pixels that ONNX divides by, per output pixel [1, H, W, 1].

    `counted` are the pads (top, left, bottom, right) whose pixels count.
    """
    lengths = []
    for axis in range(2):
        real, before = shape[1 + axis], win.pads[axis]
        low, high = -counted[axis], real + counted[axis + 2]
        outputs = (real + before + win.pads[axis + 2] - win.kernel[axis]) // win.strides[axis] + 1
        begins = np.arange(outputs) * win.strides[axis] - before
        ends = np.minimum(begins + win.kernel[axis], high)
        lengths.append(win.kernel[axis] / (ends - np.maximum(begins, low)))
    return np.outer(*lengths).astype(np.float32)[None, :, :, None]


def lower_global(node: ir.Node, b: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    rank = len(shape_of(x))
    axes = b.const(np.arange(2, rank, dtype=np.int64), "axes")
    op_type = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}[node.op_type]
    if rank == 4:
        nhwc = to_nhwc(b, x)
        axes = b.const(np.array([1, 2], np.int64), "axes")
        b.replace(to_nchw(b, b.op(op_type, [nhwc, axes], {"keepdims": 1})))
        return
    b.replace(b.op(op_type, [x, axes], {"keepdims": 1}))


def emit(node: ir.Node, w: Writer) -> None:
    kernel, strides = attribute_of(node, "kernel_shape"), attribute_of(node, "strides")
    options = {
        "padding": w.padding(attribute_of(node, "pads")),
        "strideH": strides[0],
        "strideW": strides[1],
        "filterHeight": kernel[0],
        "filterWidth": kernel[1],
        "fusedActivationFunction": 0,
    }
    name = {"AveragePool2D": "AVERAGE_POOL_2D", "MaxPool2D": "MAX_POOL_2D"}[node.op_type]
    w.add(name, 2, [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], options)


BUILTINS = (
    Builtin("MAX_POOL_2D", 2, (NO_FUSED_ACTIVATION,)),
    Builtin("AVERAGE_POOL_2D", 2, (NO_FUSED_ACTIVATION,)),
)

OPERATORS = (
    Operator("MaxPool", lower=lower_max),
    Operator("AveragePool", lower=lower_average),
    Operator("GlobalAveragePool", lower=lower_global),
    Operator("GlobalMaxPool", lower=lower_global),
    Operator("MaxPool2D", DIALECT, scales=same_scale, emit=emit, ties=same_channels),
    Operator("AveragePool2D", DIALECT, scales=same_scale, emit=emit, ties=same_channels),
)
