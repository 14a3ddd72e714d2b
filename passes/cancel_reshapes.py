"""Join Reshapes in a row; move one behind an operator that does not look at shapes.

    Relu(Reshape(Conv2D))    ->   Reshape(Relu(Conv2D))
    Reshape(Reshape(x))      ->   Reshape(x), or x

Moved behind, a Reshape meets the next one, and an activation meets the layer that can absorb it.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    Builder,
    key_of,
    only_consumer,
    produced_by,
    rewrite_until_stable,
    shape_of,
)
from compiler.ops import lookup
from compiler.ops.common import free_permute
from passes.context import PassContext


def run(model: ir.Model, context: PassContext) -> None:
    for node in rewrite_until_stable(model, lambda node, b: _merge(node, b) or _sink(node, b)):
        context.matched(node)


def _merge(node: ir.Node, b: Builder) -> bool:
    """Drop a Reshape that changes nothing, and one in front of another."""
    if key_of(node) != ("", "Reshape"):
        return False
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    # An input cannot be an output of the model at once.
    passes_input_on = result.is_graph_output() and source.is_graph_input()
    if shape_of(source) == shape_of(result) and not passes_input_on:
        b.replace(source)
        return True
    before = produced_by(source, "Reshape")
    if before is None:
        return False
    assert before.inputs[0] is not None
    b.replace(b.reshape(before.inputs[0], shape_of(result)))
    return True


def _sink(node: ir.Node, b: Builder) -> bool:
    """Apply an elementwise operator in front of a Reshape that it alone reads."""
    operator = lookup(node)
    if operator is None or operator.permute is not free_permute:
        return False
    before = produced_by(node.inputs[0], "Reshape")
    if before is None or only_consumer(before.outputs[0]) is not node:
        return False
    inner = b.op(node.op_type, [before.inputs[0], *node.inputs[1:]], node.attributes, node.domain)
    b.replace(b.reshape(inner, shape_of(node.outputs[0])))
    return True
