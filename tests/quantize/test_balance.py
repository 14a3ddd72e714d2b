"""Balancing gives each output of a normalised product the range of the samples, with a margin."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.quantize import balance
from compiler.quantize import products as found_products
from tests.passes.golden import rewrites

BEFORE = """
    g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {3, 4, 5, -12}, float[2] b = {0, 0}>
    {
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = Erf (d)
    }"""
AFTER = """
    g (float[2,2] x) => (float[2,2] y)
    <int64[1] last = {1}, float tiny = {1e-12}>
    {
        s = Erf (x)
        [host] highest = ReduceMax (s, last)
        [host] lowest = ReduceMin (s, last)
        [host] below = Neg (lowest)
        [host] peak = Max (highest, below, tiny)
        [host] rows = Div (s, peak)
        z = edgetpu.FullyConnected (rows, balanced, shift)
        [balanced_host] scaled = Mul (z, factors)
        [host] moved = Add (scaled, offsets)
        [host] d = Mul (moved, peak)
        y = Erf (d)
    }"""
W = np.array([[3, 4], [5, -12]], np.float64)
# Far out on the error function, which is 1 or -1 there. Both samples show the same.
SAMPLE = {"x": np.array([[9, 9], [9, -9]], np.float32)}


def run(model: ir.Model) -> None:
    found = found_products.products(model.graph).values()
    balance.balance(model, list(found), [SAMPLE, SAMPLE])


def test_factors_are_half_ranges_with_a_margin_and_offsets_middles() -> None:
    """Rows (1, 1) and (1, -1) give outputs (7, -7) and (-1, 17)."""
    shown = np.array([[1, 1], [1, -1]]) @ W.T
    assert shown.tolist() == [[7, -7], [-1, 17]]
    half = (shown.max(axis=0) - shown.min(axis=0)) / 2 * balance.MARGIN
    middle = (shown.max(axis=0) + shown.min(axis=0)) / 2
    # In whole steps of int8, so that the host can take it for a zero point.
    middle = np.round(middle / half * 127) * half / 127
    constants = {
        "factors": half,
        "offsets": middle,
        "balanced": W / half[:, None],
        "shift": -middle / half,
    }
    rewrites(
        ("normalise_linears", run),
        BEFORE,
        AFTER,
        constants={name: array.astype(np.float32) for name, array in constants.items()},
        inputs={"x": np.array([[0.3, -0.2], [9, -9]], np.float32)},
    )
