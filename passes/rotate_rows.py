"""Rotate the rows of matrix products between host operators, so that no channel is far larger than the others.

    W x + c   =   (W Q^T) (Q x) + c      with an orthogonal Q

exactly. int8 resolves Q x better than x (compiler/rotation.py). The host multiplies by Q.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.rotation import REASON, block_rotation, turned
from compiler.targets import Target
from passes.fold_constants import tidy
from passes.normalise_linears import groups


def run(model: ir.Model, target: Target) -> None:
    names = cir.Names(model.graph)
    for nodes in groups(model.graph, target):
        x, first = nodes[0].inputs[:2]
        rotation = block_rotation(cir.shape(first)[1])
        if x is None or rotation is None:
            continue
        b = cir.Builder(model, names, nodes[0])
        rows = rotated(b, x, rotation)
        for node in nodes:
            weight = node.inputs[1]
            assert weight is not None
            node.replace_input_with(0, rows)
            node.replace_input_with(1, _turned(b, weight, rotation))
    tidy(model)


def rotated(b: cir.Builder, x: ir.Value, rotation: np.ndarray) -> ir.Value:
    """Q x for each row."""
    reshape = cir.producer(x, "Reshape")
    source = reshape.inputs[0] if reshape is not None and reshape.inputs[0] is not None else x
    blocks = b.reshape(source, (cir.size(x) // len(rotation), len(rotation)))
    product = b.op("MatMul", [blocks, b.const(rotation.T.copy(), "rotation")])
    made = product.producer()
    assert made is not None
    made.metadata_props[cir.HOST] = REASON
    return b.reshape(product, cir.shape(x))


def _turned(b: cir.Builder, weight: ir.Value, rotation: np.ndarray) -> ir.Value:
    """W Q^T, for W of [N, K] or [N, K, 1, 1]."""

    def read(rows: slice) -> np.ndarray:
        return turned(cir.rows_of(weight, rows), rotation)

    return b.by_rows(read, cir.shape(weight), f"{weight.name}/turned")
