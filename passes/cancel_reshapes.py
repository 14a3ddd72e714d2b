"""Reshapes in a row become one; a Reshape moves behind an operator that does not look at shapes.

Relu(Reshape(Conv2D))  ->  Reshape(Relu(Conv2D))
Reshape(Reshape(x))    ->  Reshape(x), or x
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
    rewrite_until_stable(model, lambda node, b: _merge(node, b) or _sink(node, b))


def _merge(node: ir.Node, b: Builder) -> bool:
    if key_of(node) != ("", "Reshape"):
        return False
    source, wanted = node.inputs[0], shape_of(node.outputs[0])
    assert source is not None
    if shape_of(source) == wanted and not (
        node.outputs[0].is_graph_output() and source.is_graph_input()
    ):
        b.replace(source)
        return True
    before = produced_by(source, "Reshape")
    if before is None:
        return False
    assert before.inputs[0] is not None
    b.replace(b.reshape(before.inputs[0], wanted))
    return True


def _sink(node: ir.Node, b: Builder) -> bool:
    operator = lookup(node)
    if operator is None or operator.permute is not free_permute:
        return False
    before = produced_by(node.inputs[0], "Reshape")
    if before is None or only_consumer(before.outputs[0]) is not node:
        return False
    inner = b.op(node.op_type, [before.inputs[0], *node.inputs[1:]], node.attributes, node.domain)
    b.replace(b.reshape(inner, shape_of(node.outputs[0])))
    return True
