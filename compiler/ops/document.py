"""Writes docs/supported-ops.md from the declarations: `python -m compiler.ops.document >
docs/supported-ops.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from compiler.ops import BUILTINS, FAMILIES, OPERATORS, Operator
from compiler.ops.rules import COMMON, OpInfo, Rule, TensorInfo

_HEAD = """# Operators

Generated from the declarations in compiler/ops by `python -m compiler.ops.document`; a test keeps
it current.

A rule is *documented* by the vendor, *measured* by a named third party or read out of public
compiled files, or *assumed* by us, on the careful side. Each has an operator that it accepts and
one that it refuses, which the tests hold it to. The shapes are those of what an operator computes
on, and of its result; of a size limit they are the largest that was seen mapped, and the smallest
that was seen left on the CPU. What lies between is unknown, and refused.
"""

_WRITTEN = (
    "Written for the Edge TPU where their form allows it; `inspect` says of each node why not."
)


def page() -> str:
    """The whole page as Markdown."""
    parts = [
        _HEAD,
        "## ONNX operators\n",
        _onnx(),
        "## ONNX operators that the host runs\n",
        _host(),
        "## TFLite operators and the Edge TPU's rules\n",
        _tflite(),
        "## What the Edge TPU asks\n",
        _rules("every operator", COMMON),
        *_own_rules(),
    ]
    return "\n".join(parts)


def _onnx() -> str:
    """ONNX operators by family, with the TFLite operators that they become."""
    rows = [f"{_WRITTEN}\n", "| family | operators | TFLite |", "|---|---|---|"]
    for family in FAMILIES:
        names = [op.op_type for op in family.OPERATORS if _is_written(op)]
        if not names:
            continue
        title = family.__name__.rpartition(".")[2]
        builtins = ", ".join(builtin.name for builtin in family.BUILTINS)
        rows.append(f"| {title} | {', '.join(names)} | {builtins} |")
    return _lines(rows)


def _is_written(op: Operator) -> bool:
    """Whether an ONNX operator has forms that the Edge TPU runs."""
    if op.domain or op.host_reason is not None:
        return False
    return op.lower is not None or op.emit is not None


def _host() -> str:
    """ONNX operators that stay on the host whatever their form, and why."""
    rows = [
        "And every operator that is not named on this page.\n",
        "| operator | why |",
        "|---|---|",
    ]
    for op in OPERATORS.values():
        if op.host_reason is not None and not op.domain:
            rows.append(f"| {op.op_type} | {op.host_reason} |")
    return _lines(rows)


def _tflite() -> str:
    """TFLite operators with the versions that are known to compile."""
    rows = ["| operator | newest version | rules of its own |", "|---|---|---|"]
    for name in sorted(BUILTINS):
        builtin = BUILTINS[name]
        rows.append(f"| {name} | {builtin.newest} | {len(builtin.rules) or 'none'} |")
    return _lines(rows)


def _own_rules() -> list[str]:
    """The tables of rules that one operator or several have of their own."""
    sharing: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(BUILTINS):
        same = tuple(map(id, BUILTINS[name].rules))
        sharing.setdefault(same, []).append(name)
    return [
        _rules(", ".join(names), BUILTINS[names[0]].rules)
        for same, names in sharing.items()
        if same
    ]


def _rules(title: str, rules: Iterable[Rule]) -> str:
    """A table of rules with their examples."""
    rows = [
        f"### {title}\n",
        "| it needs that | accepted | refused | source |",
        "|---|---|---|---|",
    ]
    for rule in rules:
        accepted, refused = _shapes(rule.accepts), _shapes(rule.refuses)
        source = f"{rule.standing}: {rule.source}"
        rows.append(f"| {rule.needs} | {accepted} | {refused} | {source} |")
    return _lines(rows)


def _shapes(op: OpInfo) -> str:
    """An example in short: the shapes of its tensors, with what else tells it from others."""
    parts = [_tensor(tensor) for tensor in op.inputs if tensor is not None]
    made = ", ".join(_tensor(tensor) for tensor in op.outputs)
    options = [f"{name} {value}" for name, value in op.options.items()]
    return "; ".join([f"{', '.join(parts)} -> {made}", *options])


def _tensor(tensor: TensorInfo) -> str:
    if tensor.values is not None:
        return f"constant {list(tensor.values)}"
    words = ["zeros"] if tensor.zeros else []
    if tensor.constant and not tensor.zeros:
        words.append("constant")
    if tensor.dtype != "int8":
        words.append(tensor.dtype)
    return " ".join([*words, str(list(tensor.shape))])


def _lines(rows: Iterable[str]) -> str:
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
