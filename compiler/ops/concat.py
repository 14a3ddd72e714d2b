"""Concat and Split: CONCATENATION, SPLIT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import Builder, attribute_of, axis_of, input_at, is_constant, shape_of
from compiler.ops.common import (
    ChannelTie,
    Operator,
    Refusal,
    RefuseError,
    channels,
    permute_axis,
    same_channels,
    same_scale,
)
from compiler.ops.elementwise import permute_constants
from compiler.ops.rules import NO_FUSED_ACTIVATION, Builtin, OpInfo, Rule
from compiler.ops.writer import Writer
from compiler.targets import Target


def permute_concat(node: ir.Node, perm: Sequence[int], b: Builder) -> None:
    permute_axis(node, perm, b)
    permute_constants(node, perm, b)


def emit_concat(node: ir.Node, w: Writer) -> None:
    y = node.outputs[0]
    axis = axis_of(int(attribute_of(node, "axis")), len(shape_of(y)))
    inputs = [w.operand(v, y) for v in node.inputs if v is not None]
    w.add("CONCATENATION", 2, inputs, [w.tensor(y)], {"axis": axis, "fusedActivationFunction": 0})


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """Channels of the whole are those of the parts, one behind the other or alike."""
    concat = node.op_type == "Concat"
    whole, parts = (node.outputs[0], node.inputs) if concat else (node.inputs[0], node.outputs)
    if whole is None or any(v is None or is_constant(v) for v in parts):
        return None
    rank = len(shape_of(whole))
    if axis_of(int(attribute_of(node, "axis", 0)), rank) != rank - 1:
        return same_channels(node)
    found, begin = [], 0
    for part in parts:
        assert part is not None
        found.append(ChannelTie(part, whole, of_b=slice(begin, begin + channels(part))))
        begin += channels(part)
    return found


def lower_split(node: ir.Node, b: Builder) -> None:
    """Unequal parts become slices; the Edge TPU has no SPLIT_V."""
    x = node.inputs[0]
    assert x is not None
    sizes_value = input_at(node, 1)
    if sizes_value is not None and not is_constant(sizes_value):
        raise RefuseError("its sizes are computed at run time")
    axis = axis_of(int(attribute_of(node, "axis", 0)), len(shape_of(x)))
    sizes = [shape_of(v)[axis] for v in node.outputs]
    if len(set(sizes)) == 1:
        if sizes_value is not None:
            count = len(sizes)
            b.replace(
                *b.ops("Split", [x, None], {"axis": axis, "num_outputs": count}, outputs=count)
            )
        return
    parts, begin = [], 0
    for size in sizes:
        bounds = [b.const(np.array([i], np.int64), "slice") for i in (begin, begin + size, axis)]
        parts.append(b.op("Slice", [x, *bounds]))
        begin += size
    b.replace(*parts)


def refuse_split(node: ir.Node, target: Target) -> Refusal:
    rank = len(shape_of(node.inputs[0]))
    batch = axis_of(int(attribute_of(node, "axis", 0)), rank) == 0 and rank > 1
    return "it splits the batch dimension" if batch else None


def emit_split(node: ir.Node, w: Writer) -> None:
    x = node.inputs[0]
    axis = axis_of(int(attribute_of(node, "axis", 0)), len(shape_of(x)))
    outputs = [w.tensor(v) for v in node.outputs]
    w.add("SPLIT", 2, [w.scalar_int(axis), w.tensor(x)], outputs, {"numSplits": len(outputs)})


def _joined_constants(op: OpInfo, target: Target) -> str | None:
    constants = [t for t in op.inputs if t is not None and t.constant]
    fine = not constants or (len(op.inputs) == 2 and all(t.zeros for t in constants))
    return None if fine else f"it joins a constant, '{constants[0].name}'"


BUILTINS = (
    Builtin(
        "CONCATENATION",
        2,
        (
            NO_FUSED_ACTIVATION,
            Rule(
                "a constant among its inputs is all zeros and one of two",
                _joined_constants,
                "documented",
            ),
        ),
    ),
    Builtin("SPLIT", 2),
)

OPERATORS = (
    Operator("Concat", scales=same_scale, emit=emit_concat, permute=permute_concat, ties=ties),
    Operator(
        "Split",
        lower=lower_split,
        refuse=refuse_split,
        scales=same_scale,
        emit=emit_split,
        permute=permute_axis,
        ties=ties,
    ),
)
