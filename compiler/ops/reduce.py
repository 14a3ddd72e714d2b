"""Reductions with constant axes: MEAN, SUM, REDUCE_MAX, REDUCE_MIN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.ops.common import Operator, Refusal, RefuseError, Tie, same_channels, same_scale
from compiler.ops.rules import Builtin
from compiler.targets import Target

if TYPE_CHECKING:
    from compiler.emit.tflite import Writer

_BUILTIN = {
    "ReduceMean": ("MEAN", 2),
    "ReduceSum": ("SUM", 2),
    "ReduceMax": ("REDUCE_MAX", 2),
    "ReduceMin": ("REDUCE_MIN", 2),
}


def axes_of(node: ir.Node) -> list[int]:
    """The reduced axes, non-negative and sorted."""
    rank = len(cir.shape(node.inputs[0]))
    value = cir.arg(node, 1)
    if value is not None and not cir.is_const(value):
        raise RefuseError("its axes are computed at run time")
    axes = cir.ints(value)
    if not axes:
        axes = [] if cir.attr(node, "noop_with_empty_axes", 0) else list(range(rank))
    return sorted(cir.axis_of(a, rank) for a in axes)


def lower(node: ir.Node, b: cir.Builder) -> None:
    """Keep the reduced dimensions and drop them by a Reshape, so that a Transpose can pass; images as NHWC."""
    axes, x = axes_of(node), node.inputs[0]
    assert x is not None
    if axes == [2, 3] and len(cir.shape(x)) == 4:
        kept = cir.to_nchw(b, _kept(node, cir.to_nhwc(b, x), [1, 2], b))
    elif cir.attr(node, "keepdims", 1) or not axes:
        return
    else:
        kept = _kept(node, x, axes, b)
    b.replace(b.reshape(kept, cir.shape(node.outputs[0])))


def _kept(node: ir.Node, x: ir.Value, axes: list[int], b: cir.Builder) -> ir.Value:
    return b.op(node.op_type, [x, b.const(np.array(axes, np.int64), "axes")], {"keepdims": 1})


def permute(node: ir.Node, perm: Sequence[int], b: cir.Builder) -> None:
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
    shape = cir.shape(x)
    if not cir.attr(node, "keepdims", 1):
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


def ties(node: ir.Node) -> list[Tie] | None:
    rank = len(cir.shape(node.inputs[0]))
    return None if rank - 1 in axes_of(node) else same_channels(node)


def emit(node: ir.Node, w: Writer) -> None:
    name, version = _BUILTIN[node.op_type]
    inputs = [w.tensor(node.inputs[0]), w.ints(axes_of(node))]
    w.add(name, version, inputs, [w.tensor(node.outputs[0])], {"keepDims": True})


BUILTINS = tuple(Builtin(name, version) for name, version in _BUILTIN.values())

OPERATORS = (
    Operator("ReduceMean", lower=lower, refuse=refuse, emit=emit, permute=permute, ties=ties),
    Operator("ReduceSum", lower=lower, refuse=refuse, emit=emit, permute=permute, ties=ties),
    Operator("ReduceMax", lower=lower, refuse=refuse, scales=same_scale, emit=emit, permute=permute, ties=ties),
    Operator("ReduceMin", lower=lower, refuse=refuse, scales=same_scale, emit=emit, permute=permute, ties=ties),
)
