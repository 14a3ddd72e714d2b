"""Rewrite each ONNX operator into what the Edge TPU has, by its own rule; note the reason where it
cannot."""

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


def run(model: ir.Model, context: PassContext) -> None:
    dialect.declare(model)
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        operator = lookup(node)
        if (
            operator is None
            or operator.lower is None
            or node.graph is None
            or HOST_REASON in node.metadata_props
        ):
            continue
        try:
            _check(node, model.graph.opset_imports.get("", OPSET))
            operator.lower(node, Builder(model, names, node))
        except RefuseError as reason:
            node.metadata_props[LOWERING_REASON] = str(reason)
    tidy(model)


def _check(node: ir.Node, opset: int) -> None:
    """Lowering rules may count on float activations of known shape, and on what operators mean in
    our opset."""
    if opset > OPSET and onnx.defs.has(node.op_type, OPSET):
        known = onnx.defs.get_schema(node.op_type, OPSET).attributes
        newer = sorted(set(node.attributes) - set(known))
        if newer:
            raise RefuseError(
                f"its attribute '{newer[0]}' is newer than opset {OPSET}, which is lowered here"
            )
    if not activations_of(node):
        raise RefuseError("it reads constants only")
    for value in [
        *activations_of(node),
        *(v for v in node.outputs if v.name and (v.uses() or v.is_graph_output())),
    ]:
        if not is_static(value):
            raise RefuseError(
                f"the shape of '{value.name}' depends on data; the Edge TPU needs static shapes"
            )
        if 0 in shape_of(value):
            raise RefuseError(f"tensor '{value.name}' has no elements")
    result = node.outputs[0]
    if (
        result.dtype is not None
        and result.dtype != ir.DataType.FLOAT
        and node.op_type not in ("Identity", "Dropout")
    ):
        raise RefuseError(
            f"it computes on {result.dtype.name.lower()}; the Edge TPU computes on int8 made from float"
        )
