"""Concat and Split: CONCATENATION, SPLIT."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import Builder, attribute_of, axis_of, input_at, is_constant, shape_of
from compiler.ops.common import (
    ChannelTie,
    Moves,
    Operator,
    RefuseError,
    channels,
    permute_axis,
    same_channels,
    same_scale,
)
from compiler.ops.elementwise import permute_constants
from compiler.ops.rules import (
    NO_FUSED_ACTIVATION,
    Builtin,
    OpInfo,
    Rule,
    TensorInfo,
    example,
    integers,
)
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target
from compiler.targets.memory import up


def permute_concat(node: ir.Node, perm: Sequence[int], builder: Builder) -> None:
    permute_axis(node, perm, builder)
    permute_constants(node, perm, builder)


def emit_concat(node: ir.Node, writer: Writer) -> None:
    y = node.outputs[0]
    # CONCATENATION copies: a constant part has the scale of the whole.
    inputs = [writer.operand(value, y) for value in node.inputs if value is not None]
    options = {"axis": _axis(node, y), "fusedActivationFunction": 0}
    writer.add("CONCATENATION", 2, inputs, [writer.tensor(y)], options)


def _axis(node: ir.Node, whole: ir.Value | None) -> int:
    """The axis along which parts make a whole, not negative."""
    return axis_of(int(attribute_of(node, "axis", 0)), len(shape_of(whole)))


def ties_concat(node: ir.Node) -> list[ChannelTie] | None:
    return _ties(node, node.outputs[0], node.inputs)


def ties_split(node: ir.Node) -> list[ChannelTie] | None:
    return _ties(node, node.inputs[0], node.outputs)


def _ties(
    node: ir.Node, whole: ir.Value | None, parts: Sequence[ir.Value | None]
) -> list[ChannelTie] | None:
    """Channels of the whole are those of the parts, one behind the other or alike."""
    known = [part for part in parts if part is not None and not is_constant(part)]
    # The channels of a constant part would have to follow factors too.
    if whole is None or len(known) != len(parts):
        return None
    if _axis(node, whole) != len(shape_of(whole)) - 1:
        return same_channels(node)
    found = []
    begin = 0
    for part in known:
        end = begin + channels(part)
        found.append(ChannelTie(part, whole, of_b=slice(begin, end)))
        begin = end
    return found


def lower_split(node: ir.Node, builder: Builder) -> None:
    """Equal parts are a SPLIT, unequal ones become slices; the Edge TPU has no SPLIT_V."""
    x = node.inputs[0]
    assert x is not None
    given = input_at(node, 1)
    if given is not None and not is_constant(given):
        raise RefuseError("its sizes are computed at run time")
    axis = _axis(node, x)
    sizes = [shape_of(value)[axis] for value in node.outputs]
    if len(set(sizes)) > 1:
        builder.replace(*_slices(builder, x, axis, sizes))
    elif given is not None:
        # The number of parts says the same as their sizes.
        count = len(sizes)
        attributes = {"axis": axis, "num_outputs": count}
        builder.replace(*builder.ops("Split", [x, None], attributes, outputs=count))


def _slices(builder: Builder, x: ir.Value, axis: int, sizes: Sequence[int]) -> list[ir.Value]:
    """Parts of x of these sizes, one behind the other along an axis."""
    parts = []
    begin = 0
    for size in sizes:
        end = begin + size
        bounds = [builder.const(np.array([i], np.int64), "slice") for i in (begin, end, axis)]
        parts.append(builder.op("Slice", [x, *bounds]))
        begin = end
    return parts


def emit_split(node: ir.Node, writer: Writer) -> None:
    x = node.inputs[0]
    outputs = [writer.tensor(value) for value in node.outputs]
    inputs = [writer.scalar_int(_axis(node, x)), writer.tensor(x)]
    writer.add("SPLIT", 2, inputs, outputs, {"numSplits": len(outputs)})


def _joined_constants(op: OpInfo, target: Target) -> str | None:
    constants = [tensor for tensor in op.inputs if tensor is not None and tensor.constant]
    if not constants:
        return None
    if len(op.inputs) == 2 and all(tensor.zeros for tensor in constants):
        return None
    return f"it joins a constant, '{constants[0].name}'"


def _joined_rows(op: OpInfo, target: Target) -> str | None:
    """Channels are joined whatever their number: those of a YOLO at 640 x 640 are 1,638,400."""
    y = op.outputs[0]
    axis = axis_of(int(op.options.get("axis", 0)), len(y.shape))
    is_large = axis != len(y.shape) - 1 and y.elements > target.joined_elements
    return f"it makes {list(y.shape)} along axis {axis}" if is_large else None


def _split_batch(op: OpInfo, target: Target) -> str | None:
    whole, part = op.inputs[-1], op.outputs[0]
    assert whole is not None
    is_batch = len(whole.shape) > 1 and whole.shape[0] > part.shape[0]
    return f"it splits axis 0 of {list(whole.shape)}" if is_batch else None


def _join(part: tuple[int, ...] | TensorInfo, axis: int, *whole: int) -> OpInfo:
    return example("CONCATENATION", (1, 1, 1), part, whole, axis=axis)


def _split(axis: int, whole: tuple[int, ...], *part: int) -> OpInfo:
    return example("SPLIT", integers(axis), whole, part, part, outputs=2, numSplits=2)


def layer(op: OpInfo) -> Layer | None:
    """What moves the channels of parts that begin within a group of 4 channels: a 1x1 convolution
    of all parts, which the device stores as any other (LibrEdgeTPU's trackers)."""
    rank = len(op.outputs[0].shape)
    parts = [tensor.shape[-1] for tensor in op.inputs if tensor is not None and tensor.shape]
    is_last_axis = op.options.get("axis", 0) in (-1, rank - 1)
    if not is_last_axis or all(part % 4 == 0 for part in parts[:-1]):
        return None
    inputs = sum(up(part, 4) for part in parts)
    return Layer("dense", inputs, op.outputs[0].shape[-1], per_channel=False)


_ZEROS = Rule(
    "a constant among its inputs is all zeros and one of two",
    _joined_constants,
    "documented",
    accepts=_join(TensorInfo("padding", (1, 1, 3), "int8", constant=True, zeros=True), 2, 1, 1, 4),
    refuses=_join(TensorInfo("numbers", (1, 1, 3), "int8", constant=True), 2, 1, 1, 4),
)
_ROWS = Rule(
    "it joins at most 174,447 elements along any axis but the last (that many were mapped, 262,395 "
    "were not)",
    _joined_rows,
    "measured",
    accepts=_join((1, 1916, 91), 1, 1, 1917, 91),
    refuses=_join((1, 3086, 85), 1, 1, 3087, 85),
    source="ssd_mobilenet_v1_coco of google-coral test_data; yolov5s at 224 x 224 (log 069)",
)
_BATCH = Rule(
    "it does not split the batch dimension",
    _split_batch,
    "measured",
    accepts=_split(1, (1, 64, 32), 1, 32, 32),
    refuses=_split(0, (2, 64, 32), 1, 64, 32),
    source="attention of yolo11n compiled at 256 x 256; documented of other operators",
)

BUILTINS = (
    Builtin("CONCATENATION", 2, (NO_FUSED_ACTIVATION, _ZEROS, _ROWS), layer),
    Builtin("SPLIT", 2, (_BATCH,)),
)

OPERATORS = (
    Operator(
        "Concat",
        scales=same_scale,
        emit=emit_concat,
        permute=permute_concat,
        ties=ties_concat,
        moves=Moves.VALUES,
    ),
    Operator(
        "Split",
        lower=lower_split,
        scales=same_scale,
        emit=emit_split,
        permute=permute_axis,
        ties=ties_split,
        moves=Moves.VALUES,
    ),
)
