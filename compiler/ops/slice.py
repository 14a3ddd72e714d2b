"""Slice, and Gather of constant neighbours: STRIDED_SLICE with strides of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    attribute_of,
    axis_of,
    element_count,
    input_at,
    ints_of,
    is_constant,
    is_static,
    shape_of,
)
from compiler.ops.common import (
    FLOAT_BYTES,
    ChannelTie,
    Moves,
    Operator,
    Refusal,
    RefuseError,
    bytes_of_all,
    same_scale,
)
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer
from compiler.targets import Target


def ranges(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """Begin and end of every dimension, None where they are computed at run time or a step is not
    one."""
    if _has_computed_bounds(node):
        return None
    shape = shape_of(node.inputs[0])
    starts = ints_of(input_at(node, 1))
    ends = ints_of(input_at(node, 2))
    axes = ints_of(input_at(node, 3))
    steps = ints_of(input_at(node, 4))
    assert starts is not None and ends is not None
    if steps is not None and set(steps) != {1}:
        return None
    begins = [0] * len(shape)
    stops = list(shape)
    for start, end, given_axis in zip(starts, ends, axes or range(len(starts)), strict=False):
        axis = axis_of(given_axis, len(shape))
        # Bounds count from the end where they are negative, and stop at the ends.
        begins[axis], stops[axis], _ = slice(start, end).indices(shape[axis])
    return begins, stops


def _has_computed_bounds(node: ir.Node) -> bool:
    given = [value for value in node.inputs[1:] if value is not None]
    return not all(map(is_constant, given))


def permute(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    """The same starts and ends for axes where these were in front of the Transpose."""
    starts = node.inputs[1]
    assert starts is not None
    axes = ints_of(input_at(node, 3)) or range(element_count(starts))
    moved = [perm[axis_of(axis, len(perm))] for axis in axes]
    if len(node.inputs) < 4:
        node.resize_inputs(4)
    node.replace_input_with(3, builder.const(np.array(moved, np.int64), "axes"))


def refuse(node: ir.Node, target: Target) -> Refusal:
    if _has_computed_bounds(node):
        return "its bounds are computed at run time"
    if ranges(node) is None:
        steps = ints_of(input_at(node, 4))
        return f"its steps are {steps}; STRIDED_SLICE on the Edge TPU has steps of one"
    return None


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """The channels that are kept."""
    bounds = ranges(node)
    x = node.inputs[0]
    assert bounds is not None and x is not None
    begins, ends = bounds
    return [ChannelTie(x, node.outputs[0], of_a=slice(begins[-1], ends[-1]))]


def emit(node: ir.Node, writer: Writer) -> None:
    bounds = ranges(node)
    assert bounds is not None
    begins, ends = bounds
    steps = [1] * len(begins)
    inputs = [
        writer.tensor(node.inputs[0]),
        writer.ints(begins),
        writer.ints(ends),
        writer.ints(steps),
    ]
    writer.add("STRIDED_SLICE", 2, inputs, [writer.tensor(node.outputs[0])], {})


def lower_gather(node: ir.Node, builder: Builder) -> None:
    """Constant indices that are neighbours, in order, are a Slice."""
    x, index = node.inputs
    assert x is not None and index is not None
    if is_constant(x):
        raise RefuseError("it looks up rows of a table; the Edge TPU has no GATHER")
    indices = ints_of(index)
    if indices is None:
        raise RefuseError("its indices are computed at run time; the Edge TPU has no GATHER")
    shape = shape_of(x)
    axis = axis_of(int(attribute_of(node, "axis", 0)), len(shape))
    wanted = [axis_of(i, shape[axis]) for i in indices]
    begin = wanted[0]
    end = begin + len(wanted)
    if wanted != list(range(begin, end)):
        raise RefuseError("its indices are not neighbours; the Edge TPU has no GATHER")
    bounds = [builder.const(np.array([i], np.int64), "slice") for i in (begin, end, axis)]
    part = builder.op("Slice", [x, *bounds])
    builder.replace(builder.reshape(part, shape_of(node.outputs[0])))


def gathered_bytes(node: ir.Node) -> int:
    """What is looked up is read and written; the rest of the table is not touched."""
    y = node.outputs[0]
    return 2 * FLOAT_BYTES * element_count(y) if is_static(y) else bytes_of_all(node)


BUILTINS = (Builtin("STRIDED_SLICE", 2),)

OPERATORS = (
    Operator(
        "Slice",
        refuse=refuse,
        scales=same_scale,
        emit=emit,
        permute=permute,
        ties=ties,
        moves=Moves.VALUES,
    ),
    Operator("Gather", lower=lower_gather, moves=Moves.VALUES, host_bytes=gathered_bytes),
)
