"""Writes docs/supported-ops.md from the declarations: `python -m compiler.ops.document >
docs/supported-ops.md`."""

from __future__ import annotations

import sys

from compiler.ops import BUILTINS, FAMILIES, host_only
from compiler.ops.rules import COMMON, Rule

_HEAD = """# Operators

Generated from the declarations in compiler/ops by `python -m compiler.ops.document`; a test keeps it current.

A rule is *documented* by the vendor, *measured* by a named third party or read out of public compiled files, or
*assumed* by us, on the careful side.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [
        _HEAD,
        "## ONNX operators\n",
        _onnx(),
        "## ONNX operators that the host runs\n",
        _host(),
    ]
    parts += [
        "## TFLite operators and the Edge TPU's rules\n",
        "Every operator:\n",
        _list(COMMON),
        _tflite(),
    ]
    return "\n".join(parts)


def _onnx() -> str:
    rows = [
        "Written for the Edge TPU where their form allows it; `inspect` says of each node why not.\n"
    ]
    rows += ["| family | operators | TFLite |", "|---|---|---|"]
    for family in FAMILIES:
        names = [
            op.op_type
            for op in family.OPERATORS
            if not op.domain and op.op_type not in host_only.REASONS
        ]
        if names:
            builtins = ", ".join(b.name for b in family.BUILTINS)
            rows.append(
                f"| {family.__name__.rpartition('.')[2]} | {', '.join(names)} | {builtins} |"
            )
    return "\n".join([*rows, ""])


def _host() -> str:
    rows = [
        "And every operator that is not named on this page.\n",
        "| operator | why |",
        "|---|---|",
    ]
    rows += [f"| {name} | {reason} |" for name, reason in host_only.REASONS.items()]
    return "\n".join([*rows, ""])


def _tflite() -> str:
    rows = ["| operator | newest version | rules of its own |", "|---|---|---|"]
    for builtin in sorted(BUILTINS.values(), key=lambda b: b.name):
        rules = "<br>".join(_sentence(rule) for rule in builtin.rules)
        rows.append(f"| {builtin.name} | {builtin.newest} | {rules} |")
    return "\n".join([*rows, ""])


def _list(rules: tuple[Rule, ...]) -> str:
    return "\n".join([*(f"- {_sentence(rule)}" for rule in rules), ""])


def _sentence(rule: Rule) -> str:
    return f"{rule.needs} ({rule.standing}: {rule.source})"


if __name__ == "__main__":
    sys.stdout.write(page())
