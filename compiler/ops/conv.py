"""Conv and ConvTranspose: CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV on NHWC images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    attribute_of,
    input_at,
    is_constant,
    shape_of,
    to_nchw,
    to_nhwc,
)
from compiler.ops.common import Operator, RefuseError, same_geometry
from compiler.ops.rules import Builtin, OpInfo, Rule, TensorInfo, Work, constant
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target
from compiler.targets.memory import stored_outputs, up


@dataclass(frozen=True)
class Window:
    """A window that slides over an image: (height, width) each, pads as (top, left, bottom, right)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def attributes(self) -> dict[str, tuple[int, ...]]:
        return {"strides": self.strides, "pads": self.pads, "dilations": self.dilations}

    def same_pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The pads that TensorFlow's SAME would use."""
        top, bottom = same_geometry(height, self.kernel[0], self.strides[0], self.dilations[0])
        left, right = same_geometry(width, self.kernel[1], self.strides[1], self.dilations[1])
        return top, left, bottom, right


def window(node: ir.Node, height: int, width: int, kernel: Sequence[int]) -> Window:
    """The sliding window of a Conv or pooling node over an image of `height` x `width`."""
    pair = [tuple(attribute_of(node, name, (1, 1))) for name in ("strides", "dilations")]
    strides, dilations = (p if len(p) == 2 else (1, *p) for p in pair)
    if 1 in kernel:  # along which a dilation means nothing; the Edge TPU wants the same both ways
        dilations = (dilations[kernel[0] == 1],) * 2
    pads = tuple(attribute_of(node, "pads", (0, 0, 0, 0)))
    if len(pads) == 2:
        pads = (0, pads[0], 0, pads[1])
    auto = attribute_of(node, "auto_pad", "NOTSET")
    made = Window((int(kernel[0]), int(kernel[1])), strides, dilations, pads)
    if auto == "VALID":
        return Window(made.kernel, strides, dilations, (0, 0, 0, 0))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        top, left, bottom, right = made.same_pads(height, width)
        same = (top, left, bottom, right) if auto == "SAME_UPPER" else (bottom, right, top, left)
        return Window(made.kernel, strides, dilations, same)
    return made


def padded(b: Builder, x: ir.Value, win: Window) -> tuple[ir.Value, Window]:
    """An NHWC image and a window that TFLite can pad; any other padding becomes a Pad in front."""
    if tflite_pads(win, x):
        return x, win
    if min(win.pads) < 0:
        raise RefuseError(f"its pads {list(win.pads)} are negative")
    return zero_padded(b, x, win)


def tflite_pads(win: Window, nhwc: ir.Value) -> bool:
    """Whether the pads are those of TFLite's VALID or SAME."""
    _, height, width, _ = shape_of(nhwc)
    return not any(win.pads) or win.pads == win.same_pads(height, width)


def zero_padded(b: Builder, x: ir.Value, win: Window) -> tuple[ir.Value, Window]:
    """An NHWC image with zeros around it, and the window without pads."""
    top, left, bottom, right = win.pads
    amounts = b.const(np.array([0, top, left, 0, 0, bottom, right, 0], np.int64), "pads")
    return b.op("Pad", [x, amounts]), replace(win, pads=(0, 0, 0, 0))


def image(b: Builder, value: ir.Value, node: ir.Node) -> ir.Value:
    """NCHW [1, C, H, W] or [1, C, W] as NHWC."""
    shape = shape_of(value)
    if len(shape) not in (3, 4):
        raise RefuseError(
            f"it is {len(shape) - 2}-dimensional; the Edge TPU has 1 and 2 dimensional windows"
        )
    if shape[0] != 1:
        raise RefuseError(f"its batch is {shape[0]}; the Edge TPU takes one image at a time")
    if len(shape) == 3:
        value = b.reshape(value, (shape[0], shape[1], 1, shape[2]))
    return to_nhwc(b, value)


def unimage(b: Builder, value: ir.Value, rank: int) -> ir.Value:
    """NHWC back to the layout that `image` found."""
    value = to_nchw(b, value)
    if rank == 3:
        n, c, _, w = shape_of(value)
        value = b.reshape(value, (n, c, w))
    return value


def lower_conv(node: ir.Node, b: Builder) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    if not is_constant(weight):
        raise RefuseError("its weights are computed at run time; the Edge TPU needs them constant")
    if input_at(node, 2) is not None and not is_constant(node.inputs[2]):
        raise RefuseError("its bias is computed at run time; the Edge TPU needs it constant")
    rank = len(shape_of(x))
    nhwc = image(b, x, node)
    if rank == 3:
        out, cin, taps = shape_of(weight)
        weight = b.lazy(
            weight, lambda w: w[:, :, None, :], (out, cin, 1, taps), f"{weight.name}/2d"
        )
    _, height, width, channels = shape_of(nhwc)
    win = window(node, height, width, shape_of(weight)[2:])
    bias = input_at(node, 2) or zero_bias(b, shape_of(weight)[0], weight)
    nhwc, win = padded(b, nhwc, win)
    group = int(attribute_of(node, "group", 1))
    attributes = win.attributes
    if group == 1:
        y = b.op("Conv2D", [nhwc, weight, bias], attributes, DIALECT)
    elif group == channels:
        y = b.op("DepthwiseConv2D", [nhwc, weight, bias], {"group": group, **attributes}, DIALECT)
    else:
        y = grouped(b, nhwc, (weight, bias), group, attributes)
    b.replace(unimage(b, y, rank))


def zero_bias(b: Builder, outputs: int, weight: ir.Value) -> ir.Value:
    return b.const(np.zeros(outputs, np.float32), f"{weight.name}/zero_bias")


def grouped(
    b: Builder,
    x: ir.Value,
    params: tuple[ir.Value, ir.Value],
    group: int,
    attributes: dict[str, tuple[int, ...]],
) -> ir.Value:
    """A grouped convolution as Split, one convolution per group, Concat; the Edge TPU has no
    groups."""
    parts = b.ops("Split", [x, None], {"axis": 3, "num_outputs": group}, outputs=group)
    each = shape_of(params[0])[0] // group
    made = []
    for index, part in enumerate(parts):
        rows = slice(index * each, (index + 1) * each)
        weight, bias = (b.rows(value, rows) for value in params)
        made.append(b.op("Conv2D", [part, weight, bias], attributes, DIALECT))
    return b.op("Concat", made, {"axis": 3})


def lower_conv_transpose(node: ir.Node, b: Builder) -> None:
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    if not is_constant(weight):
        raise RefuseError("its weights are computed at run time; the Edge TPU needs them constant")
    if len(shape_of(x)) != 4:
        raise RefuseError("it is not two-dimensional; TRANSPOSE_CONV is")
    if int(attribute_of(node, "group", 1)) != 1 or set(attribute_of(node, "dilations", (1, 1))) != {
        1
    }:
        raise RefuseError("it has groups or dilations; TRANSPOSE_CONV has neither")
    nhwc = image(b, x, node)
    kernel, strides = shape_of(weight)[2:], tuple(attribute_of(node, "strides", (1, 1)))
    if any(k < s for k, s in zip(kernel, strides, strict=True)):
        raise RefuseError(f"its kernel {list(kernel)} is smaller than its stride {list(strides)}")
    cin, cout = shape_of(weight)[:2]
    weight = b.lazy(
        weight, lambda w: w.transpose(1, 0, 2, 3), (cout, cin, *kernel), f"{weight.name}/oihw"
    )
    bias = input_at(node, 2) or zero_bias(b, cout, weight)
    sizes, want = shape_of(nhwc)[1:3], shape_of(node.outputs[0])[2:]
    begins = _crop(node, sizes, strides, kernel, want)
    same = tuple((k - s) // 2 for k, s in zip(kernel, strides, strict=True))
    if begins == same and all(w == i * s for w, i, s in zip(want, sizes, strides, strict=True)):
        ends = [k - s - p for k, s, p in zip(kernel, strides, same, strict=True)]
        attributes = {"strides": strides, "pads": (*same, *ends)}
        y = b.op("TransposeConv2D", [nhwc, weight, bias], attributes, DIALECT)
    else:
        y = b.op(
            "TransposeConv2D", [nhwc, weight, bias], {"strides": strides, "pads": (0,) * 4}, DIALECT
        )
        y = crop(b, y, begins, want)
    b.replace(to_nchw(b, y))


def _crop(
    node: ir.Node,
    sizes: Sequence[int],
    strides: Sequence[int],
    kernel: Sequence[int],
    want: Sequence[int],
) -> tuple[int, ...]:
    """Where the wanted image begins in the uncropped one of a ConvTranspose."""
    full = [(i - 1) * s + k for i, s, k in zip(sizes, strides, kernel, strict=True)]
    auto = attribute_of(node, "auto_pad", "NOTSET")
    if "output_shape" in node.attributes or auto.startswith("SAME"):
        total = [f - w for f, w in zip(full, want, strict=True)]
        begins = tuple(t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total)
    else:
        begins = tuple(attribute_of(node, "pads", (0, 0, 0, 0))[:2])
    if any(p < 0 or p + w > f for p, w, f in zip(begins, want, full, strict=True)):
        raise RefuseError("its output padding reaches beyond what TRANSPOSE_CONV computes")
    return begins


def crop(b: Builder, x: ir.Value, begins: Sequence[int], want: Sequence[int]) -> ir.Value:
    """A rectangle of an NHWC image."""
    starts = b.const(np.array(begins, np.int64), "starts")
    ends = b.const(np.array([p + w for p, w in zip(begins, want, strict=True)], np.int64), "ends")
    return b.op("Slice", [x, starts, ends, b.const(np.array([1, 2], np.int64), "axes")])


def emit(node: ir.Node, w: Writer) -> None:
    x, weight, _ = node.inputs
    assert x is not None and weight is not None
    depthwise = node.op_type == "DepthwiseConv2D"
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    filters, biases = w.filters(node, order)
    strides, dilations = attribute_of(node, "strides"), attribute_of(node, "dilations")
    options = {
        "padding": w.padding(attribute_of(node, "pads")),
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": 0,
    }
    if depthwise:
        options["depthMultiplier"] = shape_of(weight)[0] // shape_of(x)[3]
    name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    w.add(name, 3, [w.tensor(x), filters, biases], [w.tensor(node.outputs[0])], options)


def emit_transpose_conv(node: ir.Node, w: Writer) -> None:
    filters, biases = w.filters(node, (0, 2, 3, 1))
    strides = attribute_of(node, "strides")
    options = {
        "padding": w.padding(attribute_of(node, "pads")),
        "strideH": strides[0],
        "strideW": strides[1],
    }
    size = w.ints(shape_of(node.outputs[0]))
    w.add(
        "TRANSPOSE_CONV",
        3,
        [size, filters, w.tensor(node.inputs[0]), biases],
        [w.tensor(node.outputs[0])],
        options,
    )


def _kernel(op: OpInfo, target: Target) -> str | None:
    filters = op.inputs[1]
    size = filters.shape[1:3] if filters is not None else ()
    return f"its kernel is {list(size)}" if max(size, default=0) > target.kernel_size else None


def _dilation(op: OpInfo, target: Target) -> str | None:
    both = [op.options.get(name, 1) for name in ("dilationHFactor", "dilationWFactor")]
    return f"its dilations are {both}" if both[0] != both[1] else None


def _filters(op: OpInfo) -> TensorInfo:
    filters = op.inputs[1]
    assert filters is not None
    return filters


def layer(op: OpInfo) -> Layer:
    filters = _filters(op)
    out, height, width, inputs = filters.shape
    taps, per_channel = height * width, filters.scales > 1
    if op.builtin != "DEPTHWISE_CONV_2D":
        return Layer("dense" if taps == 1 else "conv", inputs, out, taps, per_channel)
    # A depthwise convolution of one channel is an ordinary one to the device (LibrEdgeTPU's gabor
    # models).
    single = op.activations[0].shape[3] == 1 and inputs > 1
    return Layer("conv" if single else "depthwise", 1, inputs, taps, per_channel)


def work(op: OpInfo, target: Target) -> Work:
    own, filters = layer(op), _filters(op)
    image = op.activations[0] if op.builtin == "TRANSPOSE_CONV" else op.outputs[0]
    positions = math.prod(image.shape[1:3])
    if own.kind == "depthwise":
        return Work("depthwise", positions * filters.elements, positions * filters.elements)
    padded = own.taps * up(own.inputs, target.input_multiple) * stored_outputs(own.outputs, target)
    kind: Literal["pointwise", "conv"] = "pointwise" if own.taps == 1 else "conv"
    return Work(kind, positions * padded, positions * filters.elements)


_SHARED = (
    constant(1, "weights"),
    constant(2, "biases"),
    Rule(
        "the kernel is at most 16 x 16",
        _kernel,
        "measured",
        "LibrEdgeTPU: 16 x 16 compiles, 64 x 64 fails",
    ),
    Rule("height and width have the same dilation", _dilation, "documented"),
)

BUILTINS = (
    Builtin("CONV_2D", 3, _SHARED, layer, work),
    Builtin("DEPTHWISE_CONV_2D", 3, _SHARED, layer, work),
    Builtin("TRANSPOSE_CONV", 3, (constant(1, "weights"),), layer, work),
)

OPERATORS = (
    Operator("Conv", lower=lower_conv),
    Operator("ConvTranspose", lower=lower_conv_transpose),
    Operator("Conv2D", DIALECT, emit=emit),
    Operator("DepthwiseConv2D", DIALECT, emit=emit),
    Operator("TransposeConv2D", DIALECT, emit=emit_transpose_conv),
)
