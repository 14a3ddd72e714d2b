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
    shape_of,
)
from compiler.ops.common import ChannelTie, Operator, Refusal, RefuseError, same_scale
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer
from compiler.targets import Target


def ranges(node: ir.Node) -> tuple[list[int], list[int]] | None:
    """Begin and end of every dimension, None where they are computed at run time or a step is not
    one."""
    shape = shape_of(node.inputs[0])
    given = [input_at(node, i) for i in range(1, 5)]
    if any(v is not None and not is_constant(v) for v in given):
        return None
    starts, ends, axes, steps = (ints_of(v) for v in given)
    assert starts is not None and ends is not None
    if steps is not None and set(steps) != {1}:
        return None
    begins, stops = [0] * len(shape), list(shape)
    for start, end, given_axis in zip(starts, ends, axes or range(len(starts)), strict=False):
        axis = axis_of(given_axis, len(shape))
        begins[axis], stops[axis], _ = slice(start, end).indices(shape[axis])
    return begins, stops


def permute(node: ir.Node, perm: Sequence[int], b: Builder) -> None:
    axes = ints_of(input_at(node, 3))
    count = element_count(node.inputs[1])  # type: ignore[arg-type]
    axes = [perm[axis_of(a, len(perm))] for a in axes or range(count)]
    if len(node.inputs) < 4:
        node.resize_inputs(4)
    node.replace_input_with(3, b.const(np.array(axes, np.int64), "axes"))


def refuse(node: ir.Node, target: Target) -> Refusal:
    if any(v is not None and not is_constant(v) for v in node.inputs[1:]):
        return "its bounds are computed at run time"
    if ranges(node) is None:
        return f"its steps are {ints_of(input_at(node, 4))}; STRIDED_SLICE on the Edge TPU has steps of one"
    return None


def ties(node: ir.Node) -> list[ChannelTie] | None:
    bounds, x = ranges(node), node.inputs[0]
    assert bounds is not None and x is not None
    return [ChannelTie(x, node.outputs[0], of_a=slice(bounds[0][-1], bounds[1][-1]))]


def emit(node: ir.Node, w: Writer) -> None:
    bounds = ranges(node)
    assert bounds is not None
    begins, ends = bounds
    inputs = [w.tensor(node.inputs[0]), w.ints(begins), w.ints(ends), w.ints([1] * len(begins))]
    w.add("STRIDED_SLICE", 2, inputs, [w.tensor(node.outputs[0])], {})


def lower_gather(node: ir.Node, b: Builder) -> None:
    x, index = node.inputs
    assert x is not None and index is not None
    if is_constant(x):
        raise RefuseError("it looks up rows of a table; the Edge TPU has no GATHER")
    wanted = ints_of(index)
    if wanted is None:
        raise RefuseError("its indices are computed at run time; the Edge TPU has no GATHER")
    axis = axis_of(int(attribute_of(node, "axis", 0)), len(shape_of(x)))
    first = axis_of(wanted[0], shape_of(x)[axis])
    if [axis_of(i, shape_of(x)[axis]) for i in wanted] != list(range(first, first + len(wanted))):
        raise RefuseError("its indices are not neighbours; the Edge TPU has no GATHER")
    bounds = [b.const(np.array([i], np.int64), "slice") for i in (first, first + len(wanted), axis)]
    part = b.op("Slice", [x, *bounds])
    b.replace(b.reshape(part, shape_of(node.outputs[0])))


BUILTINS = (Builtin("STRIDED_SLICE", 2),)

OPERATORS = (
    Operator("Slice", refuse=refuse, scales=same_scale, emit=emit, permute=permute, ties=ties),
    Operator("Gather", lower=lower_gather),
)
