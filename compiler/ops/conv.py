"""Conv and ConvTranspose: CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV on NHWC images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    attribute_of,
    constant_of,
    input_at,
    is_constant,
    shape_of,
    to_nchw,
)
from compiler.ops.common import Function, Operator, RefuseError
from compiler.ops.rules import Builtin, OpInfo, Rule, TensorInfo, Work, constant, example, held
from compiler.ops.window import NO_PADS, crop, from_image, to_image, window_of, with_tflite_pads
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target
from compiler.targets.memory import Kind, stored_outputs, up

# ONNX's axes (outputs, inputs, height, width) in the order of TFLite's filters.
_OHWI = (0, 2, 3, 1)
_IHWO = (1, 2, 3, 0)


def lower_conv(node: ir.Node, builder: Builder) -> None:
    """An image [1, C, H, W] or signals [N, C, W] with constant weights; groups become convolutions
    of their own."""
    x, weight, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    assert x is not None and weight is not None
    if not is_constant(weight):
        raise RefuseError("its weights are computed at run time; the Edge TPU needs them constant")
    if bias is not None and not is_constant(bias):
        raise RefuseError("its bias is computed at run time; the Edge TPU needs it constant")
    rank = len(shape_of(x))
    image = to_image(builder, x)
    if rank == 3:
        weight = _as_two_dimensional(builder, weight)
    _, height, width, channels = shape_of(image)
    window = window_of(node, height, width, shape_of(weight)[2:])
    if bias is None:
        bias = zero_bias(builder, shape_of(weight)[0], weight)
    image, window = with_tflite_pads(builder, image, window)
    group = int(attribute_of(node, "group", 1))
    attributes = window.attributes
    if group == 1:
        y = builder.op("Conv2D", [image, weight, bias], attributes, DIALECT)
    elif group == channels:
        own = {"group": group, **attributes}
        y = builder.op("DepthwiseConv2D", [image, weight, bias], own, DIALECT)
    else:
        y = _grouped(builder, image, (weight, bias), group, attributes)
    builder.replace(from_image(builder, y, rank))


def _as_two_dimensional(builder: Builder, weight: ir.Value) -> ir.Value:
    """Weights [O, I, taps] as [O, I, 1, taps]."""
    outputs, inputs, taps = shape_of(weight)
    return builder.lazy(
        weight, lambda array: array[:, :, None, :], (outputs, inputs, 1, taps), f"{weight.name}/2d"
    )


def zero_bias(builder: Builder, outputs: int, weight: ir.Value) -> ir.Value:
    """A bias [outputs] of zeros, for a layer that has none."""
    return builder.const(np.zeros(outputs, np.float32), f"{weight.name}/zero_bias")


def _grouped(
    builder: Builder,
    image: ir.Value,
    parameters: tuple[ir.Value, ir.Value],
    group: int,
    attributes: dict[str, tuple[int, ...]],
) -> ir.Value:
    """A grouped convolution as Split, one convolution per group, Concat; the Edge TPU has no
    groups."""
    parts = builder.ops("Split", [image, None], {"axis": 3, "num_outputs": group}, outputs=group)
    outputs_each = shape_of(parameters[0])[0] // group
    made = []
    for index, part in enumerate(parts):
        rows = slice(index * outputs_each, (index + 1) * outputs_each)
        weight, bias = (builder.rows(value, rows) for value in parameters)
        made.append(builder.op("Conv2D", [part, weight, bias], attributes, DIALECT))
    return builder.op("Concat", made, {"axis": 3})


def lower_conv_transpose(node: ir.Node, builder: Builder) -> None:
    """TRANSPOSE_CONV with SAME padding, or with none and the wanted rectangle cut out."""
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None and weight is not None
    _check_transposed(node, x, weight)
    image = to_image(builder, x)
    kernel = shape_of(weight)[2:]
    strides = tuple(attribute_of(node, "strides", (1, 1)))
    if any(k < s for k, s in zip(kernel, strides, strict=True)):
        raise RefuseError(f"its kernel {list(kernel)} is smaller than its stride {list(strides)}")
    weight = _outputs_first(builder, weight)
    bias = input_at(node, 2)
    if bias is None:
        bias = zero_bias(builder, shape_of(weight)[0], weight)
    sizes = shape_of(image)[1:3]
    wanted = shape_of(node.outputs[0])[2:]
    begins = _crop_begins(node, sizes, kernel, wanted)
    before = tuple((k - s) // 2 for k, s in zip(kernel, strides, strict=True))
    is_scaled = all(w == i * s for w, i, s in zip(wanted, sizes, strides, strict=True))
    is_same = begins == before and is_scaled
    pads: tuple[int, ...] = NO_PADS
    if is_same:
        after = [k - s - p for k, s, p in zip(kernel, strides, before, strict=True)]
        pads = (*before, *after)
    attributes = {"strides": strides, "pads": pads}
    y = builder.op("TransposeConv2D", [image, weight, bias], attributes, DIALECT)
    if not is_same:
        y = crop(builder, y, begins, wanted)
    builder.replace(to_nchw(builder, y))


def _check_transposed(node: ir.Node, x: ir.Value, weight: ir.Value) -> None:
    """Raises RefuseError for what TRANSPOSE_CONV cannot do."""
    if not is_constant(weight):
        raise RefuseError("its weights are computed at run time; the Edge TPU needs them constant")
    if len(shape_of(x)) != 4:
        raise RefuseError("it is not two-dimensional; TRANSPOSE_CONV is")
    groups = int(attribute_of(node, "group", 1))
    dilations = attribute_of(node, "dilations", (1, 1))
    if groups != 1 or set(dilations) != {1}:
        raise RefuseError("it has groups or dilations; TRANSPOSE_CONV has neither")


def _outputs_first(builder: Builder, weight: ir.Value) -> ir.Value:
    """Weights [I, O, H, W] of a ConvTranspose as [O, I, H, W]."""
    inputs, outputs, *kernel = shape_of(weight)
    return builder.lazy(
        weight,
        lambda array: array.transpose(1, 0, 2, 3),
        (outputs, inputs, *kernel),
        f"{weight.name}/oihw",
    )


def _crop_begins(
    node: ir.Node, sizes: Sequence[int], kernel: Sequence[int], wanted: Sequence[int]
) -> tuple[int, ...]:
    """Where the wanted image begins in the uncropped one of a ConvTranspose: (top, left).

    `sizes` are those of the image that it reads, (height, width). Raises RefuseError where the
    wanted image is not inside.
    """
    strides = attribute_of(node, "strides", (1, 1))
    full = [(i - 1) * s + k for i, s, k in zip(sizes, strides, kernel, strict=True)]
    auto = attribute_of(node, "auto_pad", "NOTSET")
    if "output_shape" in node.attributes or auto.startswith("SAME"):
        totals = [f - w for f, w in zip(full, wanted, strict=True)]
        smaller = [total // 2 for total in totals]
        larger = [total - total // 2 for total in totals]
        begins = tuple(smaller if auto == "SAME_UPPER" else larger)
    else:
        begins = tuple(attribute_of(node, "pads", NO_PADS)[:2])
    for begin, size, whole in zip(begins, wanted, full, strict=True):
        if begin < 0 or begin + size > whole:
            raise RefuseError("its output padding reaches beyond what TRANSPOSE_CONV computes")
    return begins


def macs_conv(node: ir.Node) -> int:
    """Each output element is a sum over the weights of its channel."""
    weight = shape_of(node.inputs[1])
    return math.prod(shape_of(node.outputs[0])) // weight[0] * math.prod(weight)


def macs_conv_transpose(node: ir.Node) -> int:
    """Each input pixel is multiplied by all weights. Images are NHWC in the dialect, else NCHW."""
    image = shape_of(node.inputs[0])
    channels = image[-1] if node.domain else image[1]
    return math.prod(image) // channels * math.prod(shape_of(node.inputs[1]))


def output_channels(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    return shape_of(weight)[0] if is_constant(weight) else None


def affine_of_numbers(node: ir.Node) -> Function | None:
    """slope * t + shift, where a 1x1 depthwise convolution does the same to all channels."""
    if shape_of(node.inputs[1])[2:] != (1, 1):
        return None
    slope = _common_number(node.inputs[1])
    shift = _common_number(node.inputs[2])
    if slope is None or shift is None:
        return None
    return lambda t: slope * t + shift


def _common_number(value: ir.Value | None) -> float | None:
    """The number that all elements of a constant are."""
    array = constant_of(value)
    if array is None or not array.size or np.ptp(array) != 0:
        return None
    return float(array.flat[0])


def emit(node: ir.Node, writer: Writer) -> None:
    """CONV_2D. The filters are [O, H, W, I]."""
    filters, biases = writer.filters(node, _OHWI)
    inputs = [writer.tensor(node.inputs[0]), filters, biases]
    writer.add("CONV_2D", 3, inputs, [writer.tensor(node.outputs[0])], _options(node, writer))


def emit_depthwise(node: ir.Node, writer: Writer) -> None:
    """DEPTHWISE_CONV_2D. The filters are [1, H, W, O]."""
    x, weight, _ = node.inputs
    filters, biases = writer.filters(node, _IHWO)
    inputs = [writer.tensor(x), filters, biases]
    options = _options(node, writer)
    options["depthMultiplier"] = shape_of(weight)[0] // shape_of(x)[3]
    writer.add("DEPTHWISE_CONV_2D", 3, inputs, [writer.tensor(node.outputs[0])], options)


def _options(node: ir.Node, writer: Writer) -> dict[str, int]:
    strides = attribute_of(node, "strides")
    dilations = attribute_of(node, "dilations")
    return {
        "padding": writer.padding(attribute_of(node, "pads")),
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": 0,
    }


def emit_transpose_conv(node: ir.Node, writer: Writer) -> None:
    """TRANSPOSE_CONV. Its first input is the shape of its output."""
    filters, biases = writer.filters(node, _OHWI)
    strides = attribute_of(node, "strides")
    options = {
        "padding": writer.padding(attribute_of(node, "pads")),
        "strideH": strides[0],
        "strideW": strides[1],
    }
    shape = writer.ints(shape_of(node.outputs[0]))
    inputs = [shape, filters, writer.tensor(node.inputs[0]), biases]
    writer.add("TRANSPOSE_CONV", 3, inputs, [writer.tensor(node.outputs[0])], options)


def _kernel(op: OpInfo, target: Target) -> str | None:
    filters = op.inputs[1]
    size = filters.shape[1:3] if filters is not None else ()
    return f"its kernel is {list(size)}" if max(size, default=0) > target.kernel_size else None


def _dilation(op: OpInfo, target: Target) -> str | None:
    vertical = op.options.get("dilationHFactor", 1)
    horizontal = op.options.get("dilationWFactor", 1)
    if vertical == horizontal or 1 in _filters(op).shape[1:3]:
        # Along an axis on which the kernel is 1, a dilation means nothing.
        return None
    return f"its dilations are {[vertical, horizontal]}"


def _filters(op: OpInfo) -> TensorInfo:
    filters = op.inputs[1]
    assert filters is not None
    return filters


def layer(op: OpInfo) -> Layer:
    """The parameters of a convolution; a 1x1 one is stored as a fully-connected layer is."""
    filters = _filters(op)
    outputs, height, width, inputs = filters.shape
    taps = height * width
    kind: Kind = "dense" if taps == 1 and outputs > 1 else "conv"
    return stored_layer(op, kind, inputs, outputs, taps)


def layer_transposed(op: OpInfo) -> Layer:
    """The parameters of a transposed convolution, whose bias is the fourth input."""
    return replace(layer(op), bias=has_bias(op, 3))


def layer_depthwise(op: OpInfo) -> Layer:
    """The parameters of a depthwise convolution, whose filters are [1, H, W, O].

    One of a single channel is an ordinary convolution to the device (LibrEdgeTPU's gabor models).
    """
    filters = _filters(op)
    _, height, width, outputs = filters.shape
    is_single = op.activations[0].shape[3] == 1 and outputs > 1
    kind: Kind = "conv" if is_single else "depthwise"
    return stored_layer(op, kind, 1, outputs, height * width)


def stored_layer(op: OpInfo, kind: Kind, inputs: int, outputs: int, taps: int) -> Layer:
    """What an operator with weights as its second input and a bias as its third stores."""
    weights = _filters(op)
    return Layer(
        kind,
        inputs,
        outputs,
        taps,
        per_channel=weights.scales > 1,
        bias=has_bias(op, 2),
        equal_scales=weights.equal_scales,
        positions=math.prod(op.outputs[0].shape[1:-1]),
    )


def has_bias(op: OpInfo, index: int) -> bool:
    """Whether an operator has a bias, as this input, that is not all zeros."""
    bias = op.inputs[index] if index < len(op.inputs) else None
    return bias is not None and not bias.zeros


def work(op: OpInfo, target: Target) -> Work:
    """Multiply-accumulates, at each output position, over channels with their padding."""
    return _work(op, layer(op), op.outputs[0], target)


def work_transposed(op: OpInfo, target: Target) -> Work:
    """Multiply-accumulates, at each input position, over channels with their padding."""
    return _work(op, layer(op), op.activations[0], target)


def work_depthwise(op: OpInfo, target: Target) -> Work:
    own = layer_depthwise(op)
    if own.kind == "conv":
        return _work(op, own, op.outputs[0], target)
    macs = math.prod(op.outputs[0].shape[1:3]) * _filters(op).elements
    return Work("depthwise", macs, macs)


def _work(op: OpInfo, own: Layer, image: TensorInfo, target: Target) -> Work:
    positions = math.prod(image.shape[1:3])
    inputs = up(own.inputs, target.input_multiple)
    padded = own.taps * inputs * stored_outputs(own.outputs, target)
    macs = positions * _filters(op).elements
    if own.taps == 1:
        return Work("pointwise", positions * padded, macs)
    return Work("conv", positions * padded, macs)


def _example(height: int, width: int, **options: int) -> OpInfo:
    """A convolution with a kernel of this size."""
    kernel, biases = held(1, height, width, 4), held(1, dtype="int32")
    return example("CONV_2D", (1, 64, 64, 4), kernel, biases, (1, 9, 9, 1), **options)


_TRANSPOSED = example("TRANSPOSE_CONV", held(4), held(1, 3, 3, 4), (1, 8, 8, 4), (1, 16, 16, 1))

_RULES = (
    constant(1, "weights", _example(3, 3)),
    constant(2, "biases", _example(3, 3)),
    Rule(
        "the kernel is at most 16 x 16 (that size was mapped, 64 x 64 was not)",
        _kernel,
        "measured",
        accepts=_example(16, 16),
        refuses=_example(64, 64),
        source="LibrEdgeTPU's hardware notes",
    ),
    Rule(
        "height and width have the same dilation, where the kernel is larger than 1 along both",
        _dilation,
        "documented",
        accepts=_example(3, 1, dilationHFactor=2),
        refuses=_example(3, 3, dilationHFactor=2),
        source="coral.ai models-intro; a kernel of 3 x 1: edgetpu-tcn (log 005)",
    ),
)

BUILTINS = (
    Builtin("CONV_2D", 3, _RULES, layer, work, "Conv2DOptions"),
    Builtin(
        "DEPTHWISE_CONV_2D", 3, _RULES, layer_depthwise, work_depthwise, "DepthwiseConv2DOptions"
    ),
    Builtin(
        "TRANSPOSE_CONV",
        3,
        (constant(1, "weights", _TRANSPOSED),),
        layer_transposed,
        work_transposed,
    ),
)

OPERATORS = (
    Operator("Conv", lower=lower_conv, macs=macs_conv, output_channels=output_channels),
    Operator("ConvTranspose", lower=lower_conv_transpose, macs=macs_conv_transpose),
    Operator(
        "Conv2D",
        DIALECT,
        body="""
    Conv2D <strides, pads, dilations> (x, w, b) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        conv = Conv <strides: ints = @strides, pads: ints = @pads,
                     dilations: ints = @dilations> (nchw, w, b)
        y = Transpose <perm = [0, 2, 3, 1]> (conv)
    }""",
        emit=emit,
        linear="dense",
        macs=macs_conv,
    ),
    Operator(
        "DepthwiseConv2D",
        DIALECT,
        body="""
    DepthwiseConv2D <group, strides, pads, dilations> (x, w, b) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        conv = Conv <group: int = @group, strides: ints = @strides, pads: ints = @pads,
                     dilations: ints = @dilations> (nchw, w, b)
        y = Transpose <perm = [0, 2, 3, 1]> (conv)
    }""",
        emit=emit_depthwise,
        linear="depthwise",
        macs=macs_conv,
        elementwise=affine_of_numbers,
    ),
    Operator(
        "TransposeConv2D",
        DIALECT,
        body="""
    TransposeConv2D <strides, pads> (x, w, b) => (y) {
        nchw = Transpose <perm = [0, 3, 1, 2]> (x)
        iohw = Transpose <perm = [1, 0, 2, 3]> (w)
        conv = ConvTranspose <strides: ints = @strides, pads: ints = @pads> (nchw, iohw, b)
        y = Transpose <perm = [0, 2, 3, 1]> (conv)
    }""",
        emit=emit_transpose_conv,
        linear="transposed",
        macs=macs_conv_transpose,
    ),
)
