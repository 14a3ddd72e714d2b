"""Lazy constants compute only the rows that are asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.graph import GRID, Builder, Names, array_of, grid_of, joined_rows, rows_of
from tests.passes.golden import parsed

W = np.arange(12, dtype=np.float32).reshape(6, 2)


def builder() -> tuple[Builder, ir.Value]:
    text = "g (float[1,2] x) => (float[1,6] y) { t = Transpose (w) y = MatMul (x, t) }"
    model = ir.serde.deserialize_model(parsed(text, {"w": W}))
    b = Builder(model, Names(model.graph), next(iter(model.graph)))
    return b, model.graph.initializers["w"]


def test_a_change_of_rows_is_computed_for_the_rows_that_are_read() -> None:
    b, w = builder()
    seen: list[int] = []

    def double(rows: np.ndarray) -> np.ndarray:
        seen.append(len(rows))
        return rows * 2

    changed = b.lazy_rows(w, double, (6, 2), "changed")
    np.testing.assert_array_equal(rows_of(changed, slice(1, 3)), W[1:3] * 2)
    assert seen == [2]
    np.testing.assert_array_equal(array_of(changed), W * 2)
    assert seen == [2, 6]


def test_rows_of_rows_and_of_a_transpose() -> None:
    b, w = builder()
    part = b.rows(w, slice(2, 6))
    np.testing.assert_array_equal(rows_of(part, slice(1, 2)), W[3:4])
    turned = b.transposed(w)
    np.testing.assert_array_equal(rows_of(turned, slice(1, 2)), W.T[1:2])
    np.testing.assert_array_equal(array_of(turned), W.T)


def test_rows_keep_the_scales_of_their_grid() -> None:
    b, w = builder()
    w.meta[GRID] = np.arange(6)
    assert grid_of(b.rows(w, slice(2, 4))).tolist() == [2, 3]  # type: ignore[union-attr]
    assert grid_of(b.lazy(w, lambda rows: rows, (6, 2), "any")) is None


@pytest.mark.parametrize(("begin", "end"), [(0, 9), (1, 2), (5, 7), (6, 9), (2, 8)])
def test_constants_that_are_thought_of_as_one(begin: int, end: int) -> None:
    b, w = builder()
    parts = [w, b.rows(w, slice(0, 3))]
    whole = np.concatenate([W, W[:3]])
    np.testing.assert_array_equal(joined_rows(parts, slice(begin, end)), whole[begin:end])
