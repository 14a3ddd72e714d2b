"""Pixels, scales that a model brings with it, and changes of scale: QUANTIZE."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import DIALECT, Builder, array_of, scalar_of
from compiler.ops.common import (
    Moves,
    Operator,
    RefuseError,
    Scales,
    free_permute,
    same_channels,
    same_scale,
)
from compiler.ops.rules import Builtin
from compiler.ops.writer import Writer


def lower_dequantize(node: ir.Node, builder: Builder) -> None:
    """Pixels: an input of the model of 8 bits, with one scale and one zero point."""
    x, scale, *zero_points = node.inputs
    assert x is not None
    if not x.is_graph_input():
        raise RefuseError("its input is quantized at run time; the Edge TPU has int8 throughout")
    if x.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        raise RefuseError("its input is not of 8 bits")
    zero_point = zero_points[0] if zero_points else None
    if scalar_of(scale) is None or scalar_of(zero_point) is None:
        raise RefuseError("it has no constant scale and zero point, or several")
    builder.replace(builder.op("Dequantize", [x, scale, zero_point], domain=DIALECT))


def given_scale(node: ir.Node) -> tuple[float, int]:
    """(scale, int8 zero point) of a FakeQuantize or a Dequantize; uint8 is shifted by 128."""
    _, scale, zero_point = node.inputs
    assert scale is not None and zero_point is not None
    zeros = array_of(zero_point)
    shift = 128 if zeros.dtype == np.uint8 else 0
    return float(array_of(scale).reshape(-1)[0]), int(zeros.reshape(-1)[0]) - shift


def scales_given(node: ir.Node) -> Scales:
    """What it reads takes the given scale too, so that nothing is left to do."""
    y = node.outputs[0]
    return Scales(same=same_scale(node).same, fixed={y: given_scale(node)})


def scale_of_pixels(node: ir.Node) -> Scales:
    """What it gives is int8 of the very steps that it reads."""
    return Scales(fixed={node.outputs[0]: given_scale(node)})


def emit_pixels(node: ir.Node, writer: Writer) -> None:
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    writer.pixels(x, y)


def emit_nothing(node: ir.Node, writer: Writer) -> None:
    """The tensor is int8 with that very scale already."""
    writer.alias(node.outputs[0], node.inputs[0])


def emit_requantize(node: ir.Node, writer: Writer) -> None:
    writer.add("QUANTIZE", 1, [writer.tensor(node.inputs[0])], [writer.tensor(node.outputs[0])], {})


BUILTINS = (Builtin("QUANTIZE", 2),)

OPERATORS = (
    Operator("DequantizeLinear", lower=lower_dequantize),
    Operator(
        "Dequantize",
        DIALECT,
        body="""
    Dequantize (x, scale, zero_point) => (y) {
        y = DequantizeLinear (x, scale, zero_point)
    }""",
        scales=scale_of_pixels,
        emit=emit_pixels,
        permute=free_permute,
        reads_bytes=True,
    ),
    Operator(
        "FakeQuantize",
        DIALECT,
        body="""
    FakeQuantize (x, scale, zero_point) => (y) {
        q = QuantizeLinear (x, scale, zero_point)
        y = DequantizeLinear (q, scale, zero_point)
    }""",
        scales=scales_given,
        emit=emit_nothing,
        permute=free_permute,
        # Scales are the converter's to choose.
        stand_in="Identity",
    ),
    Operator(
        "Requantize",
        DIALECT,
        body="""
    Requantize (x) => (y) {
        y = Identity (x)
    }""",
        emit=emit_requantize,
        permute=free_permute,
        ties=same_channels,
        moves=Moves.VALUES,
        stand_in="Identity",
    ),
)
