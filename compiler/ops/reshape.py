"""Reshape, Flatten, Squeeze, Unsqueeze: RESHAPE. Identity and Dropout: nothing, but for a copy
where one is needed."""

from __future__ import annotations

import math

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
from compiler.ops.rules import Builtin, OpInfo, Rule, TensorInfo, example
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target


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


def _innermost(tensor: TensorInfo) -> tuple[int, ...]:
    """The three innermost dimensions, which the device computes on."""
    return (1, 1, 1, *tensor.shape)[-3:]


def _is_joined(op: OpInfo) -> bool:
    """Whether rows of an image become one line, each place with the channels that it had, as the
    boxes of all cells of a detector do."""
    x, y = op.inputs[0], op.outputs[0]
    assert x is not None
    return _innermost(y)[0] == 1 and x.shape[-1:] == y.shape[-1:]


def _joined(op: OpInfo, target: Target) -> str | None:
    return _too_large(op, target.line_elements) if _is_joined(op) else None


def _other(op: OpInfo, target: Target) -> str | None:
    return None if _is_joined(op) else _too_large(op, target.reshaped_elements)


def _too_large(op: OpInfo, most: int) -> str | None:
    x, y = op.inputs[0], op.outputs[0]
    assert x is not None
    if y.elements <= most or _innermost(x) == _innermost(y):
        return None
    return f"it makes {list(y.shape)} of {list(x.shape)}"


def _example(x: tuple[int, ...], *y: int) -> OpInfo:
    return example("RESHAPE", x, y)


# Only dimensions of 1 in front differ where the three innermost ones stay: nothing moves.
_RULES = (
    Rule(
        "it joins rows into a line of at most 102,000 elements (that many were mapped, 199,920 "
        "were not)",
        _joined,
        "measured",
        accepts=_example((1, 400, 3, 85), 1, 1200, 85),
        refuses=_example((1, 3, 784, 85), 1, 2352, 85),
        source="yolov5n and yolov5s at 160 x 160 and 224 x 224 (logs 069 to 071)",
    ),
    Rule(
        "it gives at most 408,000 elements another shape (that many were mapped, 1,632,000 were "
        "not)",
        _other,
        "measured",
        accepts=_example((1, 40, 40, 255), 1, 1600, 3, 85),
        refuses=_example((1, 80, 80, 255), 1, 6400, 3, 85),
        source="yolov5n compiled at 640 x 640",
    ),
)

# Positions of an image of one channel that become channels at a time.
_GATHERED = 16


def layer(op: OpInfo) -> Layer | None:
    """What makes a row of an image of one channel: a convolution that gathers positions as
    channels, which the device stores as any other (LibrEdgeTPU's trackers and looming models).

    What the device stores for images of several channels is not known.
    """
    shape, row = op.activations[0].shape, op.outputs[0].shape
    positions = math.prod(shape)
    if len(shape) != 4 or shape[3] != 1 or row[-1] != positions or positions in shape:
        return None
    gathered = min(positions, _GATHERED)
    return Layer("conv", 1, gathered, gathered, per_channel=False)


BUILTINS = (Builtin("RESHAPE", 1, _RULES, layer),)

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
