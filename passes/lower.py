"""Rewrite each ONNX operator into what the Edge TPU has, by the operator's own rule.

    Conv(x, W, B)   ->   Transpose(edgetpu.Conv2D(Transpose(x), W, B))      in NHWC between
    MatMul(x, W)    ->   edgetpu.FullyConnected(x, Transpose(W), zeros)

The rules stand with the operators (`Operator.lower` in compiler/ops). A rule that does not apply
raises RefuseError; the node stays in ONNX, for the host, with the reason as metadata. A node that
is to stay on the host, or whose operator has no rule, is not touched.
"""

from __future__ import annotations

import onnx.defs
import onnx_ir as ir

from compiler.graph import (
    HOST_REASON,
    LOWERING_REASON,
    OPSET,
    Builder,
    Names,
    activations_of,
    float32_nodes,
    is_static,
    shape_of,
)
from compiler.ops import RefuseError, dialect, lookup
from passes.context import PassContext
from passes.fold_constants import tidy

# Operators that give on what they get, of whatever type.
TYPELESS = ("Identity", "Dropout")


def run(model: ir.Model, context: PassContext) -> None:
    dialect.declare(model)
    names = Names(model.graph)
    opset = model.graph.opset_imports.get("", OPSET)
    for node in float32_nodes(model.graph):
        operator = lookup(node)
        if operator is None or operator.lower is None:
            continue
        # A rule may take the nodes behind along, which are then no longer in the graph.
        if node.graph is None or HOST_REASON in node.metadata_props:
            continue
        try:
            _check_attributes(node, opset)
            _check_tensors(node)
            operator.lower(node, Builder(model, names, node))
        except RefuseError as reason:
            node.metadata_props[LOWERING_REASON] = str(reason)
            context.missed(node, f"{node.op_type}: {reason}")
        else:
            context.matched(node)
    tidy(model)


def _check_attributes(node: ir.Node, opset: int) -> None:
    """Rules know what operators mean in OPSET. Raises RefuseError for what came later."""
    if opset <= OPSET or not onnx.defs.has(node.op_type, OPSET):
        return
    known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    newer = sorted(set(node.attributes) - set(known))
    if newer:
        raise RefuseError(
            f"its attribute '{newer[0]}' is newer than opset {OPSET}, which is lowered here"
        )


def _check_tensors(node: ir.Node) -> None:
    """Rules may count on float activations of known shape. Raises RefuseError for others."""
    computed = activations_of(node)
    if not computed:
        raise RefuseError("it reads constants only")
    read = [value for value in node.outputs if value.uses() or value.is_graph_output()]
    for value in [*computed, *(value for value in read if value.name)]:
        if not is_static(value):
            raise RefuseError(
                f"the shape of '{value.name}' depends on data; the Edge TPU needs static shapes"
            )
        if 0 in shape_of(value):
            raise RefuseError(f"tensor '{value.name}' has no elements")
    dtype = node.outputs[0].dtype
    if dtype in (None, ir.DataType.FLOAT) or node.op_type in TYPELESS:
        return
    kind = dtype.name.lower()
    raise RefuseError(f"it computes on {kind}; the Edge TPU computes on int8 made from float")
