"""Keep the gates of transformers on the host: Gelu, SiLU and products of two linear layers.

    g = MatMul(h, W1);  u = MatMul(h, W2);  y = MatMul(Mul(Mul(g, Sigmoid(g)), u), W3)
        ->  the same, with Sigmoid and both Muls kept on the host

The Edge TPU has LOGISTIC and MUL, but tokens differ too much in size for one int8 range to hold a
gate of all of them. Between normalised linear layers (passes/normalise_linears.py) the gate costs
the host little. A Gelu or SiLU of a single row keeps its place: there are no tokens to differ.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    HOST_REASON,
    activations_of,
    element_count,
    is_constant,
    is_static,
    only_consumer,
    produced_by,
    producer_of,
    shape_of,
)
from passes.context import PassContext

REASON = "it gates a linear layer: one int8 range cannot hold what differs from token to token"
LINEAR = ("MatMul", "Gemm")
# What may stand between a product with weights and its gate.
BETWEEN = ("Add", "Reshape", "Split")


def run(model: ir.Model, context: PassContext) -> None:
    for node in model.graph:
        for gate in _gates(node):
            gate.metadata_props[HOST_REASON] = REASON
            context.matched(gate)


def _gates(node: ir.Node) -> list[ir.Node]:
    """The nodes of the gate whose nonlinearity is `node`."""
    if node.op_type == "Sigmoid":
        return _silu(node)
    if node.op_type == "Gelu" and _is_linear(node.inputs[0]) and _rows(node.inputs[0]) > 1:
        return [node]
    return []


def _silu(sigmoid: ir.Node) -> list[ir.Node]:
    """Sigmoid, the scale in front (QuickGelu), and the products that make a gate of it.

    Empty where they do not follow a linear layer.
    """
    scale = _scale(sigmoid.inputs[0])
    x = sigmoid.inputs[0] if scale is None else activations_of(scale)[0]
    product = only_consumer(sigmoid.outputs[0])
    if product is None or product.op_type != "Mul" or x not in product.inputs:
        return []
    if not _is_linear(x):
        return []
    gate = [sigmoid, product] if scale is None else [sigmoid, product, scale]
    outer = _product_of_layers(product)
    if outer is not None:
        return [*gate, outer]
    return gate if _rows(x) > 1 else []


def _scale(value: ir.Value | None) -> ir.Node | None:
    """The Mul by a constant that made a value."""
    node = produced_by(value, "Mul")
    if node is None or len(activations_of(node)) != 1:
        return None
    return node


def _product_of_layers(gate: ir.Node) -> ir.Node | None:
    """The Mul of a gate with another linear layer, as in SwiGLU."""
    outer = only_consumer(gate.outputs[0])
    if outer is None or outer.op_type != "Mul":
        return None
    others = [value for value in outer.inputs if value is not gate.outputs[0]]
    return outer if all(_is_linear(value) for value in others) else None


def _is_linear(value: ir.Value | None) -> bool:
    """Whether a value is a product with constant weights, its bias and changes of shape aside."""
    node = producer_of(value)
    while node is not None and node.op_type in BETWEEN:
        computed = activations_of(node)
        node = producer_of(computed[0]) if computed else None
    return node is not None and node.op_type in LINEAR and is_constant(node.inputs[1])


def _rows(value: ir.Value | None) -> int:
    """How many rows (tokens) a value has; 0 where its shape is not known."""
    if value is None or not is_static(value):
        return 0
    return element_count(value) // shape_of(value)[-1]
