"""Recognise rotary embeddings: cosines times x plus sines times its swapped halves.

    x * cos + Concat(-x[..., d/2:], x[..., :d/2]) * sin   ->   RotaryEmbedding(x, cos, sin)

x is [batch, heads, rows, d]. RotaryEmbedding takes cosines and sines of half the width, so cos and
sin [B, 1, rows, d] must be the same in both halves: as constants that are, or as computed from a
Concat of angles with themselves. Layers share their angles, whose halves are therefore cut once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    activations_of,
    attribute_of,
    axis_of,
    constant_of,
    float32_nodes,
    input_at,
    ints_of,
    is_static,
    key_of,
    produced_by,
    producer_of,
    scalar_of,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy
from passes.recognise_attention import is_heads

# Half of an angle's table, by the table and the batch that it serves.
Halves = dict[tuple[ir.Value, int], ir.Value]
# Operators that compute each element by itself, so that equal halves stay equal.
ELEMENTWISE = ("Unsqueeze", "Reshape", "Cast", "Mul", "Cos", "Sin")


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    halves: Halves = {}
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "Add"):
            _recognise(node, Builder(model, names, node), halves, context)
    tidy(model)


def _recognise(node: ir.Node, b: Builder, halves: Halves, context: PassContext) -> None:
    found = _rotation(node)
    if found is None:
        return
    x, cos, sin = found
    half_cos = _half(cos, x, b, halves)
    half_sin = _half(sin, x, b, halves)
    if half_cos is None or half_sin is None:
        reason = "its cosines and sines may differ between the halves, or are not [B, 1, rows, d]"
        context.missed(node, reason, fitted=4)
        return
    b.replace(b.op("RotaryEmbedding", [x, half_cos, half_sin]))
    context.matched(node)


def _rotation(node: ir.Node) -> tuple[ir.Value, ir.Value | None, ir.Value | None] | None:
    """(x, cos, sin) of x * cos + swapped x * sin, whatever the order of terms and factors."""
    first, second = (produced_by(term, "Mul") for term in node.inputs)
    if first is None or second is None:
        return None
    for plain, crossed in ((first, second), (second, first)):
        for x, cos in (plain.inputs, plain.inputs[::-1]):
            if not is_heads(x):
                continue
            for swapped, sin in (crossed.inputs, crossed.inputs[::-1]):
                if _is_half_swap(swapped, x):
                    return x, cos, sin
    return None


def _is_half_swap(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is Concat(-x[..., d/2:], x[..., :d/2])."""
    concat = produced_by(value, "Concat")
    if concat is None or len(concat.inputs) != 2:
        return False
    if axis_of(int(attribute_of(concat, "axis")), 4) != 3:
        return False
    negated = produced_by(concat.inputs[0], "Neg")
    width = shape_of(x)[3]
    if negated is None or width % 2:
        return False
    half = width // 2
    second, first = negated.inputs[0], concat.inputs[1]
    return _columns(second, x) == (half, width) and _columns(first, x) == (0, half)


def _columns(value: ir.Value | None, x: ir.Value) -> tuple[int, int] | None:
    """(begin, end) of the columns of x that a value is; None for anything else."""
    node = producer_of(value)
    if node is None or value is None or node.inputs[0] is not x or not is_static(value):
        return None
    if node.op_type == "Slice":
        start = _slice_start(node)
    elif node.op_type == "Split":
        start = _split_start(node, value)
    else:
        return None
    if start is None:
        return None
    return start, start + shape_of(value)[3]


def _slice_start(node: ir.Node) -> int | None:
    """The first column that a Slice of columns alone takes."""
    x, value = node.inputs[0], node.outputs[0]
    starts, ends, axes, steps = (ints_of(input_at(node, index)) for index in range(1, 5))
    if shape_of(x)[:3] != shape_of(value)[:3] or not starts or not ends or len(starts) != 1:
        return None
    if (axes or [3]) not in ([3], [-1]) or steps != [1]:
        return None
    width = shape_of(x)[3]
    return starts[0] + width if starts[0] < 0 else starts[0]


def _split_start(node: ir.Node, value: ir.Value) -> int | None:
    """The first column of one output of a Split of columns."""
    if axis_of(int(attribute_of(node, "axis", 0)), 4) != 3:
        return None
    index = list(node.outputs).index(value)
    return sum(shape_of(before)[3] for before in node.outputs[:index])


def _half(angle: ir.Value | None, x: ir.Value, b: Builder, halves: Halves) -> ir.Value | None:
    """cos or sin [B, rows, d/2] of a table [B, 1, rows, d]; None where its halves may differ."""
    batch, _, rows, width = shape_of(x)
    if angle is None or not is_static(angle):
        return None
    if shape_of(angle) not in ((batch, 1, rows, width), (1, 1, rows, width)):
        return None
    if (angle, batch) in halves:
        return halves[angle, batch]
    shape = (batch, rows, width // 2)
    array = constant_of(angle)
    if array is not None:
        first, second = np.split(array, 2, axis=-1)
        if not np.array_equal(first, second):
            return None
        half = b.const(np.broadcast_to(first[:, 0], shape), f"{angle.name}/half")
    elif shape_of(angle)[0] == batch and _is_doubled(angle):
        bounds = (0, width // 2, 3)
        cut = [b.const(np.array([number], np.int64), f"{angle.name}/{number}") for number in bounds]
        half = b.reshape(b.op("Slice", [angle, *cut]), shape)
    else:
        return None
    halves[angle, batch] = half
    return half


def _is_doubled(value: ir.Value) -> bool:
    """Whether a value is computed element by element from a Concat of something with itself."""
    node = value.producer()
    while node is not None and node.op_type in ELEMENTWISE:
        computed = activations_of(node)
        if len(computed) != 1:
            return False
        if node.op_type == "Mul" and all(scalar_of(factor) is None for factor in node.inputs):
            return False
        node = computed[0].producer()
    if node is None or node.op_type != "Concat" or len(node.inputs) != 2:
        return False
    return node.inputs[0] is node.inputs[1]
