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
    "ReduceMean": ("MEAN", 2),
    "ReduceSum": ("SUM", 2),
    "ReduceMax": ("REDUCE_MAX", 2),
    "ReduceMin": ("REDUCE_MIN", 2),
}


def axes_of(node: ir.Node) -> list[int]:
    """The reduced axes, non-negative and sorted."""
    rank = len(shape_of(node.inputs[0]))
    value = input_at(node, 1)
    if value is not None and not is_constant(value):
        raise RefuseError("its axes are computed at run time")
    axes = ints_of(value)
    if not axes:
        axes = [] if attribute_of(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis_of(a, rank) for a in axes)


def lower(node: ir.Node, b: Builder) -> None:
    """Keep the reduced dimensions and drop them by a Reshape, so that a Transpose can pass; images
    as NHWC."""
    axes, x = axes_of(node), node.inputs[0]
    assert x is not None
    if axes == [2, 3] and len(shape_of(x)) == 4:
        kept = to_nchw(b, _kept(node, to_nhwc(b, x), [1, 2], b))
    elif attribute_of(node, "keepdims", 1) or not axes:
        return
    else:
        kept = _kept(node, x, axes, b)
    b.replace(b.reshape(kept, shape_of(node.outputs[0])))


def _kept(node: ir.Node, x: ir.Value, axes: list[int], b: Builder) -> ir.Value:
    return b.op(node.op_type, [x, b.const(np.array(axes, np.int64), "axes")], {"keepdims": 1})


def permute(node: ir.Node, perm: Sequence[int], b: Builder) -> None:
    axes = np.array(sorted(perm[a] for a in axes_of(node)), np.int64)
    value = b.const(axes, "axes")
    if len(node.inputs) < 2:
        node.resize_inputs(2)
    node.replace_input_with(1, value)


def refuse(node: ir.Node, target: Target) -> Refusal:
    x = node.inputs[0]
    assert x is not None
    try:
        axes = axes_of(node)
    except RefuseError as reason:
        return str(reason)
    if not axes:
        return "it reduces nothing"
    shape = shape_of(x)
    if not attribute_of(node, "keepdims", 1):
        return "it drops the reduced dimensions"
    if node.op_type == "ReduceMean":
        inner = len(shape) - 1
        positions = math.prod(shape[a] for a in axes if a != inner)
        if positions > target.mean_positions:
            return f"it averages {positions} positions; up to {target.mean_positions} are known to compile"
        if inner in axes and shape[inner] % 4:
            return f"it averages {shape[inner]} channels; the Edge TPU needs a multiple of 4"
    if 0 in axes and shape[0] > 1 and len(shape) > 1:
        return f"it reduces the batch dimension of {list(shape)}"
    return None


def ties(node: ir.Node) -> list[ChannelTie] | None:
    rank = len(shape_of(node.inputs[0]))
    return None if rank - 1 in axes_of(node) else same_channels(node)


def emit(node: ir.Node, w: Writer) -> None:
    name, version = _BUILTIN[node.op_type]
    inputs = [w.tensor(node.inputs[0]), w.ints(axes_of(node))]
    w.add(name, version, inputs, [w.tensor(node.outputs[0])], {"keepDims": True})


BUILTINS = tuple(Builtin(name, version) for name, version in _BUILTIN.values())

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
