"""Slice, and Gather of constant neighbours: STRIDED_SLICE."""

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
from compiler.ops.rules import Builtin, OpInfo, Rule, constant, example, integers
from compiler.ops.writer import Writer
from compiler.targets import Target


def ranges(node: ir.Node) -> tuple[list[int], list[int], list[int]] | None:
    """Begin, end and step of every dimension; None where they are computed at run time or go
    backwards."""
    if _has_computed_bounds(node):
        return None
    shape = shape_of(node.inputs[0])
    starts = ints_of(input_at(node, 1))
    ends = ints_of(input_at(node, 2))
    axes = ints_of(input_at(node, 3))
    steps = ints_of(input_at(node, 4))
    assert starts is not None and ends is not None
    steps = steps or [1] * len(starts)
    if min(steps) < 1:
        return None
    begins = [0] * len(shape)
    stops = list(shape)
    strides = [1] * len(shape)
    given_axes = axes or range(len(starts))
    for start, end, step, given_axis in zip(starts, ends, steps, given_axes, strict=False):
        axis = axis_of(given_axis, len(shape))
        # Bounds count from the end where they are negative, and stop at the ends.
        begins[axis], stops[axis], strides[axis] = slice(start, end, step).indices(shape[axis])
    return begins, stops, strides


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
        return f"its steps are {steps}; it goes backwards"
    return None


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """The channels that are kept."""
    bounds = ranges(node)
    x = node.inputs[0]
    assert bounds is not None and x is not None
    begins, ends, steps = bounds
    return [ChannelTie(x, node.outputs[0], of_a=slice(begins[-1], ends[-1], steps[-1]))]


def emit(node: ir.Node, writer: Writer) -> None:
    bounds = ranges(node)
    assert bounds is not None
    begins, ends, steps = bounds
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


def _steps(op: OpInfo, target: Target) -> str | None:
    steps = op.values_of(3)
    is_other = steps is not None and steps[-1] != 1
    return f"its steps are {list(steps or ())}" if is_other else None


def _masks(op: OpInfo, target: Target) -> str | None:
    given = [name for name in ("ellipsisMask", "newAxisMask") if op.options.get(name, 0)]
    return f"it has {given[0]}" if given else None


def _example(*steps: int, **options: int) -> OpInfo:
    x = (1, 16, 16, 8)
    ends = integers(*x)
    y = tuple(size // step for size, step in zip(x, steps, strict=True))
    return example("STRIDED_SLICE", x, integers(0, 0, 0, 0), ends, integers(*steps), y, **options)


_RULES = (
    constant(1, "bounds", _example(1, 1, 1, 1)),
    Rule(
        "its step is 1 along the innermost dimension (steps of 2 along height and width were "
        "mapped, along the innermost one they were not)",
        _steps,
        "measured",
        accepts=_example(1, 2, 2, 1),
        refuses=_example(1, 1, 1, 2),
        source="the focus layer of yolov5s (log 069); issue 828 of google-coral/edgetpu",
    ),
    Rule(
        "it has neither ellipsis_mask nor new_axis_mask",
        _masks,
        "documented",
        accepts=_example(1, 1, 1, 1),
        refuses=_example(1, 1, 1, 1, newAxisMask=1),
    ),
)

BUILTINS = (Builtin("STRIDED_SLICE", 2, _RULES),)

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
