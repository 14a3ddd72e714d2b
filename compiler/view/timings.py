"""How long a build took, as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def show_timings(
    console: Console,
    stages: Sequence[tuple[str, float]],
    passes: Sequence[tuple[str, float, int]],
) -> None:
    """Print seconds of each stage of a build, then seconds and rewrites of each pass, in order."""
    by_stage = Table("stage", box=None, header_style="bold")
    by_stage.add_column("seconds", justify="right")
    for name, seconds in stages:
        by_stage.add_row(name, f"{seconds:.2f}")
    by_pass = Table("pass", box=None, header_style="bold")
    by_pass.add_column("seconds", justify="right")
    by_pass.add_column("rewrites", justify="right")
    for name, seconds, rewrites in passes:
        by_pass.add_row(name, f"{seconds:.3f}", str(rewrites))
    console.print(by_stage)
    console.print(by_pass)
