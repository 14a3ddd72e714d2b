"""What the compiler knows of operators: one file per family, all gathered in `OPERATORS`."""

from __future__ import annotations

import onnx_ir as ir

from compiler import ir as cir
from compiler.ops import (
    activation,
    concat,
    conv,
    elementwise,
    host,
    matmul,
    pad,
    pool,
    quantize,
    reduce,
    reshape,
    resize,
    slice,
    softmax,
    space,
    transpose,
)
from compiler.ops.common import Operator, RefuseError, Scales
from compiler.targets import Target

FAMILIES = (
    conv,
    matmul,
    elementwise,
    activation,
    softmax,
    pool,
    reduce,
    concat,
    slice,
    pad,
    reshape,
    transpose,
    resize,
    space,
    quantize,
    host,
)

OPERATORS: dict[tuple[str, str], Operator] = {op.key: op for family in FAMILIES for op in family.OPERATORS}


def lookup(node: ir.Node) -> Operator | None:
    return OPERATORS.get(cir.key(node))


def refusal(node: ir.Node, target: Target) -> str | None:
    """Why the Edge TPU does not run this node as it stands; None where it does."""
    operator = lookup(node)
    if operator is None or operator.emit is None:
        return node.metadata_props.get(cir.REASON, f"the Edge TPU has no {cir.kind(node)}")
    if not all(cir.is_static(v) for v in [*cir.activations(node), *node.outputs]):
        return "a shape depends on data; the Edge TPU needs static shapes"
    if operator.refuse is not None:
        return operator.refuse(node, target)
    return None


__all__ = ["OPERATORS", "Operator", "RefuseError", "Scales", "lookup", "refusal"]
