"""MatMul and Gemm with constant weights: FULLY_CONNECTED for one row, a 1x1 CONV_2D for several.

FULLY_CONNECTED gives one-dimensional output on the Edge TPU, so S rows of K inputs become an image
[1, 1, S, K].
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    Shape,
    attribute_of,
    constant_of,
    input_at,
    is_constant,
    key_of,
    only_consumer,
    replace_node,
    shape_of,
)
from compiler.ops.common import Operator, RefuseError
from compiler.ops.conv import zero_bias
from compiler.ops.rules import Builtin, OpInfo, Rule, Work, constant
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target
from compiler.targets.memory import stored_outputs, up


def lower_matmul(node: ir.Node, b: Builder) -> None:
    x, weight = node.inputs
    assert x is not None and weight is not None
    if not is_constant(weight):
        both = "both operands are" if not is_constant(x) else "its right operand is"
        raise RefuseError(
            f"{both} computed at run time; the Edge TPU multiplies by constant weights only"
        )
    if len(shape_of(weight)) != 2:
        raise RefuseError(
            f"its weights {list(shape_of(weight))} are a batch of matrices; the Edge TPU takes one"
        )
    outputs = shape_of(weight)[1]
    rows = b.transposed(weight)
    add, bias = _bias_after(node, outputs)
    y = linear(b, x, rows, bias or zero_bias(b, outputs, weight), shape_of(node.outputs[0]))
    if add is not None:
        replace_node(add, [y], b.made)
        b.graph.remove(node, safe=True)
    else:
        b.replace(y)


def _bias_after(node: ir.Node, outputs: int) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a constant row that follows a MatMul, and the row."""
    add = only_consumer(node.outputs[0])
    if add is None or key_of(add) != ("", "Add"):
        return None, None
    row = next((v for v in add.inputs if is_constant(v)), None)
    return (add, row) if row is not None and shape_of(row) == (outputs,) else (None, None)


def lower_gemm(node: ir.Node, b: Builder) -> None:
    x, weight, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    assert x is not None and weight is not None
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        raise RefuseError("its weights are computed at run time; the Edge TPU needs them constant")
    if attribute_of(node, "transA", 0):
        raise RefuseError("it transposes its input (transA)")
    alpha, beta = float(attribute_of(node, "alpha", 1.0)), float(attribute_of(node, "beta", 1.0))
    flip = not attribute_of(node, "transB", 0)
    outputs, inputs = shape_of(weight)[::-1] if flip else shape_of(weight)
    if flip:
        weight = b.transposed(weight)
    if alpha != 1.0:
        weight = b.lazy_rows(
            weight, lambda w: w * np.float32(alpha), (outputs, inputs), f"{weight.name}/alpha"
        )
    if bias is None:
        bias = zero_bias(b, outputs, weight)
    else:
        array = constant_of(bias)
        assert array is not None
        if array.size not in (1, outputs) or (array.ndim == 2 and array.shape[0] != 1):
            raise RefuseError(f"its bias {list(array.shape)} differs from row to row")
        bias = b.const(
            np.broadcast_to(array.reshape(-1) * np.float32(beta), (outputs,)), f"{bias.name}/row"
        )
    b.replace(linear(b, x, weight, bias, shape_of(node.outputs[0])))


def linear(b: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value, out: Shape) -> ir.Value:
    """`x @ weight.T + bias` over the last axis of x, result in shape `out`."""
    outputs, inputs = shape_of(weight)
    count = math.prod(shape_of(x)[:-1])
    if count == 1:
        y = b.op("FullyConnected", [b.reshape(x, (1, inputs)), weight, bias], domain=DIALECT)
        return b.reshape(y, out)
    kernel = b.lazy_rows(
        weight, lambda w: w[:, :, None, None], (outputs, inputs, 1, 1), f"{weight.name}/1x1"
    )
    attributes = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    y = b.op("Conv2D", [b.reshape(x, (1, 1, count, inputs)), kernel, bias], attributes, DIALECT)
    return b.reshape(y, out)


def emit(node: ir.Node, w: Writer) -> None:
    filters, biases = w.filters(node, (0, 1))
    options = {"fusedActivationFunction": 0, "keepNumDims": False}
    w.add(
        "FULLY_CONNECTED",
        4,
        [w.tensor(node.inputs[0]), filters, biases],
        [w.tensor(node.outputs[0])],
        options,
    )


def _rows(op: OpInfo, target: Target) -> str | None:
    shape = op.outputs[0].shape
    return f"it has {math.prod(shape[:-1])} rows" if math.prod(shape[:-1]) != 1 else None


def layer(op: OpInfo) -> Layer:
    weights = op.inputs[1]
    assert weights is not None
    outputs, inputs = weights.shape
    return Layer("dense", inputs, outputs, 1, weights.scales > 1)


def work(op: OpInfo, target: Target) -> Work:
    own = layer(op)
    padded = up(own.inputs, target.input_multiple) * stored_outputs(own.outputs, target)
    return Work("dense", padded, own.inputs * own.outputs)


BUILTINS = (
    Builtin(
        "FULLY_CONNECTED",
        4,
        (
            constant(1, "weights"),
            constant(2, "biases"),
            Rule("its output is one row", _rows, "documented"),
        ),
        layer,
        work,
    ),
)

OPERATORS = (
    Operator("MatMul", lower=lower_matmul),
    Operator("Gemm", lower=lower_gemm),
    Operator(
        "FullyConnected",
        DIALECT,
        emit=emit,
    ),
)
