"""Constants that are computed row by row when they are read, so that weights are not held in memory
twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph.values import array_of, shape_of

ROWS = "edgetpu.rows"  # how to read some rows of a lazy constant
COLUMNS = "edgetpu.columns"  # how to read some columns of one, as rows
GRID = "edgetpu.grid"
COLUMN_GRID = "edgetpu.column_grid"


def rows_of(value: ir.Value, rows: slice) -> np.ndarray:
    """Some rows of a constant, without computing the others where it can be helped."""
    read = value.meta.get(ROWS)
    return array_of(value)[rows] if read is None else read(rows)


def joined_rows(values: Sequence[ir.Value], rows: slice) -> np.ndarray:
    """Some rows of constants that are thought of as one behind the other."""
    found, start = [], 0
    for value in values:
        count = shape_of(value)[0]
        low, high = max(rows.start, start), min(rows.stop, start + count)
        if low < high:
            found.append(rows_of(value, slice(low - start, high - start)))
        start += count
    return found[0] if len(found) == 1 else np.concatenate(found)


def grid_of(value: ir.Value) -> np.ndarray | None:
    """Scales of the int8 grid that a weight was given on, one for each row; None where it was given
    as float."""
    return value.meta.get(GRID)
