"""Rotate the outputs of matrix products between host operators, so that none has values far larger
than its others.

    W x + c   =   Q^T ((Q W) x + Q c)      with an orthogonal Q

exactly. int8 ranges have to hold the largest value of a channel; mixed with its neighbours it is
nearer to the others (compiler/rotation.py). The host multiplies by Q^T, which takes time: so this
is done where asked for (`--with rotate_outputs`).
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import Builder, Names, rows_of, shape_of
from compiler.quantize.rotation import block_rotation, rotate_output_blocks
from passes.context import PassContext
from passes.fold_constants import tidy
from passes.normalise_linears import groups
from passes.rotate_rows import rotated


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in [node for nodes in groups(model.graph, context.target) for node in nodes]:
        x, weight, bias = node.inputs
        rotation = block_rotation(shape_of(weight)[0])
        if x is None or weight is None or bias is None or rotation is None:
            continue
        b = Builder(model, names, node)
        parameters = []
        for value in (weight, bias):
            read = rotate_output_blocks(lambda rows, value=value: rows_of(value, rows), rotation)  # type: ignore[misc]
            parameters.append(b.by_rows(read, shape_of(value), f"{value.name}/mixed"))
        y = b.op(node.op_type, [x, *parameters], node.attributes, node.domain)
        b.replace(rotated(b, y, rotation.T))
    tidy(model)
