"""What the compiler knows of operators: one file per family, all gathered in `OPERATORS`."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import key_of
from compiler.ops import (
    activation,
    concat,
    conv,
    elementwise,
    host_only,
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
from compiler.ops.rules import Builtin

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
    host_only,
)

OPERATORS: dict[tuple[str, str], Operator] = {
    op.key: op for family in FAMILIES for op in family.OPERATORS
}

BUILTINS: dict[str, Builtin] = {b.name: b for family in FAMILIES for b in family.BUILTINS}


def lookup(node: ir.Node) -> Operator | None:
    return OPERATORS.get(key_of(node))


__all__ = ["BUILTINS", "OPERATORS", "Operator", "RefuseError", "Scales", "lookup"]
