"""Does the Edge TPU take this? Asked of nodes of the lowered IR, and of operators in a TFLite file.

A node is judged by the TFLite operators that would be written for it (compiler/device/draft.py):
each is held against the rules of its family (compiler/ops/rules.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

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

# Parts of a file that run on the Edge TPU: the compiler makes one, or many with its option -a.
Subgraphs = Literal["one", "many"]

FOLLOWS = "it follows an operator that is not mapped; only the first part is"
LONE = "nothing beside it is mapped; a part of its own that only changes a scale is not"


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


def check(path: Path, target: Target, subgraphs: Subgraphs = "one") -> list[dict[str, str | None]]:
    """Each operator of a TFLite file, in order, with the `reason` why it would stay on the CPU, or
    None. Raises ModelError for what is not a TFLite model."""
    ops = read_operators(path)
    rows: list[dict[str, str | None]] = []
    for op, reason in zip(ops, verdicts(ops, target, subgraphs), strict=True):
        output = op.outputs[0].name if op.outputs else ""
        rows.append({"operator": op.builtin, "output": output, "reason": reason})
    return rows


def verdicts(ops: Sequence[OpInfo], target: Target, subgraphs: Subgraphs) -> list[str | None]:
    """Why each operator of a graph would stay on the CPU, None for those that are mapped.

    The names of tensors tell which operator reads which.
    """
    reasons = [judge(op, BUILTINS, target) for op in ops]
    if subgraphs == "one":
        return list(_of_one_part(ops, reasons))
    return list(_of_many_parts(ops, reasons))


def _of_one_part(ops: Sequence[OpInfo], reasons: Sequence[str | None]) -> Iterator[str | None]:
    """What follows an operator that is not mapped stays too, unless nothing before was mapped."""
    # Of each tensor so far: True where the part that is delegated made it, False where it comes
    # behind an operator on the CPU that itself comes behind that part.
    delegated: dict[str, bool | None] = {}
    for op, own in zip(ops, reasons, strict=True):
        read = [delegated.get(name) for name in _activations_read(op)]
        follows_cpu = False in read
        reason = FOLLOWS if own is None and follows_cpu else own
        state: bool | None = None
        if reason is None:
            state = True
        elif True in read or follows_cpu:
            state = False
        delegated |= {tensor.name: state for tensor in op.outputs}
        yield reason


def _of_many_parts(ops: Sequence[OpInfo], reasons: Sequence[str | None]) -> Iterator[str | None]:
    """Every operator that can be is mapped, but for a QUANTIZE among operators that are not (log
    069 of the public ground truth)."""
    made: set[str] = set()
    read: set[str] = set()
    for op, reason in zip(ops, reasons, strict=True):
        if reason is None and op.builtin != "QUANTIZE":
            made |= {tensor.name for tensor in op.outputs}
            read |= set(_activations_read(op))
    for op, reason in zip(ops, reasons, strict=True):
        touches = not made.isdisjoint(_activations_read(op)) or any(
            tensor.name in read for tensor in op.outputs
        )
        is_lone = op.builtin == "QUANTIZE" and reason is None and not touches
        yield LONE if is_lone else reason


def _activations_read(op: OpInfo) -> list[str]:
    inputs = [tensor for tensor in op.inputs if tensor is not None]
    return [tensor.name for tensor in inputs if not tensor.constant]
