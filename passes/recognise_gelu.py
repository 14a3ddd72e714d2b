"""Give Gelu its name back.

    x / 2 * (1 + erf(x / sqrt 2))                               ->  Gelu(x)
    x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))     ->  Gelu(x, approximate="tanh")

Exporters spell it in too many orders for patterns: it is found from its Erf or Tanh outwards.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    float32_nodes,
    is_near,
    key_of,
    only_consumer,
    produced_by,
    product_of,
    scalar_of,
    unscaled,
)
from passes.context import PassContext
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) in (("", "Erf"), ("", "Tanh")):
            _gelu(node, model, names)
    tidy(model)


def _gelu(node: ir.Node, model: ir.Model, names: Names) -> None:
    erf = node.op_type == "Erf"
    x = _of_erf(node.inputs[0]) if erf else _of_tanh(node.inputs[0])
    last = _product(node, x) if x is not None else None
    if last is not None:
        b = Builder(model, names, last)
        b.replace(b.op("Gelu", [x], {"approximate": "none" if erf else "tanh"}))


def _of_erf(value: ir.Value | None) -> ir.Value | None:
    if value is None:
        return None
    x, factor = unscaled(value)
    return x if is_near(factor, math.sqrt(0.5)) else None


def _of_tanh(value: ir.Value | None) -> ir.Value | None:
    if value is None:
        return None
    inner, factor = unscaled(value)
    add = produced_by(inner, "Add")
    if add is None or not is_near(factor, math.sqrt(2 / math.pi)):
        return None
    for x, other in (add.inputs, add.inputs[::-1]):
        if x is not None and other is not None:
            cube, scale = unscaled(other)
            if is_near(scale, 0.044715) and _is_cube(cube, x):
                return x
    return None


def _is_cube(value: ir.Value, x: ir.Value) -> bool:
    power, product = produced_by(value, "Pow"), produced_by(value, "Mul")
    if power is not None:
        return power.inputs[0] is x and scalar_of(power.inputs[1]) == 3
    square = next((v for v in product.inputs if v is not x), None) if product is not None else None
    inner = produced_by(square, "Mul")
    return (
        inner is not None
        and product is not None
        and all(v in (x, square) for v in product.inputs)
        and (all(v is x for v in inner.inputs))
    )


def _product(node: ir.Node, x: ir.Value) -> ir.Node | None:
    """The last Mul of x / 2 * (1 + node), its three factors in any order."""
    add = only_consumer(node.outputs[0])
    if add is None or add.op_type != "Add" or not any(scalar_of(v) == 1 for v in add.inputs):
        return None
    return product_of(add.outputs[0], x, 0.5)
