"""Keep on the host joins that only leave, and arithmetic with tables of coordinates.

    Concat(boxes, scores) -> output
        boxes in pixels and scores in [0, 1] would share one int8 scale
    Mul(Add(distances, cells), strides) -> output
        steps of the cells' range, multiplied by strides, are many pixels

A join moves data and computes nothing: its parts leave the Edge TPU apart, in as many bytes, each
with its own scale. Cells, anchors and strides are tables of constants; what is computed with them
spans the whole image, while what the network gave for each cell is small. Neither needs samples to
be known. A layer's own tiles have one scale anyway, so that their join stays with them.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.device.legality import refusal
from compiler.graph import (
    HOST_REASON,
    activations_of,
    array_of,
    consumers_of,
    is_constant,
    key_of,
    origin_of,
)
from passes.context import PassContext

JOIN = "it only joins what leaves: the parts have int8 scales of their own"
TABLE = (
    "it computes with a table for what leaves, such as cells and strides of boxes: "
    "int8 would be too coarse"
)
LAYOUT = ("Reshape", "Transpose", "Identity")
ARITHMETIC = ("Add", "Sub", "Mul")


def run(model: ir.Model, context: PassContext) -> None:
    # Nodes that the host runs, and changes of layout that will be next to them.
    leaving: set[ir.Node] = set()
    for node in reversed(model.graph):
        if refusal(node, context.target) is not None:
            leaving.add(node)
            continue
        if not _is_only_read_by(leaving, node):
            continue
        reason = _reason(node)
        if reason is not None:
            node.metadata_props[HOST_REASON] = reason
            context.matched(node)
        if reason is not None or (not node.domain and node.op_type in LAYOUT):
            leaving.add(node)


def _is_only_read_by(leaving: set[ir.Node], node: ir.Node) -> bool:
    """Whether only the host and the user read what a node makes."""
    return all(leaving.issuperset(consumers_of(value)) for value in node.outputs)


def _reason(node: ir.Node) -> str | None:
    """Why a node whose results only leave is to stay on the host, None where it is not."""
    if key_of(node) == ("", "Concat") and not _joins_tiles(node):
        return JOIN
    if node.domain or node.op_type not in ARITHMETIC:
        return None
    return TABLE if _has_table(node) or _feeds_table(node) else None


def _joins_tiles(node: ir.Node) -> bool:
    """Whether all parts come from one layer of the source model, which has one scale anyway."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return all(maker is not None and origin_of(maker) == origin_of(node) for maker in makers)


def _has_table(node: ir.Node) -> bool:
    """Whether one side holds numbers that differ."""
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    arrays = [array_of(value) for value in constants]
    return any(array.size > 1 and np.ptp(array) > 0 for array in arrays)


def _feeds_table(node: ir.Node) -> bool:
    """Whether a node computes from one value, as 2x or x^2, what only tables are applied to."""
    result = node.outputs[0]
    if len(set(activations_of(node))) != 1 or result.is_graph_output():
        return False
    reasons = {reader.metadata_props.get(HOST_REASON) for reader in consumers_of(result)}
    return reasons == {TABLE}
