"""Constants that are computed row by row when they are read, so that weights are not held in memory
twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph.values import array_of, shape_of

# Keys of a constant's `meta`: functions of a slice that read some rows, or some columns as rows.
ROWS = "edgetpu.rows"
COLUMNS = "edgetpu.columns"
# And scales of the int8 grid that a weight was given on, one for each row, or for each column.
GRID = "edgetpu.grid"
COLUMN_GRID = "edgetpu.column_grid"

ReadRows = Callable[[slice], np.ndarray]


def rows_of(value: ir.Value, rows: slice) -> np.ndarray:
    """Some rows of a constant, without computing the others where it can be helped."""
    read: ReadRows | None = value.meta.get(ROWS)
    if read is None:
        return array_of(value)[rows]
    return read(rows)


def joined_rows(values: Sequence[ir.Value], rows: slice) -> np.ndarray:
    """Some rows of several constants, counted as if these were joined along their first axis."""
    found = []
    start = 0
    for value in values:
        count = shape_of(value)[0]
        begin = max(rows.start - start, 0)
        end = min(rows.stop - start, count)
        if begin < end:
            found.append(rows_of(value, slice(begin, end)))
        start += count
    return found[0] if len(found) == 1 else np.concatenate(found)


def grid_of(value: ir.Value) -> np.ndarray | None:
    """Scales of the int8 grid that a weight was given on, one for each row.

    None where it was given as float.
    """
    scales: np.ndarray | None = value.meta.get(GRID)
    return scales
