"""Concat and Split: CONCATENATION, SPLIT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.ops.common import Operator, Refusal, RefuseError, permute_axis, refuse_tensors, same_scale
from compiler.ops.elementwise import permute_constants
from compiler.targets import Target

if TYPE_CHECKING:
    from compiler.emit.tflite import Writer


def refuse_concat(node: ir.Node, target: Target) -> Refusal:
    constants = [v for v in node.inputs if cir.is_const(v)]
    if constants:
        zeros = all(not np.any(cir.const(v)) for v in constants)
        if len(node.inputs) != 2 or not zeros:
            return "it joins a constant; the Edge TPU allows one other input and only zeros"
    return refuse_tensors(node, target)


def permute_concat(node: ir.Node, perm: Sequence[int], b: cir.Builder) -> None:
    permute_axis(node, perm, b)
    permute_constants(node, perm, b)


def emit_concat(node: ir.Node, w: Writer) -> None:
    y = node.outputs[0]
    axis = cir.axis_of(int(cir.attr(node, "axis")), len(cir.shape(y)))
    inputs = [w.operand(v, y) for v in node.inputs if v is not None]
    w.add("CONCATENATION", 2, inputs, [w.tensor(y)], {"axis": axis, "fusedActivationFunction": 0})


def lower_split(node: ir.Node, b: cir.Builder) -> None:
    """Unequal parts become slices; the Edge TPU has no SPLIT_V."""
    x = node.inputs[0]
    assert x is not None
    sizes_value = cir.arg(node, 1)
    if sizes_value is not None and not cir.is_const(sizes_value):
        raise RefuseError("its sizes are computed at run time")
    axis = cir.axis_of(int(cir.attr(node, "axis", 0)), len(cir.shape(x)))
    sizes = [cir.shape(v)[axis] for v in node.outputs]
    if len(set(sizes)) == 1:
        if sizes_value is not None:
            count = len(sizes)
            b.replace(*b.ops("Split", [x, None], {"axis": axis, "num_outputs": count}, outputs=count))
        return
    parts, begin = [], 0
    for size in sizes:
        bounds = [b.const(np.array([i], np.int64), "slice") for i in (begin, begin + size, axis)]
        parts.append(b.op("Slice", [x, *bounds]))
        begin += size
    b.replace(*parts)


def refuse_split(node: ir.Node, target: Target) -> Refusal:
    x = node.inputs[0]
    axis = cir.axis_of(int(cir.attr(node, "axis", 0)), len(cir.shape(x)))
    if axis == 0 and len(cir.shape(x)) > 1:
        return "it splits the batch dimension"
    return refuse_tensors(node, target)


def emit_split(node: ir.Node, w: Writer) -> None:
    x = node.inputs[0]
    axis = cir.axis_of(int(cir.attr(node, "axis", 0)), len(cir.shape(x)))
    outputs = [w.tensor(v) for v in node.outputs]
    w.add("SPLIT", 2, [w.scalar_int(axis), w.tensor(x)], outputs, {"numSplits": len(outputs)})


OPERATORS = (
    Operator("Concat", refuse=refuse_concat, scales=same_scale, emit=emit_concat, permute=permute_concat),
    Operator(
        "Split",
        lower=lower_split,
        refuse=refuse_split,
        scales=same_scale,
        emit=emit_split,
        permute=permute_axis,
    ),
)
