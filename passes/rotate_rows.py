"""Rotate the rows of matrix products between host operators, so that no channel is far larger than
the others.

    W x + c   =   (W Q^T) (Q x) + c      with an orthogonal Q

exactly. int8 resolves Q x better than x (compiler/rotation.py). The host multiplies by Q.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    HOST_REASON,
    Builder,
    Names,
    element_count,
    produced_by,
    rows_of,
    shape_of,
)
from compiler.quantize.rotation import REASON, block_rotation, rotate_blocks
from passes.context import PassContext
from passes.fold_constants import tidy
from passes.normalise_linears import groups


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for nodes in groups(model.graph, context.target):
        x, first = nodes[0].inputs[:2]
        rotation = block_rotation(shape_of(first)[1])
        if x is None or rotation is None:
            continue
        b = Builder(model, names, nodes[0])
        rows = rotated(b, x, rotation)
        for node in nodes:
            weight = node.inputs[1]
            assert weight is not None
            node.replace_input_with(0, rows)
            node.replace_input_with(1, _turned(b, weight, rotation))
    tidy(model)


def rotated(b: Builder, x: ir.Value, rotation: np.ndarray) -> ir.Value:
    """Q x for each row."""
    reshape = produced_by(x, "Reshape")
    source = reshape.inputs[0] if reshape is not None and reshape.inputs[0] is not None else x
    blocks = b.reshape(source, (element_count(x) // len(rotation), len(rotation)))
    product = b.op("MatMul", [blocks, b.const(rotation.T.copy(), "rotation")])
    made = product.producer()
    assert made is not None
    made.metadata_props[HOST_REASON] = REASON
    return b.reshape(product, shape_of(x))


def _turned(b: Builder, weight: ir.Value, rotation: np.ndarray) -> ir.Value:
    """W Q^T, for W of [N, K] or [N, K, 1, 1]."""

    def read(rows: slice) -> np.ndarray:
        return rotate_blocks(rows_of(weight, rows), rotation)

    return b.by_rows(read, shape_of(weight), f"{weight.name}/turned")
