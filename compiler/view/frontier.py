"""Plans from the fastest to the most accurate one, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from compiler.view.units import figure

Json = Mapping[str, Any]


def show_frontier(console: Console, plans: Sequence[Json]) -> None:
    """Each plan with its number, predicted time and what calibration samples show of its error."""
    if not plans:
        return
    names = list(plans[0]["figures"])
    is_language = "fused" in plans[0]
    last = ("fused blocks", "parts of a chunk") if is_language else ("in float",)
    first = () if is_language else ("dB",)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("plan", "ms", *first, *names, *last):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, plan in enumerate(plans, 1):
        cells = _language_cells(plan) if is_language else _cells(plan, names)
        table.add_row(str(number), f"{plan['ms']:.4g}", *cells)
    console.print("Plans, predicted times and what calibration samples show (--pick N builds one):")
    console.print(table)


def _cells(plan: Json, names: Sequence[str]) -> list[str]:
    """Noise, figures, and how much is in float."""
    if plan["place"] == "host":
        return ["", *[""] * len(names), "the host alone"]
    values = [_value(plan["figures"][name]) for name in names]
    return [figure(plan["sqnr_db"]), *values, str(plan["in_float"])]


def _language_cells(plan: Json) -> list[str]:
    """Figures, the number of fused blocks, and in how many parts a chunk is run."""
    values = [_value(number) for number in plan["figures"].values()]
    fused = str(plan["fused"]) if plan["fused"] else "none"
    return [*values, fused, str(plan["parts"])]


def _value(number: float | None) -> str:
    return "?" if number is None else f"{number:.4g}"
