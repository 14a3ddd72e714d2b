"""Rotate the rows of matrix products between host operators, to spread channels that are large.

    W x + c   ->   (W Q^T) (Q x) + c      with an orthogonal Q

exactly, as Q^T Q = 1. A channel that is far larger than the others takes the int8 range for itself;
mixed with its neighbours by Q, all are alike (compiler/quantize/rotation.py). The host multiplies
rows by Q, in blocks; products of the same rows share that.
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
        x, weight = nodes[0].inputs[:2]
        channels = shape_of(weight)[1]
        rotation = block_rotation(channels)
        if x is None or rotation is None:
            context.missed(nodes[0], f"no power of two worth a rotation divides {channels} inputs")
            continue
        b = Builder(model, names, nodes[0])
        rows = rotated(b, x, rotation)
        for node in nodes:
            weight = node.inputs[1]
            assert weight is not None
            node.replace_input_with(0, rows)
            node.replace_input_with(1, _rotated_back(b, weight, rotation))
            context.matched(node)
    tidy(model)


def rotated(b: Builder, x: ir.Value, rotation: np.ndarray) -> ir.Value:
    """Q x for each row, computed on the host."""
    reshape = produced_by(x, "Reshape")
    source = reshape.inputs[0] if reshape is not None and reshape.inputs[0] is not None else x
    blocks = b.reshape(source, (element_count(x) // len(rotation), len(rotation)))
    product = b.op("MatMul", [blocks, b.const(rotation.T.copy(), "rotation")])
    made = product.producer()
    assert made is not None
    made.metadata_props[HOST_REASON] = REASON
    return b.reshape(product, shape_of(x))


def _rotated_back(b: Builder, weight: ir.Value, rotation: np.ndarray) -> ir.Value:
    """W Q^T, for W of [N, K] or [N, K, 1, 1]."""

    def read(rows: slice) -> np.ndarray:
        return rotate_blocks(rows_of(weight, rows), rotation)

    return b.by_rows(read, shape_of(weight), f"{weight.name}/turned")
