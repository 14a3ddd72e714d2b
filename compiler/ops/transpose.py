"""Transpose: TRANSPOSE."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import attribute_of, shape_of
from compiler.ops.common import ChannelTie, Moves, Operator, Refusal, same_channels, same_scale
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer
from compiler.targets import Target


def permutation(node: ir.Node) -> tuple[int, ...]:
    """For each axis of the output the axis of the input; without `perm` the axes are reversed."""
    rank = len(shape_of(node.inputs[0]))
    return tuple(attribute_of(node, "perm", tuple(reversed(range(rank)))))


def refuse(node: ir.Node, target: Target) -> Refusal:
    if len(shape_of(node.inputs[0])) > 4:
        return "it has more than four dimensions"
    return None


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """Channels stay channels where the last axis stays the last."""
    perm = permutation(node)
    return same_channels(node) if perm[-1] == len(perm) - 1 else None


def emit(node: ir.Node, writer: Writer) -> None:
    inputs = [writer.tensor(node.inputs[0]), writer.ints(permutation(node))]
    writer.add("TRANSPOSE", 2, inputs, [writer.tensor(node.outputs[0])], {})


BUILTINS = (Builtin("TRANSPOSE", 5),)

OPERATORS = (
    Operator(
        "Transpose",
        refuse=refuse,
        scales=same_scale,
        emit=emit,
        ties=ties,
        moves=Moves.ELEMENTS,
    ),
)
