"""Fold a Transpose in front of a flattened dense layer into the order of its weights.

    FullyConnected(Reshape(Transpose(x)), W)   ->   FullyConnected(Reshape(x), W')

Networks flatten images in NCHW in front of their first dense layer; here they are in NHWC, and the
Transpose between would run on the host. The columns of W' are those of W in the order of x. All
readers of the flattened value must be such layers, else it would be needed in both orders.
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
        transpose = produced_by(node.inputs[0], "Transpose") if node.inputs else None
        if key_of(node) == ("", "Reshape") and transpose is not None:
            _fold(node, transpose, Builder(model, names, node), context)
    tidy(model)


def _fold(reshape: ir.Node, transpose: ir.Node, b: Builder, context: PassContext) -> None:
    flat = reshape.outputs[0]
    readers = consumers_of(flat)
    layers = [reader for reader in readers if _is_layer_of(flat, reader)]
    others = [reader for reader in readers if reader not in layers]
    if not layers:
        return
    if others or flat.is_graph_output():
        context.missed(reshape, "not only dense layers read what it flattens", fitted=3)
        return
    shape = shape_of(reshape.inputs[0])
    if any(shape_of(layer.inputs[1])[1] != math.prod(shape) for layer in layers):
        return  # it does more than flatten
    # Rows of weights in the transposed shape go back to that of the source.
    back = [0, *(int(axis) + 1 for axis in np.argsort(permutation(transpose)))]

    def reorder(weights: np.ndarray) -> np.ndarray:
        images = weights.reshape(len(weights), *shape)
        return images.transpose(back).reshape(len(weights), -1)

    for layer in layers:
        weight = layer.inputs[1]
        assert weight is not None
        hint = f"{weight.name}/nhwc"
        layer.replace_input_with(1, b.lazy_rows(weight, reorder, shape_of(weight), hint))
    source = transpose.inputs[0]
    assert source is not None
    # Not marked as made by the builder: in another order, it must not take the old name.
    replace_node(reshape, [b.reshape(source, shape_of(flat))])
    context.matched(reshape)


def _is_layer_of(x: ir.Value, node: ir.Node) -> bool:
    return operator_name(node) == "edgetpu.FullyConnected" and node.inputs[0] is x
