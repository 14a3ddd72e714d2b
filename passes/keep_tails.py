"""Keep on the host what only joins results, and what makes coordinates of them.

    Concat(boxes, scores) -> output          boxes in pixels and scores in [0, 1] would share one int8 scale
    (Add(distances, cells) * strides) -> output     steps of the cells' range, multiplied by strides, are many pixels

A join moves data and computes nothing: its parts leave the Edge TPU apart, in as many bytes, each
with its own scale. Cells, anchors and strides are tables of constants; what is computed with them
spans the whole image, while what the network gave for each cell is small. Neither needs samples to
be known.
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
TABLE = "it computes with a table for what leaves, such as cells and strides of boxes: int8 would be too coarse"
_LAYOUT = ("Reshape", "Transpose", "Identity")
_ARITHMETIC = ("Add", "Sub", "Mul")


def run(model: ir.Model, context: PassContext) -> None:
    leaving: set[ir.Node] = set()  # nodes that the host runs, or will at the border
    for node in reversed(model.graph):
        reason = None
        if refusal(node, context.target) is None and _leaves(node, leaving):
            reason = _reason(node)
            if reason is not None:
                node.metadata_props[HOST_REASON] = reason
        if refusal(node, context.target) is not None or (
            not node.domain and node.op_type in _LAYOUT and _leaves(node, leaving)
        ):
            leaving.add(node)


def _leaves(node: ir.Node, leaving: set[ir.Node]) -> bool:
    """Whether only the host and the user read what a node makes."""
    return all(user in leaving for value in node.outputs for user in consumers_of(value))


def _reason(node: ir.Node) -> str | None:
    if key_of(node) == ("", "Concat") and not _joins_tiles(node):
        return JOIN
    if not node.domain and node.op_type in _ARITHMETIC and (_has_table(node) or _feeds_table(node)):
        return TABLE
    return None


def _joins_tiles(node: ir.Node) -> bool:
    """Whether all parts come from one layer of the source model, which has one scale anyway."""
    makers = [v.producer() for v in node.inputs if v is not None]
    return all(maker is not None and origin_of(maker) == origin_of(node) for maker in makers)


def _has_table(node: ir.Node) -> bool:
    arrays = [array_of(v) for v in node.inputs if v is not None and is_constant(v)]
    return any(array.size > 1 and np.ptp(array) > 0 for array in arrays)


def _feeds_table(node: ir.Node) -> bool:
    """Whether a node computes from one value, as 2x or x^2, what only such tables are computed
    with."""
    readers = consumers_of(node.outputs[0])
    reasons = {reader.metadata_props.get(HOST_REASON) for reader in readers}
    return (
        len(set(activations_of(node))) == 1
        and reasons == {TABLE}
        and not node.outputs[0].is_graph_output()
    )
