"""Reshape, Flatten, Squeeze, Unsqueeze: RESHAPE. Identity and Dropout: nothing, but for a copy
where one is needed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    element_count,
    input_at,
    ints_of,
    is_constant,
    is_static,
    shape_of,
)
from compiler.ops.common import (
    ChannelTie,
    Moves,
    Operator,
    RefuseError,
    channels,
    free_permute,
    same_channels,
    same_scale,
)
from compiler.ops.rules import Builtin, OpInfo, Rule, example
from compiler.ops.writer import Writer
from compiler.targets import Target


def lower(node: ir.Node, builder: Builder) -> None:
    """A Reshape to a static shape."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if not is_static(x) or not is_static(y):
        raise RefuseError(
            f"the shape of '{y.name}' depends on data; the Edge TPU needs static shapes"
        )
    wanted = ints_of(input_at(node, 1))
    if node.op_type == "Reshape" and wanted is not None and tuple(wanted) == shape_of(y):
        return
    builder.replace(builder.reshape(x, shape_of(y)))


def lower_nothing(node: ir.Node, builder: Builder) -> None:
    """An operator that passes its input on."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise RefuseError("its mask is used")
    x = node.inputs[0]
    assert x is not None
    is_fixed = x.is_graph_input() or x.is_graph_output() or is_constant(x)
    if node.outputs[0].is_graph_output() and is_fixed:
        # The graph's output needs a name of its own.
        return
    builder.replace(x, *list(node.outputs)[1:])


def ties(node: ir.Node) -> list[ChannelTie] | None:
    """The last axis stays, or becomes a row in which the channels take turns."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    if channels(x) == channels(y):
        return same_channels(node)
    if channels(y) != element_count(y):
        return None
    return [ChannelTie(x, y, of_a=np.arange(channels(y)) % channels(x))]


def emit(node: ir.Node, writer: Writer) -> None:
    y = node.outputs[0]
    shape = shape_of(y)
    inputs = [writer.tensor(node.inputs[0]), writer.ints(shape)]
    writer.add("RESHAPE", 1, inputs, [writer.tensor(y)], {"newShape": list(shape)})


def _innermost(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The three innermost dimensions, which the device computes on."""
    return (1, 1, 1, *shape)[-3:]


def _flat(op: OpInfo, target: Target) -> str | None:
    """A result of one line of positions, such as the rows of all cells of a detector."""
    y = op.outputs[0]
    is_line = _innermost(y.shape)[0] == 1
    return _too_large(op, target.line_elements) if is_line else None


def _image(op: OpInfo, target: Target) -> str | None:
    y = op.outputs[0]
    is_image = _innermost(y.shape)[0] > 1
    return _too_large(op, target.reshaped_elements) if is_image else None


def _too_large(op: OpInfo, most: int) -> str | None:
    x, y = op.inputs[0], op.outputs[0]
    assert x is not None
    if y.elements <= most or _innermost(x.shape) == _innermost(y.shape):
        return None
    return f"it makes {list(y.shape)} of {list(x.shape)}"


def _example(x: tuple[int, ...], *y: int) -> OpInfo:
    return example("RESHAPE", x, y)


_RULES = (
    Rule(
        "its result has at most 102,000 elements if all but its two innermost dimensions are 1 "
        "(that many were mapped, 199,920 were not); adding dimensions of 1 in front is free",
        _flat,
        "measured",
        accepts=_example((1, 400, 3, 85), 1, 1200, 85),
        refuses=_example((1, 3, 784, 85), 1, 2352, 85),
        source="yolov5n and yolov5s at 160 x 160 and 224 x 224 (logs 069 to 071)",
    ),
    Rule(
        "another result has at most 408,000 elements (that many were mapped, 1,632,000 were not)",
        _image,
        "measured",
        accepts=_example((1, 40, 40, 255), 1, 1600, 3, 85),
        refuses=_example((1, 80, 80, 255), 1, 6400, 3, 85),
        source="yolov5n compiled at 640 x 640",
    ),
)

BUILTINS = (Builtin("RESHAPE", 1, _RULES),)

OPERATORS = (
    Operator("Reshape", lower=lower, scales=same_scale, emit=emit, ties=ties, moves=Moves.VIEW),
    Operator("Flatten", lower=lower, moves=Moves.VIEW),
    Operator("Squeeze", lower=lower, moves=Moves.VIEW),
    Operator("Unsqueeze", lower=lower, moves=Moves.VIEW),
    Operator(
        "Identity",
        lower=lower_nothing,
        scales=same_scale,
        emit=emit,
        permute=free_permute,
        ties=same_channels,
        moves=Moves.VIEW,
    ),
    Operator("Dropout", lower=lower_nothing),
)
