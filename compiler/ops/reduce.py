"""Reductions with constant axes: MEAN, SUM, REDUCE_MAX, REDUCE_MIN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    attribute_of,
    axis_of,
    input_at,
    ints_of,
    is_constant,
    shape_of,
    to_nchw,
    to_nhwc,
)
from compiler.ops.common import (
    ChannelTie,
    Operator,
    Refusal,
    RefuseError,
    same_channels,
    same_scale,
)
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer
from compiler.targets import Target

_BUILTIN = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
}


def axes_of(node: ir.Node) -> list[int]:
    """The reduced axes, non-negative and sorted."""
    rank = len(shape_of(node.inputs[0]))
    value = input_at(node, 1)
    if value is not None and not is_constant(value):
        raise RefuseError("its axes are computed at run time")
    axes = ints_of(value)
    if axes:
        return sorted(axis_of(axis, rank) for axis in axes)
    if attribute_of(node, "noop_with_empty_axes", 0):
        return []
    return list(range(rank))


def lower(node: ir.Node, builder: Builder) -> None:
    """Keep the reduced dimensions and drop them by a Reshape, so that a Transpose can pass; images
    as NHWC."""
    axes = axes_of(node)
    x = node.inputs[0]
    assert x is not None
    if axes == [2, 3] and len(shape_of(x)) == 4:
        # Height and width of an NCHW image.
        kept = to_nchw(builder, _kept(node, to_nhwc(builder, x), [1, 2], builder))
    elif attribute_of(node, "keepdims", 1) or not axes:
        return
    else:
        kept = _kept(node, x, axes, builder)
    builder.replace(builder.reshape(kept, shape_of(node.outputs[0])))


def _kept(node: ir.Node, x: ir.Value, axes: list[int], builder: Builder) -> ir.Value:
    """The reduction of x over other axes, with its dimensions kept."""
    return builder.op(
        node.op_type, [x, builder.const(np.array(axes, np.int64), "axes")], {"keepdims": 1}
    )


def permute(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    axes = sorted(perm[axis] for axis in axes_of(node))
    value = builder.const(np.array(axes, np.int64), "axes")
    if len(node.inputs) < 2:
        # All axes were meant, which need no input.
        node.resize_inputs(2)
    node.replace_input_with(1, value)


def refuse(node: ir.Node, target: Target) -> Refusal:
    try:
        axes = axes_of(node)
    except RefuseError as reason:
        return str(reason)
    if not axes:
        return "it reduces nothing"
    if not attribute_of(node, "keepdims", 1):
        return "it drops the reduced dimensions"
    shape = shape_of(node.inputs[0])
    if 0 in axes and shape[0] > 1 and len(shape) > 1:
        return f"it reduces the batch dimension of {list(shape)}"
    return None


def refuse_mean(node: ir.Node, target: Target) -> Refusal:
    """As other reductions; MEAN has limits of its own."""
    reason = refuse(node, target)
    if reason is not None:
        return reason
    shape = shape_of(node.inputs[0])
    axes = axes_of(node)
    last = len(shape) - 1
    positions = math.prod(shape[axis] for axis in axes if axis != last)
    most = target.mean_positions
    if positions > most:
        return f"it averages {positions} positions; up to {most} are known to compile"
    if last in axes and shape[last] % 4:
        return f"it averages {shape[last]} channels; the Edge TPU needs a multiple of 4"
    return None


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """Channels stay channels where they are not what is reduced."""
    last = len(shape_of(node.inputs[0])) - 1
    return None if last in axes_of(node) else same_channels(node)


def emit(node: ir.Node, writer: Writer) -> None:
    inputs = [writer.tensor(node.inputs[0]), writer.ints(axes_of(node))]
    writer.add(
        _BUILTIN[node.op_type], 2, inputs, [writer.tensor(node.outputs[0])], {"keepDims": True}
    )


BUILTINS = (
    Builtin("MEAN", 2, table="ReducerOptions"),
    Builtin("SUM", 2, table="ReducerOptions"),
    Builtin("REDUCE_MAX", 2, table="ReducerOptions"),
    Builtin("REDUCE_MIN", 2, table="ReducerOptions"),
)

OPERATORS = (
    Operator("ReduceMean", lower=lower, refuse=refuse_mean, emit=emit, permute=permute, ties=ties),
    Operator("ReduceSum", lower=lower, refuse=refuse, emit=emit, permute=permute, ties=ties),
    Operator(
        "ReduceMax",
        lower=lower,
        refuse=refuse,
        scales=same_scale,
        emit=emit,
        permute=permute,
        ties=ties,
    ),
    Operator(
        "ReduceMin",
        lower=lower,
        refuse=refuse,
        scales=same_scale,
        emit=emit,
        permute=permute,
        ties=ties,
    ),
)
