"""Give rotary embeddings their name back.

    x * cos + Concat(-x[..., d/2:], x[..., :d/2]) * sin   ->   RotaryEmbedding(x, cos, sin)

cos and sin [B, 1, S, d] must be the same in both halves: constants that are, or computed from a
Concat of angles with themselves.
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
    scalar_of,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy
from passes.recognise_attention import is_heads

Halves = dict[tuple[ir.Value, int], ir.Value]
"""Half of an angle, by the angle and the batch that it serves: layers share them."""


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    halves: Halves = {}
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "Add"):
            _rotate(node, Builder(model, names, node), halves)
    tidy(model)


def _rotate(node: ir.Node, b: Builder, halves: Halves) -> None:
    for straight, crossed in (node.inputs, node.inputs[::-1]):
        plain, rotated = produced_by(straight, "Mul"), produced_by(crossed, "Mul")
        if plain is None or rotated is None:
            return
        for x, cos in (plain.inputs, plain.inputs[::-1]):
            for swapped, sin in (rotated.inputs, rotated.inputs[::-1]):
                if not is_heads(x) or not _is_half_swap(swapped, x):
                    continue
                angles = [_half(angle, x, b, halves) for angle in (cos, sin)]
                if None not in angles:
                    b.replace(b.op("RotaryEmbedding", [x, *angles]))
                    return


def _is_half_swap(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is Concat(-x[..., d/2:], x[..., :d/2])."""
    concat = produced_by(value, "Concat")
    if (
        concat is None
        or len(concat.inputs) != 2
        or axis_of(int(attribute_of(concat, "axis")), 4) != 3
    ):
        return False
    negated = produced_by(concat.inputs[0], "Neg")
    half, width = shape_of(x)[3] // 2, shape_of(x)[3]
    return (
        negated is not None
        and width % 2 == 0
        and _part(negated.inputs[0], x) == (half, width)
        and _part(concat.inputs[1], x) == (0, half)
    )


def _part(value: ir.Value | None, x: ir.Value) -> tuple[int, int] | None:
    """The columns of x that a value is."""
    node = value.producer() if value is not None else None
    if node is None or value is None or node.inputs[0] is not x or not is_static(value):
        return None
    if node.op_type == "Slice":
        starts, ends, axes, steps = (ints_of(input_at(node, i)) for i in range(1, 5))
        whole = shape_of(x)[:3] == shape_of(value)[:3]
        if (
            not whole
            or not starts
            or not ends
            or len(starts) != 1
            or (axes or [3]) not in ([3], [-1])
            or steps != [1]
        ):
            return None
        width = shape_of(x)[3]
        start = starts[0] + width if starts[0] < 0 else starts[0]
        return start, start + shape_of(value)[3]
    if node.op_type == "Split" and axis_of(int(attribute_of(node, "axis", 0)), 4) == 3:
        before = node.outputs[: list(node.outputs).index(value)]
        start = sum(shape_of(v)[3] for v in before)
        return start, start + shape_of(value)[3]
    return None


def _half(angle: ir.Value | None, x: ir.Value, b: Builder, halves: Halves) -> ir.Value | None:
    """cos or sin [B, S, d/2] of one [B, 1, S, d] whose two halves are the same; None where they may
    differ."""
    batch, _, rows, width = shape_of(x)
    if (
        angle is None
        or not is_static(angle)
        or shape_of(angle) not in {(batch, 1, rows, width), (1, 1, rows, width)}
    ):
        return None
    if (angle, batch) in halves:
        return halves[angle, batch]
    array, shape = constant_of(angle), (batch, rows, width // 2)
    if array is not None:
        first, second = np.split(array, 2, axis=-1)
        if not np.array_equal(first, second):
            return None
        half = b.const(np.broadcast_to(first[:, 0], shape), f"{angle.name}/half")
    elif shape_of(angle)[0] == batch and _doubled(angle):
        ends = [b.const(np.array([i], np.int64), f"{angle.name}/{i}") for i in (0, width // 2, 3)]
        half = b.reshape(b.op("Slice", [angle, *ends]), shape)
    else:
        return None
    halves[angle, batch] = half
    return half


def _doubled(value: ir.Value | None) -> bool:
    """Whether a value is computed element by element from a Concat of something with itself."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in (
        "Unsqueeze",
        "Reshape",
        "Cast",
        "Mul",
        "Cos",
        "Sin",
    ):
        computed = activations_of(node)
        plain = node.op_type != "Mul" or any(scalar_of(v) is not None for v in node.inputs)
        if len(computed) != 1 or not plain:
            return False
        node = computed[0].producer()
    return (
        node is not None
        and node.op_type == "Concat"
        and len(node.inputs) == 2
        and node.inputs[0] is node.inputs[1]
    )
