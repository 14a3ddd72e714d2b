"""What the compiler knows of operators: one file per family, all gathered in `OPERATORS`.

A new operator is a declaration in its family's file. A new family is a file with `OPERATORS` and
`BUILTINS`, and a line in `FAMILIES`.
"""

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
from compiler.ops.common import Moves, Operator, RefuseError, Scales
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


def _operators() -> dict[tuple[str, str], Operator]:
    found: dict[tuple[str, str], Operator] = {}
    for family in FAMILIES:
        for operator in family.OPERATORS:
            assert operator.key not in found, f"{operator.key} is declared twice"
            found[operator.key] = operator
    return found


def _builtins() -> dict[str, Builtin]:
    found: dict[str, Builtin] = {}
    for family in FAMILIES:
        for builtin in family.BUILTINS:
            assert builtin.name not in found, f"{builtin.name} is declared twice"
            found[builtin.name] = builtin
    return found


# By (domain, operator type).
OPERATORS = _operators()
# By TFLite's name.
BUILTINS = _builtins()

# What is known of an operator that no family declares: nothing but the defaults.
_UNKNOWN = Operator("")


def lookup(node: ir.Node) -> Operator | None:
    """The declaration of a node's operator, None where there is none."""
    return OPERATORS.get(key_of(node))


def operator_of(node: ir.Node) -> Operator:
    """The declaration of a node's operator; where there is none, one that has only defaults."""
    return OPERATORS.get(key_of(node), _UNKNOWN)


__all__ = [
    "BUILTINS",
    "FAMILIES",
    "OPERATORS",
    "Moves",
    "Operator",
    "RefuseError",
    "Scales",
    "lookup",
    "operator_of",
]
