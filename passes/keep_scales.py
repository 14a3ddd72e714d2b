"""QuantizeLinear/DequantizeLinear pairs that a quantized model brings: int8 scales to keep.

DequantizeLinear(QuantizeLinear(x, s, z), s, z)  ->  edgetpu.FakeQuantize(x, s, z)

DequantizeLinear(int8 weights, s, 0)  ->  float weights that remember s
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
        if key_of(node) == ("", "DequantizeLinear") and all(is_constant(v) for v in node.inputs):
            _fold(node, Builder(model, names, node))
        elif key_of(node) == ("", "DequantizeLinear") and _is_pair(node):
            quantize = node.inputs[0].producer()  # type: ignore[union-attr]
            assert quantize is not None
            b = Builder(model, names, node)
            b.replace(b.op("FakeQuantize", [quantize.inputs[0], *node.inputs[1:3]], domain=DIALECT))
    tidy(model)


def _is_pair(node: ir.Node) -> bool:
    """Whether the node undoes a QuantizeLinear of one scale and an 8-bit zero point."""
    before = produced_by(node.inputs[0], "QuantizeLinear")
    if before is None or len(node.inputs) < 3 or len(before.inputs) < 3:
        return False
    numbers = [scalar_of(n.inputs[i]) for n in (before, node) for i in (1, 2)]
    zero_point = node.inputs[2]
    assert zero_point is not None
    eight_bit = zero_point.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    return numbers[:2] == numbers[2:] and None not in numbers and eight_bit


def _fold(node: ir.Node, b: Builder) -> None:
    """Dequantize a constant. Weights of zero point 0 with one scale in all, or per row or column,
    remember it."""
    source, scale = node.inputs[0], array_of(node.inputs[1])  # type: ignore[arg-type]
    assert source is not None
    zero = constant_of(input_at(node, 2))
    shape, axis = (
        shape_of(source),
        axis_of(int(attribute_of(node, "axis", 1)), max(len(shape_of(source)), 1)),
    )
    if attribute_of(node, "block_size", 0) or source.dtype is None or source.dtype.itemsize < 1:
        return
    along = (
        [-1 if i == axis else 1 for i in range(len(shape))] if scale.size > 1 else [1] * len(shape)
    )
    factor, offset = (
        scale.reshape(along),
        0 if zero is None else zero.astype(np.float32).reshape(along),
    )
    array = (array_of(source).astype(np.float32) - offset) * factor
    value = b.const(array.astype(np.float32), f"{source.name}/float")
    for key, place in ((GRID, 0), (COLUMN_GRID, 1)):
        if not np.any(offset) and place < len(shape) and (scale.size == 1 or axis == place):
            value.meta[key] = np.broadcast_to(scale.reshape(-1), shape[place])
    replace_node(node, [value])
