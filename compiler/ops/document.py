"""Writes docs/supported-ops.md from the declarations: `python -m compiler.ops.document >
docs/supported-ops.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from compiler.ops import BUILTINS, FAMILIES, OPERATORS, Operator
from compiler.ops.rules import COMMON, Rule

_HEAD = """# Operators

Generated from the declarations in compiler/ops by `python -m compiler.ops.document`; a test keeps
it current.

A rule is *documented* by the vendor, *measured* by a named third party or read out of public
compiled files, or *assumed* by us, on the careful side.
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
        "Every operator:\n",
        _list(COMMON),
        _tflite(),
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
    """TFLite operators with their rules."""
    rows = ["| operator | newest version | rules of its own |", "|---|---|---|"]
    for name in sorted(BUILTINS):
        builtin = BUILTINS[name]
        rules = "<br>".join(map(_sentence, builtin.rules))
        rows.append(f"| {name} | {builtin.newest} | {rules} |")
    return _lines(rows)


def _list(rules: Iterable[Rule]) -> str:
    return _lines(f"- {_sentence(rule)}" for rule in rules)


def _sentence(rule: Rule) -> str:
    return f"{rule.needs} ({rule.standing}: {rule.source})"


def _lines(rows: Iterable[str]) -> str:
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    sys.stdout.write(page())
