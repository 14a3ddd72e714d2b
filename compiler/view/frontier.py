"""Plans from the fastest to the most accurate one, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from compiler.view.units import figure

Json = Mapping[str, Any]

_OBJECTIVES = {
    "latency": "latency",
    "throughput": "throughput",
    "p95": "the slowest of twenty requests",
}


def show_frontier(console: Console, plans: Sequence[Json], heading: str) -> None:
    """Each plan with its number, predicted time and what calibration samples show of its error."""
    if not plans:
        return
    names = list(plans[0]["figures"])
    is_language = "parts" in plans[0]
    fuses = any("fused" in plan for plan in plans)
    fused = ("fused blocks",) if fuses else ()
    last = ("parts of a chunk",) if is_language else ("kept in float",)
    first = () if is_language else ("dB",)
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("plan", "ms", *first, *names, *fused, *last):
        table.add_column(name, justify="right", no_wrap=True)
    for number, plan in enumerate(plans, 1):
        cells = _language_cells(plan) if is_language else _cells(plan, names, fuses)
        table.add_row(str(number), f"{plan['ms']:.3g}", *cells)
    console.print(heading, highlight=False)
    console.print(table)


def heading(objective: str, tpus: int, flags: str) -> str:
    """What a list of plans is of; `flags` of `build` make one of them."""
    devices = "1 Edge TPU" if tpus == 1 else f"{tpus} Edge TPUs"
    return (
        f"Plans for {_OBJECTIVES[objective]} on {devices}, predicted times and what calibration "
        f"samples show ({flags} builds one):"
    )


def _cells(plan: Json, names: Sequence[str], fuses: bool) -> list[str]:
    """Noise, figures, how many blocks are fused where any are, and how much is kept in float."""
    if plan["place"] == "host":
        return [""] * (1 + len(names) + fuses) + ["the host alone"]
    values = [_value(plan["figures"][name]) for name in names]
    fused = [str(plan.get("fused", "none"))] if fuses else []
    return [figure(plan["sqnr_db"]), *values, *fused, str(plan["in_float"])]


def _language_cells(plan: Json) -> list[str]:
    """Figures, the number of fused blocks, and in how many parts a chunk is run."""
    values = [_value(number) for number in plan["figures"].values()]
    fused = str(plan["fused"]) if plan["fused"] else "none"
    return [*values, fused, str(plan["parts"])]


def _value(number: float | None) -> str:
    return "?" if number is None else f"{number:.4g}"
