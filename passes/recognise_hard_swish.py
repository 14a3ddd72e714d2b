"""Give HardSigmoid and HardSwish their names back, as exporters of older opsets and of Paddle spell
them.

    clip(x + 3, 0, 6) / 6          ->  HardSigmoid(x, alpha=1/6, beta=1/2)
    x * clip(x + 3, 0, 6) / 6      ->  HardSwish(x)
    x * HardSigmoid(x)             ->  HardSwish(x)

Factors may come in any order.
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

_GATE = {"alpha": 1 / 6, "beta": 0.5}


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.op_type == "Clip" and bounds(node) == (0, 6):
            _of_clip(node, model, names)
    for node in float32_nodes(model.graph):
        if node.op_type == "HardSigmoid" and all(
            is_near(attribute_of(node, k, 0), v) for k, v in _GATE.items()
        ):
            _swish(node.inputs[0], product_of(node.outputs[0], node.inputs[0], 1), model, names)
    tidy(model)


def _of_clip(clip: ir.Node, model: ir.Model, names: Names) -> None:
    add = produced_by(clip.inputs[0], "Add")
    x = next((v for v in add.inputs if not is_constant(v)), None) if add is not None else None
    if add is None or x is None or not any(scalar_of(v) == 3 for v in add.inputs):
        return
    last = product_of(clip.outputs[0], None, 1 / 6)
    if last is not None:
        b = Builder(model, names, last)
        b.replace(b.op("HardSigmoid", [x], _GATE))
    else:
        _swish(x, product_of(clip.outputs[0], x, 1 / 6), model, names)


def _swish(x: ir.Value | None, last: ir.Node | None, model: ir.Model, names: Names) -> None:
    if x is not None and last is not None:
        b = Builder(model, names, last)
        b.replace(b.op("HardSwish", [x]))
