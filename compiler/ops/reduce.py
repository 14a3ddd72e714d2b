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
from compiler.ops.rules import Builtin, OpInfo, Rule, TensorInfo, constant, example, integers
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


def _reduced(op: OpInfo) -> tuple[TensorInfo, list[int]] | None:
    """What an operator of TFLite reduces and its axes, not negative; None where these are not
    known."""
    x, values = op.inputs[0], op.values_of(1)
    if x is None or values is None:
        return None
    return x, [axis_of(axis, len(x.shape)) for axis in values]


def _batch(op: OpInfo, target: Target) -> str | None:
    found = _reduced(op)
    if found is None:
        return None
    x, axes = found
    is_batch = 0 in axes and len(x.shape) > 1 and x.shape[0] > 1
    return f"it reduces axis 0 of {list(x.shape)}" if is_batch else None


def _positions(op: OpInfo, target: Target) -> str | None:
    found = _reduced(op)
    if found is None:
        return None
    x, axes = found
    last = len(x.shape) - 1
    count = math.prod(x.shape[axis] for axis in axes if axis != last)
    return f"it averages {count:,}" if count > target.mean_positions else None


def _channels(op: OpInfo, target: Target) -> str | None:
    found = _reduced(op)
    if found is None:
        return None
    x, axes = found
    is_odd = len(x.shape) - 1 in axes and x.shape[-1] % 4 != 0
    return f"it averages {x.shape[-1]} channels" if is_odd else None


def _example(builtin: str, shape: tuple[int, ...], *axes: int) -> OpInfo:
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return example(builtin, shape, integers(*axes), kept, keepDims=True)


_RULES = (
    constant(1, "axes", _example("SUM", (1, 8, 8, 4), 1, 2)),
    Rule(
        "it does not reduce the batch dimension",
        _batch,
        "documented",
        accepts=_example("SUM", (1, 8, 4), 0, 1),
        refuses=_example("SUM", (2, 8, 4), 0),
    ),
)
_MEAN_RULES = (
    *_RULES,
    Rule(
        "it averages at most 8,192 positions (64 x 128 were mapped, 128 x 256 were not)",
        _positions,
        "measured",
        accepts=_example("MEAN", (1, 64, 128, 8), 1, 2),
        refuses=_example("MEAN", (1, 128, 256, 8), 1, 2),
        source="issue 461 of google-coral/edgetpu",
    ),
    Rule(
        "channels that it averages are a multiple of 4",
        _channels,
        "documented",
        accepts=_example("MEAN", (1, 8, 8, 12), 3),
        refuses=_example("MEAN", (1, 8, 8, 10), 3),
    ),
)

BUILTINS = (
    Builtin("MEAN", 2, _MEAN_RULES, table="ReducerOptions"),
    Builtin("SUM", 2, _RULES, table="ReducerOptions"),
    Builtin("REDUCE_MAX", 2, _RULES, table="ReducerOptions"),
    Builtin("REDUCE_MIN", 2, _RULES, table="ReducerOptions"),
)

OPERATORS = (
    Operator("ReduceMean", lower=lower, refuse=refuse, emit=emit, permute=permute, ties=ties),
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
