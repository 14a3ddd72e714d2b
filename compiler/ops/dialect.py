"""The dialect: operators that the Edge TPU has and ONNX lacks, as ONNX functions.

Each is declared with its operator (`Operator.body`). Images are NHWC, weights keep ONNX's order
(output channels first).
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from compiler.graph import DIALECT, OPSET
from compiler.ops import OPERATORS

_HEAD = f'<domain: "{DIALECT}", opset_import: ["" : {OPSET}]>'


def functions() -> list[ir.Function]:
    """Fresh copies of every function of the dialect."""
    bodies = [operator.body for operator in OPERATORS.values() if operator.body is not None]
    parsed = [onnx.parser.parse_function(_HEAD + body) for body in bodies]
    return [ir.serde.deserialize_function(proto) for proto in parsed]


def declare(model: ir.Model) -> None:
    """Make the dialect known to a model, so that its nodes can be added, inferred and run."""
    model.graph.opset_imports[DIALECT] = 1
    for function in functions():
        model.functions.setdefault(function.identifier(), function)
