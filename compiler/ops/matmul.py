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
    array_of,
    attribute_of,
    input_at,
    is_constant,
    key_of,
    only_consumer,
    replace_node,
    shape_of,
)
from compiler.ops.common import Operator, RefuseError
from compiler.ops.conv import stored_layer, zero_bias
from compiler.ops.rules import Builtin, OpInfo, Rule, Work, constant, example, held, rows_of
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target
from compiler.targets.memory import stored_outputs, up


def lower_matmul(node: ir.Node, builder: Builder) -> None:
    """x [..., K] times constant weights [K, N]; a constant row [N] that is added is its bias."""
    x, weight = node.inputs
    assert x is not None and weight is not None
    if not is_constant(weight):
        which = "its right operand is" if is_constant(x) else "both operands are"
        raise RefuseError(
            f"{which} computed at run time; the Edge TPU multiplies by constant weights only"
        )
    if len(shape_of(weight)) != 2:
        raise RefuseError(
            f"its weights {list(shape_of(weight))} are a batch of matrices; the Edge TPU takes one"
        )
    outputs = shape_of(weight)[1]
    rows = builder.transposed(weight)
    add, bias = _bias_after(node, outputs)
    if bias is None:
        bias = zero_bias(builder, outputs, weight)
    y = linear(builder, x, rows, bias, shape_of(node.outputs[0]))
    if add is None:
        builder.replace(y)
        return
    # The layer takes the place of the Add; nothing reads the MatMul any more.
    replace_node(add, [y], builder.made)
    builder.graph.remove(node, safe=True)


def _bias_after(node: ir.Node, outputs: int) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a constant row that follows a MatMul, and the row."""
    add = only_consumer(node.outputs[0])
    if add is None or key_of(add) != ("", "Add"):
        return None, None
    for value in add.inputs:
        if is_constant(value):
            is_row = shape_of(value) == (outputs,)
            return (add, value) if is_row else (None, None)
    return None, None


def lower_gemm(node: ir.Node, builder: Builder) -> None:
    """alpha * x @ weight + beta * bias, with alpha and beta taken into the constants."""
    x, weight, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    assert x is not None and weight is not None
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        raise RefuseError("its weights are computed at run time; the Edge TPU needs them constant")
    if attribute_of(node, "transA", 0):
        raise RefuseError("it transposes its input (transA)")
    # The dialect has output channels first.
    if not attribute_of(node, "transB", 0):
        weight = builder.transposed(weight)
    outputs = shape_of(weight)[0]
    alpha = float(attribute_of(node, "alpha", 1.0))
    if alpha != 1.0:
        weight = builder.lazy_rows(
            weight,
            lambda rows: rows * np.float32(alpha),
            shape_of(weight),
            f"{weight.name}/alpha",
        )
    if bias is None:
        bias = zero_bias(builder, outputs, weight)
    else:
        bias = _bias_row(builder, bias, outputs, float(attribute_of(node, "beta", 1.0)))
    builder.replace(linear(builder, x, weight, bias, shape_of(node.outputs[0])))


def _bias_row(builder: Builder, bias: ir.Value, outputs: int, beta: float) -> ir.Value:
    """beta * bias as a row [outputs]. Raises RefuseError for a bias that has several rows."""
    array = array_of(bias)
    is_row = array.ndim != 2 or array.shape[0] == 1
    if array.size not in (1, outputs) or not is_row:
        raise RefuseError(f"its bias {list(array.shape)} differs from row to row")
    row = np.broadcast_to(array.reshape(-1) * np.float32(beta), (outputs,))
    return builder.const(row, f"{bias.name}/row")


def linear(builder: Builder, x: ir.Value, weight: ir.Value, bias: ir.Value, out: Shape) -> ir.Value:
    """`x @ weight.T + bias` over the last axis of x, result in shape `out`.

    x is [..., K], weight [N, K], bias [N].
    """
    outputs, inputs = shape_of(weight)
    count = math.prod(shape_of(x)[:-1])
    if count == 1:
        # Without the batch that the model may have around it: one row is all that this takes.
        row = builder.reshape(x, (1, inputs))
        y = builder.op("FullyConnected", [row, weight, bias], domain=DIALECT)
        return builder.reshape(y, out)
    kernel = builder.lazy_rows(
        weight, lambda rows: rows[:, :, None, None], (outputs, inputs, 1, 1), f"{weight.name}/1x1"
    )
    attributes = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    image = builder.reshape(x, (1, 1, count, inputs))
    y = builder.op("Conv2D", [image, kernel, bias], attributes, DIALECT)
    return builder.reshape(y, out)


def macs_product(node: ir.Node) -> int:
    """Each output element is a sum over the inner axis."""
    x = shape_of(node.inputs[0])
    inner = x[0] if attribute_of(node, "transA", 0) else x[-1]
    return math.prod(shape_of(node.outputs[0])) * inner


def output_channels(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    if not is_constant(weight):
        return None
    shape = shape_of(weight)
    return shape[0] if attribute_of(node, "transB", 0) else shape[-1]


def emit(node: ir.Node, writer: Writer) -> None:
    filters, biases = writer.filters(node, (0, 1))
    inputs = [writer.tensor(node.inputs[0]), filters, biases]
    options = {"fusedActivationFunction": 0, "keepNumDims": False}
    writer.add("FULLY_CONNECTED", 4, inputs, [writer.tensor(node.outputs[0])], options)


def _one_row(op: OpInfo, target: Target) -> str | None:
    rows = rows_of(op)
    return f"it has {rows} rows" if rows != 1 else None


def _weights_format(op: OpInfo, target: Target) -> str | None:
    kind = op.options.get("weightsFormat", 0)
    return f"format {kind}" if kind else None


def layer(op: OpInfo) -> Layer:
    """The parameters of a fully-connected layer.

    One that reads an image whose channels are no multiple of 4 is stored as a convolution over the
    whole image, which pads the channels at each position.
    """
    weights, x = op.inputs[1], op.inputs[0]
    assert weights is not None and x is not None
    outputs, inputs = weights.shape
    if len(x.shape) == 4 and x.shape[3] % 4 and x.shape[1] * x.shape[2] > 1:
        channels = x.shape[3]
        return stored_layer(op, "conv", channels, outputs, inputs // channels)
    return stored_layer(op, "dense", inputs, outputs, 1)


def work(op: OpInfo, target: Target) -> Work:
    own = layer(op)
    # The device multiplies by the padding of the stored weights too.
    rows = own.taps * up(own.inputs, target.input_multiple)
    padded = rows * stored_outputs(own.outputs, target)
    return Work("dense", padded, own.taps * own.inputs * own.outputs)


def _example(rows: int, **options: int) -> OpInfo:
    biases = held(8, dtype="int32")
    return example("FULLY_CONNECTED", (rows, 16), held(8, 16), biases, (rows, 8), **options)


_RULES = (
    constant(1, "weights", _example(1)),
    constant(2, "biases", _example(1)),
    Rule("its output is one row", _one_row, "documented", _example(1), _example(2)),
    Rule(
        "its weights have the default format",
        _weights_format,
        "documented",
        accepts=_example(1),
        refuses=_example(1, weightsFormat=1),
    ),
)

BUILTINS = (Builtin("FULLY_CONNECTED", 4, _RULES, layer, work),)

OPERATORS = (
    Operator("MatMul", lower=lower_matmul, macs=macs_product, output_channels=output_channels),
    Operator("Gemm", lower=lower_gemm, macs=macs_product, output_channels=output_channels),
    Operator(
        "FullyConnected",
        DIALECT,
        body="""
    FullyConnected (x, w, b) => (y) {
        y = Gemm <transB = 1> (x, w, b)
    }""",
        emit=emit,
        linear="dense",
        macs=macs_product,
    ),
)
