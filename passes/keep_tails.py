"""Keep on the host what only leaves and int8 would spoil: joins of unlike values, probabilities,
and arithmetic with tables of coordinates.

    Concat(boxes, scores) -> output
        boxes in pixels and scores in [0, 1] would share one int8 scale
    Concat(boxes, Sigmoid(logits)) -> output
        the logits leave, of which float makes probabilities that int8 would round to 1/256
    Softmax(logits) * bins -> distances
        so does the mean of a distribution over a table of bins
    Mul(Add(distances, cells), strides) -> output
        steps of the cells' range, multiplied by strides, are many pixels

A join moves data and computes nothing: its parts leave the Edge TPU apart, in as many bytes, each
with its own scale. Cells, anchors, bins and strides are tables of constants; what is computed with
them spans the whole image, while what the network gave for each cell is small. None of this needs
samples to be known.

Two kinds of joins stay on the Edge TPU: that of a layer's own tiles, which have one scale anyway,
and that of rows of channels which layers made, such as those of a detector's levels. Their channels
mean the same in every row, so that one scale suits them all.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.device.legality import refusal
from compiler.graph import (
    HOST_REASON,
    activations_of,
    array_of,
    attribute_of,
    axis_of,
    consumers_of,
    is_constant,
    key_of,
    origin_of,
    producer_of,
    shape_of,
)
from compiler.ops import operator_of
from passes.context import PassContext

JOIN = "it only joins what leaves: the parts have int8 scales of their own"
TABLE = (
    "it computes with a table for what leaves, such as cells and strides of boxes: "
    "int8 would be too coarse"
)
PROBABILITIES = (
    "it gives probabilities for what the host computes: int8 would round those below 1/512 to zero"
)
LAYOUT = ("Reshape", "Transpose", "Identity")
CUTS = ("Slice", "Split")
ARITHMETIC = ("Add", "Sub", "Mul")


def run(model: ir.Model, context: PassContext) -> None:
    # Nodes that the host runs, and what will move data next to them.
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
        if reason is not None or _only_moves(node):
            leaving.add(node)


def _is_only_read_by(leaving: set[ir.Node], node: ir.Node) -> bool:
    """Whether only the host and the user read what a node makes."""
    return all(leaving.issuperset(consumers_of(value)) for value in node.outputs)


def _only_moves(node: ir.Node) -> bool:
    """Whether a node goes to the host with those that read it.

    What cuts a value for the user alone does not: it makes less to transfer.
    """
    if node.domain or node.op_type not in (*LAYOUT, *CUTS):
        return False
    return node.op_type in LAYOUT or all(map(_readers_behind_layout, node.outputs))


def _reason(node: ir.Node) -> str | None:
    """Why a node whose results only leave is to stay on the host, None where it is not."""
    if key_of(node) == ("", "Concat"):
        return None if _joins_tiles(node) or _joins_rows(node) else JOIN
    if key_of(node) in (("", "Softmax"), ("", "Sigmoid")):
        return PROBABILITIES if _gives_probabilities(node) else None
    if _averages(node):
        return TABLE
    if node.domain or node.op_type not in ARITHMETIC:
        return None
    return TABLE if _is_of_tables(node) or _feeds_table(node) else None


def _joins_tiles(node: ir.Node) -> bool:
    """Whether all parts come from one layer of the source model, which has one scale anyway."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return all(maker is not None and origin_of(maker) == origin_of(node) for maker in makers)


def _joins_rows(node: ir.Node) -> bool:
    """Whether layers made all parts, and their channels stay apart: the last axis is not joined."""
    rank = len(shape_of(node.outputs[0]))
    if axis_of(int(attribute_of(node, "axis")), rank) == rank - 1:
        return False
    return all(_are_rows_of_layer(value) for value in node.inputs)


def _are_rows_of_layer(value: ir.Value | None) -> bool:
    """Whether a value is the result of a layer, its channels at most divided into groups."""
    node = producer_of(value)
    while node is not None and key_of(node) == ("", "Reshape"):
        source = node.inputs[0]
        assert source is not None
        if not shape_of(source) or shape_of(source)[-1] % shape_of(node.outputs[0])[-1]:
            return False
        node = source.producer()
    return node is not None and operator_of(node).is_linear


def _gives_probabilities(node: ir.Node) -> bool:
    """Whether the host computes with the result of a Softmax, or joins that of a Sigmoid.

    What other Sigmoids give is as fine in int8 as the host needs it, and costs it more.
    """
    readers = _readers_behind_layout(node.outputs[0])
    if node.op_type == "Sigmoid":
        return bool(readers) and all(key_of(reader) == ("", "Concat") for reader in readers)
    return bool(readers)


def _readers_behind_layout(value: ir.Value) -> list[ir.Node]:
    """What reads a value, changes of its layout aside."""
    found: list[ir.Node] = []
    for reader in consumers_of(value):
        if not reader.domain and reader.op_type in LAYOUT:
            found += _readers_behind_layout(reader.outputs[0])
        else:
            found.append(reader)
    return found


def _averages(node: ir.Node) -> bool:
    """Whether a layer makes one number of each row of probabilities, the mean over a table."""
    if not operator_of(node).is_linear or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    if weight is None or not is_constant(weight) or shape_of(weight)[0] != 1:
        return False
    maker = producer_of(node.inputs[0])
    while maker is not None and not maker.domain and maker.op_type in LAYOUT:
        maker = producer_of(maker.inputs[0])
    return maker is not None and key_of(maker) == ("", "Softmax")


def _is_of_tables(node: ir.Node) -> bool:
    """Whether a node computes with a table, or with what arithmetic with tables gave."""
    if node.domain or node.op_type not in ARITHMETIC:
        return False
    if _has_table(node):
        return True
    makers = [value.producer() for value in activations_of(node)]
    return any(maker is not None and _is_of_tables(maker) for maker in makers)


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
