"""Bring the rows of matrix products between host operators to [-1, 1], and balance their outputs.

    y = FullyConnected(x, W, c)
        ->  s = Max(ReduceMax(x), -ReduceMin(x), tiny)            for each row (token)
            z = FullyConnected(x / s, W / a, -o / a)              on the Edge TPU
            y = s * (a * z + o) + c                               on the host, as s

exactly: linear maps are homogeneous. int8 then resolves every row, however far its largest value
lies from those of other rows, which is up to a hundred times in transformers; static int8 ranges
cannot do this. The factor `a` and the offset `o` of each output channel may be any numbers; here
`a` is the norm of the weights and `o` zero, and compiler/quantize/balance.py chooses them by what
calibration shows. It is done where both neighbours are on the host anyway. Products of the same
rows become one, so that rows are divided once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.device.legality import refusal
from compiler.graph import (
    DIALECT,
    HOST_REASON,
    Builder,
    Names,
    Shape,
    activations_of,
    array_of,
    attribute_of,
    consumers_of,
    grid_of,
    input_at,
    is_constant,
    joined_rows,
    origin_of,
    produced_by,
    producer_of,
    replace_node,
    rows_of,
    shape_of,
)
from compiler.quantize.products import mark
from compiler.targets import Target
from passes.context import PassContext
from passes.fold_constants import tidy

# Smallest row maximum to divide by: rows of zeros stay zero.
TINY = 1e-12
REASON = "it normalises the rows of a linear layer, exactly, in float"
LAYOUT = ("Reshape", "Transpose")
ARITHMETIC = ("Add", "Sub", "Mul")


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for nodes in groups(model.graph, context.target):
        _normalise(nodes, Builder(model, names, nodes[0]))
        for node in nodes:
            context.matched(node)
    for node in model.graph:
        # Those that were replaced above are no longer in the graph.
        reason = _why_not(node, context.target) if is_linear(node) else None
        if reason is not None:
            context.missed(node, reason)
    tidy(model)


def groups(graph: ir.Graph, target: Target) -> list[list[ir.Node]]:
    """Matrix products between host operators, those of the same rows together."""
    found: dict[tuple[ir.Value, Shape], list[ir.Node]] = {}
    for node in graph:
        if not is_linear(node) or _why_not(node, target) is not None:
            continue
        x = node.inputs[0]
        assert x is not None
        # Each product may have a Reshape of the rows of its own.
        reshape = produced_by(x, "Reshape")
        source = reshape.inputs[0] if reshape is not None else x
        assert source is not None
        found.setdefault((source, shape_of(x)), []).append(node)
    return list(found.values())


def is_linear(node: ir.Node) -> bool:
    """Whether a node multiplies rows by a float matrix.

    That is a dense layer, or a 1x1 convolution of an image one pixel high.
    """
    weight = input_at(node, 1)
    if node.domain != DIALECT or weight is None or not is_constant(weight):
        return False
    if grid_of(weight) is not None:
        return False  # it came in int8, and keeps its scales
    if node.op_type == "FullyConnected":
        return True
    if node.op_type != "Conv2D" or shape_of(weight)[2:] != (1, 1):
        return False
    return shape_of(node.inputs[0])[1] == 1 and attribute_of(node, "strides") == (1, 1)


def _why_not(node: ir.Node, target: Target) -> str | None:
    """Why a linear layer has a neighbour on the Edge TPU, None where it has none."""
    if not made_on_host(node.inputs[0], target):
        return "its rows come from the Edge TPU"
    if not only_read_on_host(node.outputs[0], target):
        return "the Edge TPU reads its outputs"
    return None


def made_on_host(value: ir.Value | None, target: Target) -> bool:
    """Whether a value is made on the host, but for changes of layout."""
    node = producer_of(value)
    if node is None:
        return True
    if node.op_type in LAYOUT:
        return made_on_host(node.inputs[0], target)
    if refusal(node, target) is not None:
        return True
    # The partitioner leaves arithmetic with a host value on one side on the host.
    if node.op_type not in ARITHMETIC:
        return False
    return any(made_on_host(source, target) for source in activations_of(node))


def only_read_on_host(value: ir.Value, target: Target) -> bool:
    """Whether every reader of a value will run on the host."""
    return all(_runs_on_host(reader, target) for reader in consumers_of(value))


def _runs_on_host(node: ir.Node, target: Target) -> bool:
    if refusal(node, target) is not None:
        return True
    # Layout changes and arithmetic go where their readers are.
    if node.op_type not in (*LAYOUT, *ARITHMETIC, "Split"):
        return False
    return all(only_read_on_host(output, target) for output in node.outputs)


def _normalise(nodes: Sequence[ir.Node], b: Builder) -> None:
    """Put one normalised product in the place of `nodes`, which multiply the same rows."""
    x = nodes[0].inputs[0]
    assert x is not None
    rows, peak = _rows_to_one(b, x)
    y = b.op("Mul", [_balanced_product(nodes, rows, b), peak])
    biases = [array_of(node.inputs[2]) for node in nodes if node.inputs[2] is not None]
    if any(np.any(bias) for bias in biases):
        y = b.op("Add", [y, b.const(np.concatenate(biases), f"{origin_of(nodes[0])}/bias")])
    parts = [y]
    if len(nodes) > 1:
        counts = [shape_of(node.inputs[1])[0] for node in nodes]
        sizes = b.const(np.array(counts, np.int64), "sizes")
        last_axis = len(shape_of(y)) - 1
        parts = b.ops("Split", [y, sizes], {"axis": last_axis}, outputs=len(nodes))
    for value in b.made:
        made = value.producer()
        if made is not None and made.domain != DIALECT and made.op_type != "Reshape":
            made.metadata_props[HOST_REASON] = REASON
    for node, part in zip(nodes, parts, strict=True):
        replace_node(node, [part], b.made)


def _rows_to_one(b: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(rows divided by their largest magnitude, that magnitude)."""
    axes = b.const(np.array([len(shape_of(x)) - 1], np.int64), "axes")
    # Absolute values would be written to memory first; extremes are only read.
    highest = b.op("ReduceMax", [x, axes], {"keepdims": 1})
    lowest = b.op("ReduceMin", [x, axes], {"keepdims": 1})
    peak = b.op("Max", [highest, b.op("Neg", [lowest]), b.scalar(TINY, "tiny")])
    return b.op("Div", [x, peak]), peak


def _balanced_product(nodes: Sequence[ir.Node], rows: ir.Value, b: Builder) -> ir.Value:
    """a * z + o, with z = (W / a) rows - o / a, for the weights W of all nodes.

    Weights and shifts are computed from factors `a` and offsets `o` when they are read, so that
    both may be chosen later.
    """
    weights = [node.inputs[1] for node in nodes if node.inputs[1] is not None]
    name = origin_of(nodes[0])
    outputs = sum(shape_of(weight)[0] for weight in weights)
    # [N, K], or [N, K, 1, 1] of a convolution.
    shape = (outputs, *shape_of(weights[0])[1:])
    columns = (1,) * (len(shape) - 1)

    def norms(part: slice) -> np.ndarray:
        return norms_of(joined_rows(weights, part))

    factors = b.by_rows(norms, (outputs,), f"{name}/factors")
    offsets = b.const(np.zeros(outputs, np.float32), f"{name}/offsets")

    def balanced(part: slice) -> np.ndarray:
        scale = 1 / rows_of(factors, part)
        return joined_rows(weights, part) * scale.reshape(-1, *columns)

    def shifts(part: slice) -> np.ndarray:
        moved: np.ndarray = rows_of(offsets, part) / rows_of(factors, part)
        return -moved

    weight = b.by_rows(balanced, shape, f"{name}/balanced")
    shift = b.by_rows(shifts, (outputs,), f"{name}/shift")
    z = b.op(nodes[0].op_type, [rows, weight, shift], nodes[0].attributes, DIALECT)
    scaled = b.op("Mul", [z, factors])
    multiply = scaled.producer()
    assert multiply is not None
    mark(multiply)
    return b.op("Add", [scaled, offsets])


def norms_of(weight: np.ndarray) -> np.ndarray:
    """One factor for each output."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    return np.where(norms > 0, norms, 1).astype(np.float32)
