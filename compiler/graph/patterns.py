"""Products with constants, which exporters spell in many ways."""

from __future__ import annotations

import math

import onnx_ir as ir

from compiler.graph.keys import key_of
from compiler.graph.values import is_constant, is_static, scalar_of, shape_of
from compiler.graph.walk import only_consumer


def unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """(x, factor) of an activation that is x times numbers; (the value, 1) where it is none."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return value, 1.0
    x, by = node.inputs
    if node.op_type == "Mul" and is_constant(x):
        x, by = by, x
    number = scalar_of(by)
    if x is None or not number or is_constant(x) or not is_static(x):
        return value, 1.0
    # A number of more dimensions would give the result another shape.
    if len(shape_of(by)) > len(shape_of(x)):
        return value, 1.0
    rest, factor = unscaled(x)
    return rest, factor * (number if node.op_type == "Mul" else 1 / number)


def is_near(found: float, number: float) -> bool:
    """Whether a constant of an exporter is meant to be `number`."""
    return math.isclose(found, number, rel_tol=1e-3)


def product_of(made: ir.Value, x: ir.Value | None, number: float) -> ir.Node | None:
    """The last node of made * x * number, whatever the order of the factors.

    Without x, of made * number. Each product between must have no other reader.
    """
    factor = 1.0
    x_is_missing = x is not None
    while (last := only_consumer(made)) is not None and key_of(last) in (("", "Mul"), ("", "Div")):
        other = next((value for value in last.inputs if value is not made), None)
        by = scalar_of(other)
        if last.op_type == "Div":
            if last.inputs[0] is not made or not by:
                return None
            by = 1 / by
        elif by is None:
            if other is None:
                return None
            # x may come with factors of its own.
            rest, by = unscaled(other)
            if rest is not x or not x_is_missing:
                return None
            x_is_missing = False
        factor *= by
        if not x_is_missing and is_near(factor, number):
            return last
        made = last.outputs[0]
    return None
