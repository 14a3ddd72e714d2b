"""QuantizeLinear/DequantizeLinear pairs that a quantized model brings: int8 scales to keep.

DequantizeLinear(QuantizeLinear(x, s, z), s, z)  ->  edgetpu.FakeQuantize(x, s, z)

DequantizeLinear(int8 weights, s, 0)  ->  float weights that remember s
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.ops import dialect
from compiler.targets import Target
from passes.fold_constants import tidy


def run(model: ir.Model, target: Target) -> None:
    if not any(node.op_type == "DequantizeLinear" for node in model.graph):
        return
    dialect.declare(model)
    names = cir.Names(model.graph)
    for node in cir.float32_nodes(model.graph):
        if cir.key(node) == ("", "DequantizeLinear") and all(cir.is_const(v) for v in node.inputs):
            _fold(node, cir.Builder(model, names, node))
        elif cir.key(node) == ("", "DequantizeLinear") and _is_pair(node):
            quantize = node.inputs[0].producer()  # type: ignore[union-attr]
            assert quantize is not None
            b = cir.Builder(model, names, node)
            b.replace(b.op("FakeQuantize", [quantize.inputs[0], *node.inputs[1:3]], domain=cir.DIALECT))
    tidy(model)


def _is_pair(node: ir.Node) -> bool:
    """Whether the node undoes a QuantizeLinear of one scale and an 8-bit zero point."""
    before = cir.producer(node.inputs[0], "QuantizeLinear")
    if before is None or len(node.inputs) < 3 or len(before.inputs) < 3:
        return False
    numbers = [cir.scalar(n.inputs[i]) for n in (before, node) for i in (1, 2)]
    zero_point = node.inputs[2]
    assert zero_point is not None
    eight_bit = zero_point.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    return numbers[:2] == numbers[2:] and None not in numbers and eight_bit


def _fold(node: ir.Node, b: cir.Builder) -> None:
    """Dequantize a constant. Weights of zero point 0 with one scale in all, or per row or column, remember it."""
    source, scale = node.inputs[0], cir.array_of(node.inputs[1])  # type: ignore[arg-type]
    assert source is not None
    zero = cir.const(cir.arg(node, 2))
    shape, axis = cir.shape(source), cir.axis_of(int(cir.attr(node, "axis", 1)), max(len(cir.shape(source)), 1))
    if cir.attr(node, "block_size", 0) or source.dtype is None or source.dtype.itemsize < 1:
        return
    along = [-1 if i == axis else 1 for i in range(len(shape))] if scale.size > 1 else [1] * len(shape)
    factor, offset = scale.reshape(along), 0 if zero is None else zero.astype(np.float32).reshape(along)
    array = (cir.array_of(source).astype(np.float32) - offset) * factor
    value = b.const(array.astype(np.float32), f"{source.name}/float")
    for key, place in ((cir.GRID, 0), (cir.COLUMN_GRID, 1)):
        if not np.any(offset) and place < len(shape) and (scale.size == 1 or axis == place):
            value.meta[key] = np.broadcast_to(scale.reshape(-1), shape[place])
    cir.bypass(node, [value])
