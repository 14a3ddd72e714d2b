"""Scales that a model brings with it, and changes of scale: QUANTIZE."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import DIALECT, activations_of, constant_of
from compiler.ops.common import Operator, Scales, free_permute, same_channels
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer


def given(node: ir.Node) -> tuple[float, int]:
    """(scale, int8 zero point) of a FakeQuantize; uint8 is shifted by 128."""
    scale, zero_point = constant_of(node.inputs[1]), constant_of(node.inputs[2])
    assert scale is not None and zero_point is not None
    shift = 128 if zero_point.dtype == np.uint8 else 0
    return float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]) - shift


def scales_given(node: ir.Node) -> Scales:
    y = node.outputs[0]
    return Scales(same=(*activations_of(node), y), fixed={y: given(node)})


def emit_nothing(node: ir.Node, w: Writer) -> None:
    """The tensor is int8 with that very scale already."""
    w.alias(node.outputs[0], node.inputs[0])


def emit_requantize(node: ir.Node, w: Writer) -> None:
    w.add("QUANTIZE", 1, [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {})


BUILTINS = (Builtin("QUANTIZE", 2),)

OPERATORS = (
    Operator(
        "FakeQuantize",
        DIALECT,
        scales=scales_given,
        emit=emit_nothing,
        permute=free_permute,
    ),
    Operator("Requantize", DIALECT, emit=emit_requantize, permute=free_permute, ties=same_channels),
)
