"""Activation functions: RELU, RELU6, RELU_N1_TO_1, PRELU, LOGISTIC, TANH, and what is written with
them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    array_of,
    attribute_of,
    constant_of,
    input_at,
    is_constant,
    only_consumer,
    scalar_of,
    shape_of,
    to_nchw,
    to_nhwc,
)
from compiler.ops.common import (
    FLOAT_MAX,
    Function,
    Operator,
    Refusal,
    Scales,
    free_permute,
    same_channels,
    same_scale,
)
from compiler.ops.elementwise import permute_constants
from compiler.ops.rules import Builtin, OpInfo, Rule, constant, example, held
from compiler.ops.writer import Writer
from compiler.targets import Target

Bounds = tuple[float, float]

# The clamps that the Edge TPU has operators for.
CLAMPS: dict[Bounds, str] = {
    (0.0, FLOAT_MAX): "RELU",
    (0.0, 6.0): "RELU6",
    (-1.0, 1.0): "RELU_N1_TO_1",
}
_VERSION = {"RELU": 2, "RELU6": 2, "RELU_N1_TO_1": 1}
# What TFLite prescribes for results of LOGISTIC and TANH: (scale, zero point).
SIGMOID_SCALE = (1 / 256, -128)
TANH_SCALE = (1 / 128, 0)
# Beyond these inputs such results round to the first or the last of int8.
SIGMOID_END = float(np.log(511))
TANH_END = float(np.arctanh(255 / 256))
# GELU(x) is nearly x * sigmoid(GELU_SLOPE * x).
GELU_SLOPE = 1.702
# And far more nearly x * sigmoid(t * (t^2 + CUBIC_SHIFT)) of t = CUBIC_SLOPE * x, which is the tanh
# formula of GELU: 2 sqrt(2 / pi) (x + 0.044715 x^3), with the factor of x^3 taken into t.
CUBIC_SLOPE = (2 * np.sqrt(2 / np.pi) * 0.044715) ** (1 / 3)
CUBIC_SHIFT = CUBIC_SLOPE**2 / 0.044715
# Where that sigmoid rounds to the last of int8.
CUBIC_END = 1.18664


def bounds(node: ir.Node) -> Bounds | None:
    """The range that Relu or Clip clamps to, None where a bound is computed at run time."""
    if node.op_type == "Relu":
        return 0.0, FLOAT_MAX
    low = _bound(node, 1, -FLOAT_MAX)
    high = _bound(node, 2, FLOAT_MAX)
    if low is None or high is None:
        return None
    return low, high


def _bound(node: ir.Node, index: int, default: float) -> float | None:
    """A bound of Clip, which is finite in float32; None where it is computed at run time."""
    bound = input_at(node, index)
    value = default if bound is None else scalar_of(bound)
    return None if value is None else float(np.clip(value, -FLOAT_MAX, FLOAT_MAX))


def refuse_clamp(node: ir.Node, target: Target) -> Refusal:
    if bounds(node) is None:
        return "its bounds are computed at run time"
    return None


def is_absorbed(node: ir.Node) -> bool:
    """Whether a clamp is the only reader of what another node makes.

    Then it needs no operator: its input takes the output's scale, whose int8 range is the clamp.
    TFLite's fused activations compute the same.
    """
    x = node.inputs[0]
    return x is not None and x.producer() is not None and only_consumer(x) is node


def scales_clamp(node: ir.Node) -> Scales:
    """Absorbed clamps share one scale with their input, and so do those that MINIMUM and MAXIMUM
    write; the others are free."""
    shared = same_scale(node)
    if is_absorbed(node):
        # Where its input's scale is not free, Relu is written as RELU. A Clip keeps one scale, even
        # one that has an operator.
        alone = Scales() if node.op_type == "Relu" else shared
        return Scales(same=shared.same, range_of=node.outputs[0], otherwise=alone)
    return Scales() if bounds(node) in CLAMPS else shared


def clamp_numbers(node: ir.Node) -> Function | None:
    limits = bounds(node)
    if limits is None:
        return None
    low, high = limits
    return lambda t: np.clip(t, low, high)


def emit_clamp(node: ir.Node, writer: Writer) -> None:
    """Nothing where int8 clamps by itself, else the clamp's operator, else MAXIMUM and MINIMUM."""
    x, y = node.inputs[0], node.outputs[0]
    limits = bounds(node)
    assert x is not None and limits is not None
    if writer.clamps(x, y, limits):
        writer.alias(y, x)
        return
    if limits in CLAMPS:
        name = CLAMPS[limits]
        writer.add(name, _VERSION[name], [writer.tensor(x)], [writer.tensor(y)])
        return
    low, high = limits
    middle = writer.scratch(y)
    writer.add("MAXIMUM", 2, [writer.tensor(x), writer.number(low, y)], [middle])
    writer.add("MINIMUM", 2, [middle, writer.number(high, y)], [writer.tensor(y)])


def lower_leaky_relu(node: ir.Node, builder: Builder) -> None:
    x = node.inputs[0]
    slope = builder.scalar(float(attribute_of(node, "alpha", 0.01)), "slope")
    builder.replace(builder.op("PRelu", [x, slope]))


def lower_prelu(node: ir.Node, builder: Builder) -> None:
    """One slope per channel of an image: along the innermost axis as NHWC."""
    x, slope = node.inputs
    assert x is not None and slope is not None
    if not is_constant(slope) or len(shape_of(x)) != 4:
        return
    channels = shape_of(x)[1]
    if shape_of(slope)[-3:] != (channels, 1, 1):
        return
    flat = builder.const(array_of(slope).reshape(-1), f"{slope.name}/flat")
    builder.replace(to_nchw(builder, builder.op("PRelu", [to_nhwc(builder, x), flat])))


def refuse_prelu(node: ir.Node, target: Target) -> Refusal:
    if not is_constant(node.inputs[1]):
        return "its slope is computed at run time"
    return None


def emit_prelu(node: ir.Node, writer: Writer) -> None:
    x, slope = node.inputs
    array = constant_of(slope)
    assert x is not None and array is not None
    # Where slopes vary along other axes too, the device's rule refuses what is drafted here.
    outer = array.shape[:-1] if max(array.shape[:-1], default=1) > 1 else ()
    channels = np.broadcast_to(array.reshape((*outer, -1)), (*outer, *shape_of(x)[-1:]))
    alpha = writer.quantized_constant(f"{node.name}/slope", channels)
    writer.add("PRELU", 1, [writer.tensor(x), alpha], [writer.tensor(node.outputs[0])])


def affine(builder: Builder, x: ir.Value, slope: float, shift: float) -> ir.Value:
    """slope * x + shift.

    Of an image it is a 1x1 depthwise convolution: one operator, and one that can undo the factors
    that channels are equalised by (compiler/quantize/equalise.py).
    """
    if len(shape_of(x)) != 4 or shape_of(x)[0] != 1:
        y = builder.op("Mul", [x, builder.scalar(slope, "slope")])
        return builder.op("Add", [y, builder.scalar(shift, "shift")]) if shift else y
    return to_nchw(builder, by_channels(builder, to_nhwc(builder, x), slope, shift))


def by_channels(builder: Builder, x: ir.Value, slope: float, shift: float = 0) -> ir.Value:
    """slope * x + shift of an image in NHWC, by a 1x1 depthwise convolution."""
    channels = shape_of(x)[3]
    weight = builder.const(np.full((channels, 1, 1, 1), slope, np.float32), "slope")
    bias = builder.const(np.full(channels, shift, np.float32), "shift")
    attributes = {
        "group": channels,
        "strides": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
    }
    return builder.op("DepthwiseConv2D", [x, weight, bias], attributes, DIALECT)


def lower_hard_sigmoid(node: ir.Node, builder: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    alpha = float(attribute_of(node, "alpha", 0.2))
    beta = float(attribute_of(node, "beta", 0.5))
    builder.replace(_hard_sigmoid(builder, x, alpha, beta))


def _hard_sigmoid(builder: Builder, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    """clip(alpha x + beta, 0, 1); the clamp is written as the scale of what it clamps."""
    return builder.op(
        "Clip",
        [affine(builder, x, alpha, beta), builder.scalar(0, "zero"), builder.scalar(1, "one")],
    )


def lower_gelu(node: ir.Node, builder: Builder) -> None:
    """x * gate(1.702 x), the gate written as a sigmoid: at most 0.0203 off (Hendrycks and Gimpel,
    2016). TFLite's own GELU is newer than what the Edge TPU compiler reads."""
    (x,) = node.inputs
    assert x is not None
    is_tanh = attribute_of(node, "approximate", "none") == "tanh"
    gate = "TanhGeluGate" if is_tanh else "GeluGate"
    y = builder.op(gate, [affine(builder, x, GELU_SLOPE, 0)], domain=DIALECT)
    builder.replace(builder.op("Mul", [x, y]))


def gelu(builder: Builder, x: ir.Value, *, is_tanh: bool) -> ir.Value:
    """GELU of an image in NHWC, by the cubic gate: at most 0.0005 off."""
    gate = "CubicTanhGeluGate" if is_tanh else "CubicGeluGate"
    opened = builder.op(gate, [by_channels(builder, x, CUBIC_SLOPE)], domain=DIALECT)
    return builder.op("Mul", [x, opened])


def lower_hard_swish(node: ir.Node, builder: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    builder.replace(builder.op("Mul", [x, _hard_sigmoid(builder, x, 1 / 6, 0.5)]))


def lower_swish(node: ir.Node, builder: Builder) -> None:
    (x,) = node.inputs
    assert x is not None
    alpha = float(attribute_of(node, "alpha", 1.0))
    inner = x if alpha == 1 else builder.op("Mul", [x, builder.scalar(alpha, "alpha")])
    builder.replace(builder.op("Mul", [x, builder.op("Sigmoid", [inner])]))


def scales_sigmoid(node: ir.Node) -> Scales:
    return Scales(fixed={node.outputs[0]: SIGMOID_SCALE})


def scales_tanh(node: ir.Node) -> Scales:
    return Scales(fixed={node.outputs[0]: TANH_SCALE})


def sigmoid_numbers(node: ir.Node) -> Function | None:
    return lambda t: 1 / (1 + np.exp(-t))


def emit_sigmoid(node: ir.Node, writer: Writer) -> None:
    writer.add("LOGISTIC", 2, [writer.tensor(node.inputs[0])], [writer.tensor(node.outputs[0])])


def cubic_numbers(node: ir.Node) -> Function | None:
    return lambda t: 1 / (1 + np.exp(-_cubic(np.clip(t, -2, 2))))


def _cubic(t: np.ndarray) -> np.ndarray:
    """What the cubic gate takes the sigmoid of."""
    cubic: np.ndarray = t * (t**2 + CUBIC_SHIFT)
    return cubic


def emit_cubic(node: ir.Node, writer: Writer) -> None:
    """sigmoid(t * (t^2 + shift)); the ranges between follow from that of t."""
    t, y = node.inputs[0], node.outputs[0]
    assert t is not None
    low, high = writer.quant(t).range
    end = max(-low, high)
    square = writer.between(y, 0, end**2)
    shifted = writer.between(y, 0, end**2 + CUBIC_SHIFT)
    cubic = writer.between(y, *_cubic(np.clip([low, high], -CUBIC_END, CUBIC_END)))
    options = {"fusedActivationFunction": 0}
    shift = writer.quantized_constant("shift", np.asarray(CUBIC_SHIFT, np.float32))
    writer.add("MUL", 2, [writer.tensor(t), writer.tensor(t)], [square], options)
    writer.add("ADD", 2, [square, shift], [shifted], options)
    writer.add("MUL", 2, [writer.tensor(t), shifted], [cubic], options)
    writer.add("LOGISTIC", 2, [cubic], [writer.tensor(y)])


def emit_tanh(node: ir.Node, writer: Writer) -> None:
    writer.add("TANH", 2, [writer.tensor(node.inputs[0])], [writer.tensor(node.outputs[0])])


def _slope(op: OpInfo, target: Target) -> str | None:
    slope = op.inputs[1]
    if slope is None or max(slope.shape[:-1], default=1) <= 1:
        return None
    return f"it is {list(slope.shape)}"


def _example(*slopes: int) -> OpInfo:
    return example("PRELU", (1, 8, 8, 4), held(*slopes), (1, 8, 8, 4))


_INNERMOST = Rule(
    "its slope varies along the innermost dimension only",
    _slope,
    "documented",
    accepts=_example(1, 1, 4),
    refuses=_example(8, 1, 4),
)

BUILTINS = (
    Builtin("RELU", 2),
    Builtin("RELU6", 2),
    Builtin("RELU_N1_TO_1", 2),
    Builtin("LOGISTIC", 2),
    Builtin("TANH", 2),
    Builtin("PRELU", 1, (constant(1, "slopes", _example(1, 1, 4)), _INNERMOST)),
)


def _gate(op_type: str, body: str) -> Operator:
    """A gate of GELU: Gelu(t) / t of t = x / 1.702, which comes close to a sigmoid of x."""
    return Operator(
        op_type,
        DIALECT,
        body=body,
        scales=scales_sigmoid,
        emit=emit_sigmoid,
        permute=free_permute,
        elementwise=sigmoid_numbers,
        saturates_at=SIGMOID_END,
        # TFLite has no ERF.
        stand_in="Sigmoid",
    )


def _cubic_gate(op_type: str, body: str) -> Operator:
    """A gate of GELU: Gelu(t) / t of t = x / CUBIC_SLOPE."""
    return Operator(
        op_type,
        DIALECT,
        body=body,
        scales=scales_sigmoid,
        emit=emit_cubic,
        permute=free_permute,
        elementwise=cubic_numbers,
        saturates_at=CUBIC_END,
    )


OPERATORS = (
    Operator(
        "Relu",
        refuse=refuse_clamp,
        scales=scales_clamp,
        emit=emit_clamp,
        absorbed=is_absorbed,
        permute=free_permute,
        ties=same_channels,
        elementwise=clamp_numbers,
    ),
    Operator(
        "Clip",
        refuse=refuse_clamp,
        scales=scales_clamp,
        emit=emit_clamp,
        absorbed=is_absorbed,
        permute=free_permute,
        elementwise=clamp_numbers,
    ),
    Operator("LeakyRelu", lower=lower_leaky_relu),
    Operator(
        "PRelu",
        lower=lower_prelu,
        refuse=refuse_prelu,
        emit=emit_prelu,
        permute=permute_constants,
        ties=same_channels,
    ),
    Operator("HardSigmoid", lower=lower_hard_sigmoid),
    Operator("HardSwish", lower=lower_hard_swish),
    Operator("Swish", lower=lower_swish),
    Operator("Gelu", lower=lower_gelu),
    # (1 + erf(t / sqrt 2)) / 2
    _gate(
        "GeluGate",
        """
    GeluGate (x) => (y) {
        width = Constant <value_float = 2.4069913> ()
        half = Constant <value_float = 0.5> ()
        scaled = Div (x, width)
        erf = Erf (scaled)
        part = Mul (erf, half)
        y = Add (part, half)
    }""",
    ),
    # (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))) / 2
    _gate(
        "TanhGeluGate",
        """
    TanhGeluGate (x) => (y) {
        width = Constant <value_float = 1.702> ()
        linear = Constant <value_float = 0.7978846> ()
        cubic = Constant <value_float = 0.0356774> ()
        half = Constant <value_float = 0.5> ()
        t = Div (x, width)
        square = Mul (t, t)
        bend = Mul (square, cubic)
        slope = Add (bend, linear)
        inner = Mul (t, slope)
        tanh = Tanh (inner)
        part = Mul (tanh, half)
        y = Add (part, half)
    }""",
    ),
    # (1 + erf(t / sqrt 2)) / 2
    _cubic_gate(
        "CubicGeluGate",
        """
    CubicGeluGate (x) => (y) {
        width = Constant <value_float = 0.5865739> ()
        half = Constant <value_float = 0.5> ()
        scaled = Div (x, width)
        erf = Erf (scaled)
        part = Mul (erf, half)
        y = Add (part, half)
    }""",
    ),
    # (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))) / 2, which is the sigmoid itself
    _cubic_gate(
        "CubicTanhGeluGate",
        """
    CubicTanhGeluGate (x) => (y) {
        shift = Constant <value_float = 3.8473553> ()
        square = Mul (x, x)
        bend = Add (square, shift)
        inner = Mul (x, bend)
        y = Sigmoid (inner)
    }""",
    ),
    Operator(
        "Sigmoid",
        scales=scales_sigmoid,
        emit=emit_sigmoid,
        permute=free_permute,
        elementwise=sigmoid_numbers,
        saturates_at=SIGMOID_END,
    ),
    Operator(
        "Tanh",
        scales=scales_tanh,
        emit=emit_tanh,
        permute=free_permute,
        saturates_at=TANH_END,
    ),
)
