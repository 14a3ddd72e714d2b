"""Keep the gates of transformers on the host: GELU, SiLU and products of two linear layers, as in
SwiGLU.

    g = MatMul(h, W1); u = MatMul(h, W2); MatMul(Mul(Mul(g, Sigmoid(g)), u), W3)

The Edge TPU has LOGISTIC and MUL, but tokens differ too much in size for one int8 range to hold a
gate of all of them; between normalised linear layers (passes/normalise_linears.py) the gate costs
the host little.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    HOST_REASON,
    element_count,
    is_constant,
    is_static,
    only_consumer,
    produced_by,
    shape_of,
)
from passes.context import PassContext

REASON = "it gates a linear layer: one int8 range cannot hold what differs from token to token"
_LINEAR = ("MatMul", "Gemm")
_BETWEEN = ("Add", "Reshape", "Split")


def run(model: ir.Model, context: PassContext) -> None:
    for node in model.graph:
        gates: list[ir.Node] = []
        if node.op_type == "Sigmoid":
            gates = _gates(node)
        elif node.op_type == "Gelu" and _is_linear(node.inputs[0]) and _rows(node.inputs[0]) > 1:
            gates = [node]
        for gate in gates:
            gate.metadata_props[HOST_REASON] = REASON


def _gates(sigmoid: ir.Node) -> list[ir.Node]:
    """Sigmoid, its scale, and the products that make a gate of it; empty where they do not follow a
    linear layer."""
    scale = produced_by(sigmoid.inputs[0], "Mul")
    scaled = scale is not None and any(is_constant(v) for v in scale.inputs)
    x = (
        next(v for v in scale.inputs if not is_constant(v))
        if scale is not None and scaled
        else sigmoid.inputs[0]
    )
    product = only_consumer(sigmoid.outputs[0])
    if product is None or product.op_type != "Mul" or x not in product.inputs or not _is_linear(x):
        return []
    found = [sigmoid, product, *([scale] if scale is not None and scaled else [])]
    outer = only_consumer(product.outputs[0])
    if (
        outer is not None
        and outer.op_type == "Mul"
        and all(v is product.outputs[0] or _is_linear(v) for v in outer.inputs)
    ):
        return [*found, outer]
    return found if _rows(x) > 1 else []


def _is_linear(value: ir.Value | None) -> bool:
    """Whether a value comes from a product with constant weights, its bias and changes of shape
    aside."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _BETWEEN:
        source = next((v for v in node.inputs if v is not None and not is_constant(v)), None)
        node = source.producer() if source is not None else None
    return node is not None and node.op_type in _LINEAR and is_constant(node.inputs[1])


def _rows(value: ir.Value | None) -> int:
    return (
        element_count(value) // shape_of(value)[-1] if value is not None and is_static(value) else 0
    )
