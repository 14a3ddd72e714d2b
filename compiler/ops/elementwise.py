"""Add, Sub, Mul, Div, Min, Max and what is written with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    activations_of,
    array_of,
    constant_of,
    element_count,
    is_constant,
    scalar_of,
)
from compiler.ops.common import (
    ChannelTie,
    Function,
    Operator,
    Refusal,
    RefuseError,
    same_channels,
    same_scale,
)
from compiler.ops.rules import Builtin, OpInfo, Work, elements, four_dimensions
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target

_BUILTIN = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Min": "MINIMUM", "Max": "MAXIMUM"}


def permute_constants(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    """Constants that broadcast against a permuted tensor are permuted the other way round."""
    inverse = np.argsort(perm)
    for index, value in enumerate(node.inputs):
        if value is None or not is_constant(value) or element_count(value) == 1:
            continue
        array = array_of(value)
        # Broadcasting adds axes in front.
        missing = len(perm) - array.ndim
        full = array.reshape((1,) * missing + array.shape)
        node.replace_input_with(
            index, builder.const(full.transpose(inverse), f"{value.name}/permuted")
        )


def refuse(node: ir.Node, target: Target) -> Refusal:
    if len(node.inputs) != 2:
        return f"it has {len(node.inputs)} operands; the Edge TPU takes two"
    return None


def ties_product(node: ir.Node) -> list[ChannelTie] | None:
    """Of a product with a constant; that of two activations is for compiler/quantize/equalise.py to
    settle."""
    return same_channels(node) if len(activations_of(node)) == 1 else None


def plus_number(node: ir.Node) -> Function | None:
    number = _only_number(node)
    if number is None:
        return None
    return lambda t: t + number


def times_number(node: ir.Node) -> Function | None:
    number = _only_number(node)
    if number is None:
        return None
    return lambda t: t * number


def _only_number(node: ir.Node) -> float | None:
    """The one input that is a constant of one element."""
    numbers = [scalar_of(value) for value in node.inputs]
    found = [number for number in numbers if number is not None]
    return found[0] if len(found) == 1 else None


def emit_arithmetic(node: ir.Node, writer: Writer) -> None:
    """ADD, SUB, MUL: each operand has its own scale."""
    operands = [writer.operand(value) for value in node.inputs if value is not None]
    options = {"fusedActivationFunction": 0}
    writer.add(_BUILTIN[node.op_type], 2, operands, [writer.tensor(node.outputs[0])], options)


def emit_comparison(node: ir.Node, writer: Writer) -> None:
    """MINIMUM, MAXIMUM: all operands have the scale of the result."""
    y = node.outputs[0]
    operands = [writer.operand(value, y) for value in node.inputs if value is not None]
    writer.add(_BUILTIN[node.op_type], 2, operands, [writer.tensor(y)])


def lower_chain(node: ir.Node, builder: Builder) -> None:
    """Operators of any number of operands, two at a time."""
    op_type = "Add" if node.op_type == "Sum" else node.op_type
    values = [value for value in node.inputs if value is not None]
    if len(values) == 2 and op_type == node.op_type:
        # It is what the Edge TPU has.
        return
    y = values[0]
    for value in values[1:]:
        y = builder.op(op_type, [y, value])
    builder.replace(y)


def lower_div(node: ir.Node, builder: Builder) -> None:
    """Division by a constant is multiplication by its inverse."""
    x, divisor = node.inputs
    array = constant_of(divisor)
    assert x is not None and divisor is not None
    if array is None:
        raise RefuseError("its divisor is computed at run time; the Edge TPU has no DIV")
    # Division of integers cuts off.
    if x.dtype != ir.DataType.FLOAT:
        raise RefuseError("it divides integers")
    with np.errstate(divide="ignore"):
        inverse = (1 / array).astype(np.float32)
    if not np.isfinite(inverse).all():
        raise RefuseError("its constant divisor holds a zero")
    builder.replace(builder.op("Mul", [x, builder.const(inverse, f"{divisor.name}/inverse")]))


def lower_neg(node: ir.Node, builder: Builder) -> None:
    (x,) = node.inputs
    if x is None or x.dtype != ir.DataType.FLOAT:
        raise RefuseError("it negates integers")
    builder.replace(builder.op("Mul", [x, builder.scalar(-1.0, "minus_one")]))


def lower_pow(node: ir.Node, builder: Builder) -> None:
    x, exponent = node.inputs
    if x is None or x.dtype != ir.DataType.FLOAT or scalar_of(exponent) != 2:
        raise RefuseError(
            "the Edge TPU has no POW; only the constant exponent 2 can be a multiplication"
        )
    builder.replace(builder.op("Mul", [x, x]))


def layer(op: OpInfo) -> Layer | None:
    """The constant operand of ADD, SUB or MUL, which is sent at each inference and never cached. A
    single number takes no memory."""
    constants = [tensor for tensor in op.inputs if tensor is not None and tensor.constant]
    if len(constants) != 1 or constants[0].elements == 1:
        return None
    (constant,) = constants
    channels = op.outputs[0].shape[-1]
    if constant.elements == channels == constant.shape[-1]:
        return Layer("channelwise", 1, channels)
    return Layer("elementwise", 1, constant.elements)


def work(op: OpInfo, target: Target) -> Work:
    """Elements; a constant for each channel slows the device down."""
    own = layer(op)
    if own is not None and own.kind == "channelwise":
        return Work("broadcast", op.outputs[0].elements)
    return elements(op, target)


_RULES = (four_dimensions("ADD"),)

BUILTINS = (
    Builtin("ADD", 2, _RULES, layer, work),
    Builtin("SUB", 2, _RULES, layer, work),
    Builtin("MUL", 2, _RULES, layer, work),
    Builtin("MINIMUM", 2, _RULES, table="MaximumMinimumOptions"),
    Builtin("MAXIMUM", 2, _RULES, table="MaximumMinimumOptions"),
)

OPERATORS = (
    Operator(
        "Add",
        refuse=refuse,
        emit=emit_arithmetic,
        permute=permute_constants,
        ties=same_channels,
        combines="sum",
        elementwise=plus_number,
    ),
    Operator(
        "Sub",
        refuse=refuse,
        emit=emit_arithmetic,
        permute=permute_constants,
        ties=same_channels,
        combines="sum",
    ),
    Operator(
        "Mul",
        refuse=refuse,
        emit=emit_arithmetic,
        permute=permute_constants,
        ties=ties_product,
        combines="product",
        elementwise=times_number,
    ),
    Operator(
        "Min",
        lower=lower_chain,
        refuse=refuse,
        scales=same_scale,
        emit=emit_comparison,
        permute=permute_constants,
    ),
    Operator(
        "Max",
        lower=lower_chain,
        refuse=refuse,
        scales=same_scale,
        emit=emit_comparison,
        permute=permute_constants,
    ),
    Operator("Sum", lower=lower_chain),
    Operator("Div", lower=lower_div),
    Operator("Neg", lower=lower_neg),
    Operator("Pow", lower=lower_pow),
)
