"""Rotate the outputs of matrix products between host operators, to spread those that are large.

    W x + c   ->   Q^T ((Q W) x + Q c)      with an orthogonal Q

exactly, as Q^T Q = 1. int8 ranges have to hold the largest value of a channel; mixed with its
neighbours it is nearer to the others (compiler/quantize/rotation.py). The host multiplies by Q^T,
which takes time, so this pass is optional.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import Builder, Names, rows_of, shape_of
from compiler.quantize.rotation import block_rotation, rotate_output_blocks
from passes.context import PassContext
from passes.fold_constants import tidy
from passes.normalise_linears import groups
from passes.rotate_rows import rotated


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for nodes in groups(model.graph, context.target):
        for node in nodes:
            if context.takes(node):
                _rotate(node, Builder(model, names, node), context)
    tidy(model)


def _rotate(node: ir.Node, b: Builder, context: PassContext) -> None:
    x, weight, bias = node.inputs
    assert weight is not None and bias is not None
    outputs = shape_of(weight)[0]
    rotation = block_rotation(outputs)
    if x is None or rotation is None:
        context.missed(node, f"no power of two worth a rotation divides {outputs} outputs")
        return
    parameters = [_mixed(b, weight, rotation), _mixed(b, bias, rotation)]
    y = b.op(node.op_type, [x, *parameters], node.attributes, node.domain)
    b.replace(rotated(b, y, rotation.T))
    context.matched(node)


def _mixed(b: Builder, value: ir.Value, rotation: np.ndarray) -> ir.Value:
    """Q W, or Q c, row by row as they are needed."""

    def own_rows(rows: slice) -> np.ndarray:
        return rows_of(value, rows)

    read = rotate_output_blocks(own_rows, rotation)
    return b.by_rows(read, shape_of(value), f"{value.name}/mixed")
