"""Recognise HardSigmoid and HardSwish in the Clip that older exporters write.

    Clip(x + 3, 0, 6) / 6          ->  HardSigmoid(x, alpha=1/6, beta=1/2)
    x * Clip(x + 3, 0, 6) / 6      ->  HardSwish(x)
    x * HardSigmoid(x)             ->  HardSwish(x)

Exporters of older opsets and of Paddle write them so, with factors in any order. By
name, one rule lowers all spellings (compiler/ops/activation.py).
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    float32_nodes,
    is_constant,
    is_near,
    produced_by,
    product_of,
    scalar_of,
)
from compiler.ops.activation import bounds
from passes.context import PassContext
from passes.fold_constants import tidy

HARD_SIGMOID = {"alpha": 1 / 6, "beta": 0.5}


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.op_type == "Clip" and bounds(node) == (0, 6):
            _recognise_clip(node, Builder(model, names, node), context)
    # Once more over the graph, which may have new HardSigmoids.
    for node in float32_nodes(model.graph):
        if _is_hard_sigmoid(node):
            x = node.inputs[0]
            last = product_of(node.outputs[0], x, 1)
            if last is not None:
                _put("HardSwish", x, Builder(model, names, last), context)
    tidy(model)


def _is_hard_sigmoid(node: ir.Node) -> bool:
    """Whether a node is the HardSigmoid that is part of HardSwish."""
    if node.op_type != "HardSigmoid":
        return False
    return all(is_near(attribute_of(node, key, 0), want) for key, want in HARD_SIGMOID.items())


def _recognise_clip(clip: ir.Node, b: Builder, context: PassContext) -> None:
    x = _shifted_by_three(clip.inputs[0])
    if x is None:
        return  # it is a Relu6
    sixth = product_of(clip.outputs[0], None, 1 / 6)
    if sixth is not None:
        _put("HardSigmoid", x, Builder(b.model, b.names, sixth), context)
        return
    product = product_of(clip.outputs[0], x, 1 / 6)
    if product is not None:
        _put("HardSwish", x, Builder(b.model, b.names, product), context)
        return
    context.missed(clip, "Clip(x + 3, 0, 6) is not divided by 6, or read by others too", fitted=2)


def _shifted_by_three(value: ir.Value | None) -> ir.Value | None:
    """x of x + 3."""
    add = produced_by(value, "Add")
    if add is None or not any(scalar_of(term) == 3 for term in add.inputs):
        return None
    return next((term for term in add.inputs if not is_constant(term)), None)


def _put(op_type: str, x: ir.Value | None, b: Builder, context: PassContext) -> None:
    """Put the operator in the place of the builder's node."""
    attributes = HARD_SIGMOID if op_type == "HardSigmoid" else {}
    b.replace(b.op(op_type, [x], attributes))
    context.matched(b.anchor)
