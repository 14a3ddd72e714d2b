"""QuantizeLinear/DequantizeLinear pairs that a quantized model brings: int8 scales to keep.

    DequantizeLinear(QuantizeLinear(x, s, z), s, z)  ->  edgetpu.FakeQuantize(x, s, z)

Dequantized constants were folded to float before; their values lie on their old grid.
"""

from __future__ import annotations

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
    for node in list(model.graph):
        if cir.key(node) == ("", "DequantizeLinear") and _is_pair(node):
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
