"""Does the Edge TPU take this? Asked of nodes of the lowered IR, and of operators in a TFLite file.

A node is judged by the TFLite operators that would be written for it (compiler/device/draft.py):
each is held against the rules of its family (compiler/ops/rules.py).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from compiler.device.draft import drafted
from compiler.device.tflite_file import read_operators
from compiler.graph import (
    HOST_REASON,
    LOWERING_REASON,
    activations_of,
    is_static,
    operator_name,
    shape_of,
)
from compiler.ops import BUILTINS, operator_of
from compiler.ops.rules import OpInfo, first_refusal, judge
from compiler.targets import Target


def refusal(node: ir.Node, target: Target) -> str | None:
    """Why the Edge TPU does not run this node as it stands; None where it does."""
    if HOST_REASON in node.metadata_props:
        return node.metadata_props[HOST_REASON]
    operator = operator_of(node)
    if operator.emit is None:
        unknown = f"the Edge TPU has no {operator_name(node)}"
        return node.metadata_props.get(LOWERING_REASON, unknown)
    if not activations_of(node):
        return "it reads constants only"
    read = [] if operator.reads_bytes else activations_of(node)
    for value in [*read, *node.outputs]:
        reason = _tensor_refusal(value)
        if reason is not None:
            return reason
    if operator.refuse is not None:
        reason = operator.refuse(node, target)
        if reason is not None:
            return reason
    return first_refusal(drafted(node), BUILTINS, target)


def _tensor_refusal(value: ir.Value) -> str | None:
    """Why the Edge TPU cannot hold an activation."""
    if not is_static(value):
        return f"the shape of '{value.name}' depends on data; the Edge TPU needs static shapes"
    if 0 in shape_of(value):
        return f"tensor '{value.name}' has no elements"
    if value.dtype != ir.DataType.FLOAT:
        dtype = value.dtype.name.lower() if value.dtype else "unknown"
        return f"tensor '{value.name}' is {dtype}; the Edge TPU computes on int8 made from float"
    return None


def check(path: Path, target: Target) -> list[dict[str, str | None]]:
    """Each operator of a TFLite file, in order, with the `reason` why it would stay on the CPU, or
    None.

    The compiler delegates one part only: what follows an operator that it does not take stays on
    the CPU too, unless nothing before was delegated. Raises ModelError for what is not a TFLite
    model.
    """
    # Of each tensor so far: True where the part that is delegated made it, False where it comes
    # behind an operator on the CPU that itself comes behind that part.
    delegated: dict[str, bool | None] = {}
    rows: list[dict[str, str | None]] = []
    for op in read_operators(path):
        reason = judge(op, BUILTINS, target)
        read = [delegated.get(name) for name in _activations_read(op)]
        follows_cpu = False in read
        if reason is None and follows_cpu:
            reason = "it follows an operator that is not mapped; only the first part is"
        state: bool | None = None
        if reason is None:
            state = True
        elif True in read or follows_cpu:
            state = False
        delegated |= {tensor.name: state for tensor in op.outputs}
        output = op.outputs[0].name if op.outputs else ""
        rows.append({"operator": op.builtin, "output": output, "reason": reason})
    return rows


def _activations_read(op: OpInfo) -> list[str]:
    inputs = [tensor for tensor in op.inputs if tensor is not None]
    return [tensor.name for tensor in inputs if not tensor.constant]
