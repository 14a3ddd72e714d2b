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
from compiler.ops.rules import Builtin, OpInfo
from compiler.ops.writer import Writer
from compiler.targets import Layer


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


BUILTINS = (Builtin("RESHAPE", 1, (), layer),)

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
