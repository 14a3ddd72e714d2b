"""Products with constants, which exporters spell in many ways."""

from __future__ import annotations

import math

import onnx_ir as ir

from compiler.graph.keys import key_of
from compiler.graph.values import is_constant, is_static, scalar_of, shape_of
from compiler.graph.walk import only_consumer


def unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """What is multiplied by, or divided by, numbers, and their product."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Mul", "Div"):
        return value, 1.0
    x, by = node.inputs
    if node.op_type == "Mul" and is_constant(x):
        x, by = by, x
    number = scalar_of(by)
    if (
        x is None
        or not number
        or is_constant(x)
        or not is_static(x)
        or len(shape_of(by)) > len(shape_of(x))
    ):
        return value, 1.0
    rest, factor = unscaled(x)
    return rest, factor * (number if node.op_type == "Mul" else 1 / number)


def is_near(found: float, number: float) -> bool:
    """Whether a constant of an exporter is meant to be `number`."""
    return math.isclose(found, number, rel_tol=1e-3)


def product_of(made: ir.Value, x: ir.Value | None, number: float) -> ir.Node | None:
    """The last node of made * x * number, or of made * number without x, whatever the order of the
    factors."""
    factor, missing = 1.0, x is not None
    while (last := only_consumer(made)) is not None and key_of(last) in (("", "Mul"), ("", "Div")):
        other = next((v for v in last.inputs if v is not made), None)
        if last.op_type == "Div" and (last.inputs[0] is not made or scalar_of(other) in (None, 0)):
            return None
        by = scalar_of(other)
        if other is not None and by is None:
            rest, by = unscaled(other)
            if rest is not x or not missing:
                return None
            missing = False
        if by is None:
            return None
        factor = factor / by if last.op_type == "Div" else factor * by
        if not missing and is_near(factor, number):
            return last
        made = last.outputs[0]
    return None
