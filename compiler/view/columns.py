"""Tables of one look."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich.table import Table


def plain_table(columns: Iterable[str], left: Collection[str] = ()) -> Table:
    """A table without lines. Columns hold figures, on the right, but for those in `left`."""
    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table
