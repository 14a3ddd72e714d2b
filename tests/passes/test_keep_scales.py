"""Pairs of QuantizeLinear and DequantizeLinear become scales, int8 weights floats that know their
grid."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.graph import COLUMN_GRID, grid_of
from tests.passes.golden import Rewritten, leaves_alone, rewrites


def test_a_pair_is_a_scale() -> None:
    before = """
    g (float[1,4] x) => (float[1,4] y)
    <float s = {0.5}, uint8 z = {128}>
    {
        r = Relu (x)
        q = QuantizeLinear (r, s, z)
        y = DequantizeLinear (q, s, z)
    }"""
    after = """
    g (float[1,4] x) => (float[1,4] y)
    <float s = {0.5}, uint8 z = {128}>
    {
        r = Relu (x)
        y = edgetpu.FakeQuantize (r, s, z)
    }"""
    rewrites("keep_scales", before, after)


def grids(made: Rewritten) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Scales of the rows and of the columns of the weights that the first node reads."""
    value = made.model.graph[0].inputs[1]
    assert value is not None
    return grid_of(value), value.meta.get(COLUMN_GRID)


@pytest.mark.parametrize(
    ("scale", "axis", "floats", "rows", "columns"),
    [
        # One scale of all is one of each row and of each column.
        ("float s = {0.5}", "", "{0.5, 1, -1, 1.5}", [0.5, 0.5], [0.5, 0.5]),
        ("float[2] s = {0.5, 2}", "<axis = 0>", "{0.5, 1, -4, 6}", [0.5, 2], None),
        ("float[2] s = {0.5, 2}", "<axis = -1>", "{0.5, 4, -1, 6}", None, [0.5, 2]),
    ],
)
def test_weights_know_their_grid(
    scale: str, axis: str, floats: str, rows: list[float] | None, columns: list[float] | None
) -> None:
    before = f"""
    g (float[1,2] x) => (float[1,2] y)
    <int8[2,2] q = {{1, 2, -2, 3}}, {scale}>
    {{
        w = DequantizeLinear {axis} (q, s)
        y = MatMul (x, w)
    }}"""
    after = f"""
    g (float[1,2] x) => (float[1,2] y)
    <float[2,2] w = {floats}>
    {{
        y = MatMul (x, w)
    }}"""
    found = grids(rewrites("keep_scales", before, after))
    for got, wanted in zip(found, (rows, columns), strict=True):
        assert (got is None) == (wanted is None)
        assert wanted is None or np.array_equal(got, np.array(wanted, np.float32))


def test_weights_with_an_offset_are_floats_without_a_grid() -> None:
    """The Edge TPU's weights are symmetric."""
    before = """
    g (float[1,2] x) => (float[1,2] y)
    <uint8[2,2] q = {129, 130, 126, 131}, float s = {0.5}, uint8 z = {128}>
    {
        w = DequantizeLinear (q, s, z)
        y = MatMul (x, w)
    }"""
    after = """
    g (float[1,2] x) => (float[1,2] y)
    <float[2,2] w = {0.5, 1, -1, 1.5}>
    {
        y = MatMul (x, w)
    }"""
    assert grids(rewrites("keep_scales", before, after)) == (None, None)


@pytest.mark.parametrize(
    ("constants", "body"),
    [
        # Another scale: it changes the value too.
        (
            "float s = {0.5}, float t = {0.25}, uint8 z = {128}",
            "q = QuantizeLinear (x, s, z) y = {} (q, t, z)",
        ),
        # Another zero point: it shifts the value.
        (
            "float s = {0.5}, uint8 z = {128}, uint8 o = {127}",
            "q = QuantizeLinear (x, s, z) y = {} (q, s, o)",
        ),
        # 16 bits are finer than an activation of the Edge TPU.
        ("float s = {0.5}, uint16 z = {128}", "q = QuantizeLinear (x, s, z) y = {} (q, s, z)"),
        # A scale for each column is none that an activation can have.
        (
            "float[4] s = {1, 2, 3, 4}, uint8[4] z = {1, 2, 3, 4}",
            "q = QuantizeLinear (x, s, z) y = {} (q, s, z)",
        ),
    ],
)
def test_what_is_no_pair_of_one_scale(constants: str, body: str) -> None:
    body = body.format("DequantizeLinear")
    leaves_alone("keep_scales", f"g (float[1,4] x) => (float[1,4] y) <{constants}> {{ {body} }}")


def test_blocks_of_weights_stay_as_they_are() -> None:
    leaves_alone(
        "keep_scales",
        """
    g (float[1,4] x) => (float[1,2] y)
    <int8[4,2] q = {1, 2, 3, 4, 5, 6, 7, 8}, float[2,2] s = {0.5, 1, 2, 4}>
    {
        w = DequantizeLinear <axis = 0, block_size = 2> (q, s)
        y = MatMul (x, w)
    }""",
    )
