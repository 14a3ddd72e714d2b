"""Recognise Gelu in the Erf or Tanh formula that exporters write.

    0.5 * x * (1 + Erf(x / sqrt(2)))                                ->  Gelu(x)
    0.5 * x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))       ->  Gelu(x, approximate="tanh")

Exporters write the factors in too many orders for a list of patterns. So this starts from the Erf
or Tanh, reads what goes into it, and follows the products behind it until the whole formula is
there. All but the last product must have no other reader, else they would be computed anyway.
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
        if key_of(node) not in (("", "Erf"), ("", "Tanh")):
            continue
        x = _input_of_erf(node) if node.op_type == "Erf" else _input_of_tanh(node)
        if x is None:
            # A Tanh alone is an activation, but an Erf is hardly used for anything else.
            if node.op_type == "Erf":
                context.missed(node, "its input is not x / sqrt(2)")
            continue
        last = _last_product(node, x)
        if last is None:
            reason = f"it is not read, alone, as 0.5 * x * (1 + {node.op_type})"
            context.missed(node, reason, fitted=2)
            continue
        b = Builder(model, names, last)
        approximate = "none" if node.op_type == "Erf" else "tanh"
        b.replace(b.op("Gelu", [x], {"approximate": approximate}))
        context.matched(last)
    tidy(model)


def _input_of_erf(node: ir.Node) -> ir.Value | None:
    """x of Erf(x / sqrt(2))."""
    value = node.inputs[0]
    assert value is not None
    x, factor = unscaled(value)
    return x if is_near(factor, math.sqrt(0.5)) else None


def _input_of_tanh(node: ir.Node) -> ir.Value | None:
    """x of Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))."""
    value = node.inputs[0]
    assert value is not None
    inner, factor = unscaled(value)
    add = produced_by(inner, "Add")
    if add is None or not is_near(factor, math.sqrt(2 / math.pi)):
        return None
    for x, other in (add.inputs, add.inputs[::-1]):
        if x is None or other is None:
            continue
        cube, scale = unscaled(other)
        if is_near(scale, 0.044715) and _is_cube(cube, x):
            return x
    return None


def _is_cube(value: ir.Value, x: ir.Value) -> bool:
    """Whether a value is Pow(x, 3) or Mul(x, Mul(x, x)), in any order."""
    power = produced_by(value, "Pow")
    if power is not None:
        return power.inputs[0] is x and scalar_of(power.inputs[1]) == 3
    product = produced_by(value, "Mul")
    if product is None or x not in product.inputs:
        return False
    square = next((factor for factor in product.inputs if factor is not x), None)
    inner = produced_by(square, "Mul")
    return inner is not None and all(factor is x for factor in inner.inputs)


def _last_product(node: ir.Node, x: ir.Value) -> ir.Node | None:
    """The last Mul of 0.5 * x * (1 + node), whose three factors come in any order."""
    add = only_consumer(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    if not any(scalar_of(term) == 1 for term in add.inputs):
        return None
    return product_of(add.outputs[0], x, 0.5)
