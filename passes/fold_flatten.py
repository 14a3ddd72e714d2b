"""A Transpose that is flattened into a fully-connected layer becomes an order of the layer's
inputs.

FullyConnected(Reshape(Transpose(x)), W)   ->   FullyConnected(Reshape(x), W')
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    consumers_of,
    float32_nodes,
    key_of,
    operator_name,
    produced_by,
    replace_node,
    shape_of,
)
from compiler.ops.transpose import permutation
from passes.context import PassContext
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "Reshape") and produced_by(node.inputs[0], "Transpose") is not None:
            _fold(node, Builder(model, names, node))
    tidy(model)


def _fold(node: ir.Node, b: Builder) -> None:
    before = produced_by(node.inputs[0], "Transpose")
    assert before is not None
    source, flat = before.inputs[0], node.outputs[0]
    users = consumers_of(flat)
    assert source is not None
    if (
        flat.is_graph_output()
        or not users
        or any(operator_name(u) != "edgetpu.FullyConnected" for u in users)
    ):
        return
    perm, shape = permutation(before), shape_of(node.inputs[0])
    back = [0, *(int(i) + 1 for i in np.argsort(perm))]
    for user in users:
        weight = user.inputs[1]
        assert weight is not None
        outputs, inputs = shape_of(weight)
        if inputs != math.prod(shape):
            return

        def reorder(w: np.ndarray) -> np.ndarray:
            return w.reshape(len(w), *shape).transpose(back).reshape(len(w), -1)

        user.replace_input_with(
            1, b.lazy_rows(weight, reorder, (outputs, inputs), f"{weight.name}/nhwc")
        )
    replace_node(node, [b.reshape(source, shape_of(flat))])  # another order, so another name
