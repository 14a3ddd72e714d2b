"""Matrix products between host operators, as in transformers: rows brought to [-1, 1], outputs
balanced.

Linear maps are homogeneous, so for each row (token) x, with the row's largest magnitude s = max|x|,
and a factor a and an offset o per output channel

    W x + c   =   s * (a * z + o) + c      with   z = (W / a) (x / s) - o / a

exactly. int8 then resolves every row, however far its largest value lies from those of other rows;
`a` and `o` let each output channel fill its int8 range (compiler/quantize/balance.py chooses them
by what calibration shows). All but z stays on the host, where x comes from and the result goes.
Static int8 ranges cannot do this: single rows of transformers' activations are a hundred times
larger than others. Products of the same rows become one.
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
    replace_node,
    rows_of,
    shape_of,
)
from compiler.quantize.products import mark
from compiler.targets import Target
from passes.fold_constants import tidy

# Smallest row maximum to divide by: rows of zeros stay zero.
TINY = 1e-12


def run(model: ir.Model, target: Target) -> None:
    names = Names(model.graph)
    for nodes in groups(model.graph, target):
        _normalise(nodes, Builder(model, names, nodes[0]))
    tidy(model)


def groups(graph: ir.Graph, target: Target) -> list[list[ir.Node]]:
    """Matrix products between host operators, those of the same rows together."""
    found: dict[tuple[ir.Value, Shape], list[ir.Node]] = {}
    for node in graph:
        if (
            _is_linear(node)
            and _from_host(node.inputs[0], target)
            and _to_host(node.outputs[0], target)
        ):
            x = node.inputs[0]
            assert x is not None
            reshape = produced_by(x, "Reshape")
            source = reshape.inputs[0] if reshape is not None else x
            assert source is not None
            found.setdefault((source, shape_of(x)), []).append(node)
    return list(found.values())


def _is_linear(node: ir.Node) -> bool:
    """A product of rows with a float matrix: a dense layer, or a 1x1 convolution of an image one
    pixel high."""
    if (
        node.domain != DIALECT
        or not is_constant(input_at(node, 1))
        or grid_of(node.inputs[1]) is not None  # type: ignore[arg-type]
    ):
        return False
    if node.op_type == "FullyConnected":
        return True
    if node.op_type != "Conv2D" or shape_of(node.inputs[1])[2:] != (1, 1):
        return False
    return shape_of(node.inputs[0])[1] == 1 and attribute_of(node, "strides") == (1, 1)


def _from_host(value: ir.Value | None, target: Target) -> bool:
    node = value.producer() if value is not None else None
    if node is not None and node.op_type in ("Reshape", "Transpose"):
        return _from_host(node.inputs[0], target)
    return node is None or refusal(node, target) is not None or _joins(node, target)


def _joins(node: ir.Node, target: Target) -> bool:
    """An elementwise operator with a host value on one side: the partitioner leaves it on the host."""
    inputs = activations_of(node)
    return node.op_type in ("Add", "Sub", "Mul") and any(_from_host(v, target) for v in inputs)


def _to_host(value: ir.Value, target: Target) -> bool:
    """Whether only the host reads a value."""
    users = consumers_of(value)
    return all(
        refusal(user, target) is not None
        or (
            user.op_type in ("Reshape", "Transpose", "Add", "Sub", "Mul", "Split")
            and _to_host_all(user, target)
        )
        for user in users
    )


def _to_host_all(node: ir.Node, target: Target) -> bool:
    return all(_to_host(value, target) for value in node.outputs)


def _normalise(nodes: Sequence[ir.Node], b: Builder) -> None:
    """Put the normalised product of all weights in the place of `nodes`, which multiply the same
    rows."""
    x, first = nodes[0].inputs[0], nodes[0].inputs[1]
    assert x is not None and first is not None
    weights, name = [node.inputs[1] for node in nodes], origin_of(nodes[0])
    rows, peak = _rows_to_one(b, x)
    counts = [shape_of(w)[0] for w in weights]
    total = (sum(counts), *shape_of(first)[1:])

    def joined(rows: slice) -> np.ndarray:
        return joined_rows(weights, rows)  # type: ignore[arg-type]

    factors = b.by_rows(lambda rows: _norms(joined(rows)), total[:1], f"{name}/factors")
    offsets = b.const(np.zeros(total[0], np.float32), f"{name}/offsets")

    def balanced(rows: slice) -> np.ndarray:
        scale = 1 / rows_of(factors, rows)
        return joined(rows) * scale.reshape(-1, *[1] * (len(total) - 1))

    def shifts(rows: slice) -> np.ndarray:
        return -rows_of(offsets, rows) / rows_of(factors, rows)

    weight = b.by_rows(balanced, total, f"{name}/balanced")
    shift = b.by_rows(shifts, total[:1], f"{name}/shift")
    z = b.op(nodes[0].op_type, [rows, weight, shift], nodes[0].attributes, DIALECT)
    y = b.op("Mul", [z, factors])
    scaled = y.producer()
    assert scaled is not None
    mark(scaled)
    y = b.op("Mul", [b.op("Add", [y, offsets]), peak])
    biases = [node.inputs[2] for node in nodes]
    if any(np.any(array_of(bias)) for bias in biases if bias is not None):
        y = b.op("Add", [y, b.const(np.concatenate([array_of(c) for c in biases]), f"{name}/bias")])  # type: ignore[arg-type]
    parts = [y]
    if len(nodes) > 1:
        sizes = b.const(np.array(counts, np.int64), "sizes")
        axis = len(shape_of(y)) - 1
        parts = b.ops("Split", [y, sizes], {"axis": axis}, outputs=len(nodes))
    for value in b.made:
        made = value.producer()
        if made is not None and made.domain != DIALECT and made.op_type != "Reshape":
            made.metadata_props[HOST_REASON] = (
                "it normalises the rows of a linear layer, exactly, in float"
            )
    for node, part in zip(nodes, parts, strict=True):
        replace_node(node, [part], b.made)


def _norms(weight: np.ndarray) -> np.ndarray:
    """One factor for each output."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
    return np.where(norms > 0, norms, 1).astype(np.float32)


def _rows_to_one(b: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(rows divided by their largest magnitude, that magnitude)."""
    axes = b.const(np.array([len(shape_of(x)) - 1], np.int64), "axes")
    peak = b.op("ReduceMax", [b.op("Abs", [x]), axes], {"keepdims": 1})
    peak = b.op("Max", [peak, b.scalar(TINY, "tiny")])
    return b.op("Div", [x, peak]), peak
