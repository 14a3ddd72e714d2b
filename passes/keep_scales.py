"""Keep the int8 scales that a quantized model brings.

    DequantizeLinear(QuantizeLinear(x, s, z), s, z)   ->   edgetpu.FakeQuantize(x, s, z)
    DequantizeLinear(int8 weights, s, 0)              ->   float weights that remember s

A FakeQuantize computes what the pair computes, and prescribes the scale of x. Weights remember the
grid that they came on, one scale in all or one for each row or column, so that quantizing them
again gives the same int8 numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    COLUMN_GRID,
    DIALECT,
    GRID,
    Builder,
    Names,
    array_of,
    attribute_of,
    axis_of,
    constant_of,
    float32_nodes,
    input_at,
    is_constant,
    key_of,
    produced_by,
    replace_node,
    scalar_of,
    shape_of,
)
from compiler.ops import dialect
from passes.context import PassContext
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    if not any(node.op_type == "DequantizeLinear" for node in model.graph):
        return
    dialect.declare(model)
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) != ("", "DequantizeLinear"):
            continue
        b = Builder(model, names, node)
        if all(is_constant(value) for value in node.inputs):
            _dequantize(node, b, context)
        else:
            _join_pair(node, b, context)
    tidy(model)


def _join_pair(node: ir.Node, b: Builder, context: PassContext) -> None:
    quantize = produced_by(node.inputs[0], "QuantizeLinear")
    if quantize is None:
        return
    reason = _difference(quantize, node)
    if reason is not None:
        context.missed(node, reason, fitted=2)
        return
    inputs = [quantize.inputs[0], *node.inputs[1:3]]
    b.replace(b.op("FakeQuantize", inputs, domain=DIALECT))
    context.matched(node)


def _difference(quantize: ir.Node, dequantize: ir.Node) -> str | None:
    """Why the second does not undo the first with one scale and an 8-bit zero point."""
    if len(dequantize.inputs) < 3 or len(quantize.inputs) < 3:
        return "it has no zero point"
    zero_point = dequantize.inputs[2]
    assert zero_point is not None
    if zero_point.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return "it is not of 8 bits"
    given = [scalar_of(quantize.inputs[index]) for index in (1, 2)]
    taken = [scalar_of(dequantize.inputs[index]) for index in (1, 2)]
    if None in given or None in taken:
        return "it has several scales"
    return None if given == taken else "it has other scales than its QuantizeLinear"


def _dequantize(node: ir.Node, b: Builder, context: PassContext) -> None:
    """Compute float weights. With zero point 0, and one scale or one per row or column, they
    remember it."""
    source, scale_value = node.inputs[:2]
    assert source is not None and scale_value is not None
    if attribute_of(node, "block_size", 0):
        context.missed(node, "its scales are per block")
        return
    if source.dtype is None or source.dtype.itemsize < 1:
        context.missed(node, "it has less than 8 bits")
        return
    shape, scale = shape_of(source), array_of(scale_value)
    axis = axis_of(int(attribute_of(node, "axis", 1)), max(len(shape), 1))
    along = [1] * len(shape)
    if scale.size > 1:
        along[axis] = -1
    zero = constant_of(input_at(node, 2))
    offset = np.float32(0) if zero is None else zero.astype(np.float32).reshape(along)
    array = (array_of(source).astype(np.float32) - offset) * scale.reshape(along)
    value = b.const(array.astype(np.float32), f"{source.name}/float")
    for key, place in ((GRID, 0), (COLUMN_GRID, 1)):
        per_place = scale.size == 1 or axis == place
        if per_place and place < len(shape) and not np.any(offset):
            value.meta[key] = np.broadcast_to(scale.reshape(-1), shape[place])
    replace_node(node, [value])
    context.matched(node)
