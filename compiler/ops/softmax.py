"""Softmax: SOFTMAX over the last axis."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import Builder, attribute_of, axis_of, consumers_of, element_count, shape_of
from compiler.ops.common import Operator, Refusal, Scales, permute_axis
from compiler.ops.rules import Builtin, OpInfo, Rule, example, rows_of
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
        return f"it is along axis {axis} of {len(shape)}; SOFTMAX works along the last one"
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


def _length(op: OpInfo, target: Target) -> str | None:
    if rows_of(op) > 1:
        return None
    count = op.outputs[0].shape[-1]
    return f"it has {count:,} elements" if count > target.softmax_elements else None


def _rows(op: OpInfo, target: Target) -> str | None:
    rows = rows_of(op)
    length = op.outputs[0].shape[-1]
    is_known = length <= target.softmax_row and rows * length <= target.softmax_rows_elements
    if rows == 1 or is_known:
        return None
    return f"it has {rows:,} rows of {length}"


def _example(*shape: int) -> OpInfo:
    return example("SOFTMAX", shape, shape)


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
    Rule(
        "a single row has at most 16,384 elements (that many were mapped, more were not seen)",
        _length,
        "measured",
        accepts=_example(1, 16_384),
        refuses=_example(1, 16_385),
        source="LibrEdgeTPU bright_128x128; documented are 16,000",
    ),
    Rule(
        "several rows have at most 16 elements each and 86,016 in all (5,376 rows of 16 were "
        "mapped, more or longer ones were not seen)",
        _rows,
        "measured",
        accepts=_example(1, 4, 1344, 16),
        refuses=_example(1, 4, 1344, 17),
        source="yolov8n compiled at 256 x 256; at 160 and 192: logs 072 to 075",
    ),
)

BUILTINS = (Builtin("SOFTMAX", 2, _RULES, layer),)

OPERATORS = (
    Operator("Softmax", lower=lower, refuse=refuse, scales=scales, emit=emit, permute=permute_axis),
)
