"""Softmax: SOFTMAX over one row."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import Builder, attribute_of, axis_of, consumers_of, element_count, shape_of
from compiler.ops.common import Operator, Refusal, Scales
from compiler.ops.rules import Builtin, OpInfo, Rule, rows_of
from compiler.ops.writer import Writer
from compiler.targets import Layer, Target

# What TFLite prescribes for results of SOFTMAX: (scale, zero point).
SOFTMAX_SCALE = (1 / 256, -128)


def lower(node: ir.Node, builder: Builder) -> None:
    """One row along any axis is a row along the last one."""
    (x,) = node.inputs
    assert x is not None
    shape = shape_of(x)
    axis = _axis(node)
    is_one_row = element_count(x) == shape[axis]
    is_written = len(shape) == 2 and axis == 1
    if not is_one_row or is_written:
        return
    y = builder.op("Softmax", [builder.reshape(x, (1, shape[axis]))], {"axis": -1})
    builder.replace(builder.reshape(y, shape))


def _axis(node: ir.Node) -> int:
    return axis_of(int(attribute_of(node, "axis", -1)), len(shape_of(node.inputs[0])))


def refuse(node: ir.Node, target: Target) -> Refusal:
    x = node.inputs[0]
    assert x is not None
    shape = shape_of(x)
    axis = _axis(node)
    if axis != len(shape) - 1:
        return f"it has {element_count(x) // shape[axis]} rows; SOFTMAX on the Edge TPU takes one"
    if _leaves(node.outputs[0]):
        return "it gives the model's output: int8 would round every probability below 1/512 to zero"
    return None


def _leaves(value: ir.Value) -> bool:
    """Whether a value is an output of the graph, or only becomes some by other shapes."""
    if value.is_graph_output():
        return True
    users = consumers_of(value)
    return bool(users) and all(map(_only_reshapes, users))


def _only_reshapes(node: ir.Node) -> bool:
    return node.op_type in ("Reshape", "Identity") and _leaves(node.outputs[0])


def scales(node: ir.Node) -> Scales:
    return Scales(fixed={node.outputs[0]: SOFTMAX_SCALE})


def emit(node: ir.Node, writer: Writer) -> None:
    writer.add(
        "SOFTMAX",
        2,
        [writer.tensor(node.inputs[0])],
        [writer.tensor(node.outputs[0])],
        {"beta": 1.0},
    )


def _one_row(op: OpInfo, target: Target) -> str | None:
    rows = rows_of(op)
    return f"it has {rows} rows" if rows > 1 else None


def _length(op: OpInfo, target: Target) -> str | None:
    count = op.outputs[0].shape[-1]
    return f"it has {count} elements" if count > target.softmax_elements else None


# Bytes that SOFTMAX stores for each 4 channels: what it adds and multiplies so that channels beyond
# the last count for nothing. Read off models compiled since 2021.
_MASK_BYTES = 3 * 64
_MASK_END = 64


def layer(op: OpInfo) -> Layer | None:
    """Masks over the channels, which only a row that does not fill groups of 4 channels needs."""
    channels = op.outputs[0].shape[-1]
    if channels % 4 == 0:
        return None
    groups = channels // 4 + 1
    return Layer("table", 1, groups * _MASK_BYTES + _MASK_END)


_RULES = (
    Rule("it has one row", _one_row, "documented"),
    Rule("a row has at most 16,384 elements", _length, "measured", "LibrEdgeTPU bright_128x128"),
)

BUILTINS = (Builtin("SOFTMAX", 2, _RULES, layer),)

OPERATORS = (Operator("Softmax", lower=lower, refuse=refuse, scales=scales, emit=emit),)
