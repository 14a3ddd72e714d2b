"""What a compiled file holds of a plain one, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from compiler.vendor.audit import Audit

_COLOURS = {"equal": "green", "differs": "red", "not judged": "yellow"}


def show_audit(console: Console, compiled: str, plain: str, audit: Audit) -> None:
    """A line for each layer, what else differs, and whether one file was made of the other."""
    for layer in audit.layers:
        name = f"{layer.index} {layer.operator} {escape(layer.name)}"
        verdict = f"[{_COLOURS[layer.status]}]{layer.status}[/], {escape(layer.detail)}"
        console.print(f"{name}: {verdict}", highlight=False, soft_wrap=True)
    for complaint in audit.complaints:
        console.print(f"[red]differs[/]: {escape(complaint)}", highlight=False, soft_wrap=True)
    if audit.unread:
        console.print(
            f"{audit.unread} bytes of tables were not read: they are not of these layers.",
            highlight=False,
        )
    conclusion = _conclusion(escape(compiled), escape(plain), audit)
    console.print(conclusion, highlight=False, soft_wrap=True)


def _conclusion(compiled: str, plain: str, audit: Audit) -> str:
    total = len(audit.layers)
    equal = len(audit.of("equal"))
    if audit.status == "equal":
        return f"{compiled} holds the parameters of {plain}: {equal} of {total} layers are equal."
    if audit.status == "differs":
        return (
            f"{compiled} was not made of {plain}: {equal} of {total} layers are equal. Compile "
            f"{plain} again, or compare with the file that was compiled."
        )
    return (
        f"Whether {compiled} was made of {plain} is not known: {equal} of {total} layers are "
        f"equal, {total - equal} could not be compared."
    )
