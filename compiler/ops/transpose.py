"""Transpose: TRANSPOSE."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import attribute_of, shape_of
from compiler.ops.common import ChannelTie, Moves, Operator, same_channels, same_scale
from compiler.ops.rules import Builtin, OpInfo, Rule, example, four_dimensions, integers
from compiler.ops.writer import Writer
from compiler.targets import Target


def permutation(node: ir.Node) -> tuple[int, ...]:
    """For each axis of the output the axis of the input; without `perm` the axes are reversed."""
    rank = len(shape_of(node.inputs[0]))
    return tuple(attribute_of(node, "perm", tuple(reversed(range(rank)))))


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """Channels stay channels where the last axis stays the last."""
    perm = permutation(node)
    return same_channels(node) if perm[-1] == len(perm) - 1 else None


def emit(node: ir.Node, writer: Writer) -> None:
    inputs = [writer.tensor(node.inputs[0]), writer.ints(permutation(node))]
    writer.add("TRANSPOSE", 2, inputs, [writer.tensor(node.outputs[0])], {})


def _elements(op: OpInfo, target: Target) -> str | None:
    y = op.outputs[0]
    if y.elements <= target.transposed_elements:
        return None
    return f"it makes {list(y.shape)} of {y.elements:,}"


_RULES = (
    four_dimensions("TRANSPOSE", integers(0, 2, 1, 3)),
    Rule(
        "it moves at most 86,016 elements (that many were mapped, 102,400 were not)",
        _elements,
        "measured",
        accepts=example("TRANSPOSE", (1, 4, 16, 1344), integers(0, 1, 3, 2), (1, 4, 1344, 16)),
        refuses=example("TRANSPOSE", (1, 40, 40, 64), integers(0, 3, 1, 2), (1, 64, 40, 40)),
        source="yolov8n compiled at 256 x 256 and at 320 x 320",
    ),
)

BUILTINS = (Builtin("TRANSPOSE", 5, _RULES),)

OPERATORS = (
    Operator(
        "Transpose",
        scales=same_scale,
        emit=emit,
        ties=ties,
        moves=Moves.ELEMENTS,
    ),
)
