"""Add each row of a normalised product at half its size, for outputs of twice the resolution.

    z = FullyConnected(x, W, c)
        ->  u, v = Split(FullyConnected(Concat(x, x / 2), W, c))
            z = Where(|u| < 1, u, 2 v - c)                               on the host

exactly. int8 ranges of outputs have to hold the few that are far larger than the others; here the
range needs to hold v only, and most outputs are read from u, in steps half as large. A row costs
the Edge TPU little beside weights that are streamed to it, as in decode of language models, but as
much as the first where weights stay in the SRAM: so this pass is optional.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import DIALECT, HOST_REASON, Builder, Names, element_count, shape_of
from compiler.ops.matmul import linear
from compiler.quantize.balance import LARGEST_STEP
from compiler.quantize.products import products
from passes.context import PassContext
from passes.fold_constants import tidy

REASON = "it feeds and reads a linear layer by two rows for one"


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for product in products(model.graph).values():
        node = product.z.producer()
        assert node is not None
        if not product.has_unit_rows or not context.takes(node):
            continue
        b = Builder(model, names, node)
        b.replace(_from_two_rows(node, b))
        for value in b.made:
            made = value.producer()
            if made is not None and made.domain != DIALECT:
                made.metadata_props[HOST_REASON] = REASON
        context.matched(node)
    tidy(model)


def _from_two_rows(node: ir.Node, b: Builder) -> ir.Value:
    x, weight, shift = node.inputs
    assert x is not None and weight is not None and shift is not None
    outputs, inputs = shape_of(weight)[:2]
    rows = element_count(x) // inputs
    hint = f"{weight.name}/rows"
    matrix = b.lazy_rows(weight, lambda w: w.reshape(len(w), -1), (outputs, inputs), hint)
    row = b.reshape(x, (rows, inputs))
    small = b.op("Mul", [row, b.scalar(0.5, "half")])
    both = b.op("Concat", [row, small], {"axis": 0})
    made = linear(b, both, matrix, shift, (1, 1, 2 * rows, outputs))
    sizes = b.const(np.array([rows, rows], np.int64), "sizes")
    whole, half = b.ops("Split", [made, sizes], {"axis": 2}, outputs=2)
    inside = b.op("Less", [b.op("Abs", [whole]), b.scalar(LARGEST_STEP, "largest")])
    doubled = b.op("Sub", [b.op("Mul", [half, b.scalar(2.0, "two")]), shift])
    z = b.op("Where", [inside, whole, doubled])
    return b.reshape(z, shape_of(node.outputs[0]))
