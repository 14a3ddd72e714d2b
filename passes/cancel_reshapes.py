"""Reshapes in a row become one; a Reshape moves behind an operator that does not look at shapes.

Relu(Reshape(Conv2D))  ->  Reshape(Relu(Conv2D))
Reshape(Reshape(x))    ->  Reshape(x), or x
"""

from __future__ import annotations

import onnx_ir as ir

from compiler import ir as cir
from compiler.ops import lookup
from compiler.ops.common import free_permute
from compiler.targets import Target


def run(model: ir.Model, target: Target) -> None:
    cir.until_stable(model, lambda node, b: _merge(node, b) or _sink(node, b))


def _merge(node: ir.Node, b: cir.Builder) -> bool:
    if cir.key(node) != ("", "Reshape"):
        return False
    source, wanted = node.inputs[0], cir.shape(node.outputs[0])
    assert source is not None
    if cir.shape(source) == wanted and not (node.outputs[0].is_graph_output() and source.is_graph_input()):
        b.replace(source)
        return True
    before = cir.producer(source, "Reshape")
    if before is None:
        return False
    assert before.inputs[0] is not None
    b.replace(b.reshape(before.inputs[0], wanted))
    return True


def _sink(node: ir.Node, b: cir.Builder) -> bool:
    operator = lookup(node)
    if operator is None or operator.permute is not free_permute:
        return False
    before = cir.producer(node.inputs[0], "Reshape")
    if before is None or cir.only_consumer(before.outputs[0]) is not node:
        return False
    inner = b.op(node.op_type, [before.inputs[0], *node.inputs[1:]], node.attributes, node.domain)
    b.replace(b.reshape(inner, cir.shape(node.outputs[0])))
    return True
