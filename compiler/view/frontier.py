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
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("plan", "ms", "dB", *names, "in float"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, plan in enumerate(plans, 1):
        is_host = plan["place"] == "host"
        values = ["" if is_host else _value(plan["figures"][name]) for name in names]
        noise = "" if is_host else figure(plan["sqnr_db"])
        kept = "the host alone" if is_host else str(plan["in_float"])
        table.add_row(str(number), f"{plan['ms']:.3g}", noise, *values, kept)
    console.print("Plans, predicted times and what calibration samples show (--pick N builds one):")
    console.print(table)


def _value(number: float | None) -> str:
    return "?" if number is None else f"{number:.4g}"
