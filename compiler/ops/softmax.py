"""Softmax: SOFTMAX over one row."""

from __future__ import annotations

import math

import onnx_ir as ir

from compiler.graph import Builder, attribute_of, axis_of, consumers_of, element_count, shape_of
from compiler.ops.common import Operator, Refusal, Scales
from compiler.ops.rules import Builtin, OpInfo, Rule
from compiler.ops.writer import Writer
from compiler.targets import Target


def lower(node: ir.Node, b: Builder) -> None:
    """One row along any axis is a row along the last one."""
    (x,) = node.inputs
    assert x is not None
    shape = shape_of(x)
    axis = axis_of(int(attribute_of(node, "axis", -1)), len(shape))
    if element_count(x) != shape[axis] or (len(shape) == 2 and axis == 1):
        return
    y = b.op("Softmax", [b.reshape(x, (1, shape[axis]))], {"axis": -1})
    b.replace(b.reshape(y, shape))


def refuse(node: ir.Node, target: Target) -> Refusal:
    x = node.inputs[0]
    assert x is not None
    shape = shape_of(x)
    axis = axis_of(int(attribute_of(node, "axis", -1)), len(shape))
    if axis != len(shape) - 1:
        return f"it has {element_count(x) // shape[axis]} rows; SOFTMAX on the Edge TPU takes one"
    if node.outputs[0].is_graph_output() or _leaves(node.outputs[0]):
        return "it gives the model's output: int8 would round every probability below 1/512 to zero"
    return None


def _leaves(value: ir.Value) -> bool:
    """Whether a value only goes, reshaped, to the outputs of the graph."""
    users = consumers_of(value)
    return bool(users) and all(
        n.op_type in ("Reshape", "Identity")
        and (n.outputs[0].is_graph_output() or _leaves(n.outputs[0]))
        for n in users
    )


def scales(node: ir.Node) -> Scales:
    return Scales(fixed={node.outputs[0]: (1 / 256, -128)})


def emit(node: ir.Node, w: Writer) -> None:
    w.add("SOFTMAX", 2, [w.tensor(node.inputs[0])], [w.tensor(node.outputs[0])], {"beta": 1.0})


def _rows(op: OpInfo, target: Target) -> str | None:
    shape = op.outputs[0].shape
    return f"it has {math.prod(shape[:-1])} rows" if math.prod(shape[:-1]) > 1 else None


def _elements(op: OpInfo, target: Target) -> str | None:
    count = op.outputs[0].shape[-1]
    return f"it has {count} elements" if count > target.softmax_elements else None


BUILTINS = (
    Builtin(
        "SOFTMAX",
        2,
        (
            Rule("it has one row", _rows, "documented"),
            Rule(
                "a row has at most 16,384 elements",
                _elements,
                "measured",
                "LibrEdgeTPU bright_128x128",
            ),
        ),
    ),
)

OPERATORS = (Operator("Softmax", lower=lower, refuse=refuse, scales=scales, emit=emit),)
