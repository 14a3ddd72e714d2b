"""Pad with zeros: PAD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import Builder, attribute_of, axis_of, input_at, ints_of, scalar_of, shape_of
from compiler.ops.common import Operator, Refusal, same_channels, same_scale
from compiler.ops.rules import Builtin, OpInfo, Rule, example, four_dimensions, integers
from compiler.ops.writer import Writer
from compiler.targets import Target


def amounts(node: ir.Node) -> list[tuple[int, int]] | None:
    """(before, after) of every dimension, None where they are computed at run time."""
    rank = len(shape_of(node.inputs[0]))
    pads = ints_of(input_at(node, 1))
    axes: list[int] | None = list(range(rank))
    if input_at(node, 3) is not None:
        axes = ints_of(input_at(node, 3))
    if pads is None or axes is None:
        return None
    found = [(0, 0)] * rank
    half = len(pads) // 2
    for index, axis in enumerate(axes):
        found[axis_of(axis, rank)] = (pads[index], pads[half + index])
    return found


def permute(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    """Amounts in the order that the axes have in front of the Transpose, for all axes."""
    pads = amounts(node)
    assert pads is not None
    moved = [pads[axis] for axis in np.argsort(perm)]
    flat = [before for before, _ in moved] + [after for _, after in moved]
    node.replace_input_with(1, builder.const(np.array(flat, np.int64), "pads"))
    # The amounts are now those of all axes.
    node.resize_inputs(min(len(node.inputs), 3))


def refuse(node: ir.Node, target: Target) -> Refusal:
    pads = amounts(node)
    if pads is None:
        return "its amounts are computed at run time"
    mode = attribute_of(node, "mode", "constant")
    if mode != "constant":
        return f"its mode is {mode}; the Edge TPU pads with zeros"
    value = input_at(node, 2)
    if value is not None and scalar_of(value) != 0:
        return "it does not pad with zeros; the Edge TPU has no PADV2"
    if np.min(pads) < 0:
        return "it pads by negative amounts"
    return None


def emit(node: ir.Node, writer: Writer) -> None:
    pads = amounts(node)
    assert pads is not None
    table = writer.int_table(np.array(pads, np.int32))
    writer.add(
        "PAD", 2, [writer.tensor(node.inputs[0]), table], [writer.tensor(node.outputs[0])], {}
    )


def _batch(op: OpInfo, target: Target) -> str | None:
    x, y = op.inputs[0], op.outputs[0]
    assert x is not None
    is_batch = len(x.shape) > 1 and x.shape[0] != y.shape[0]
    return f"it makes {list(y.shape)} of {list(x.shape)}" if is_batch else None


_AMOUNTS = integers(0, 0, 1, 1, 1, 1, 0, 0)
_RULES = (
    four_dimensions("PAD", _AMOUNTS),
    Rule(
        "it does not pad the batch dimension",
        _batch,
        "documented",
        accepts=example("PAD", (1, 8, 8, 4), _AMOUNTS, (1, 10, 10, 4)),
        refuses=example("PAD", (1, 8, 4), integers(0, 1, 0, 0, 0, 0), (2, 8, 4)),
    ),
)

BUILTINS = (Builtin("PAD", 2, _RULES),)

OPERATORS = (
    Operator(
        "Pad", refuse=refuse, scales=same_scale, emit=emit, permute=permute, ties=same_channels
    ),
)
