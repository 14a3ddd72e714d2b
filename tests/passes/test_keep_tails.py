"""Joins that only leave, and arithmetic with tables for what leaves, are kept on the host."""

from __future__ import annotations

import numpy as np

from compiler.graph import HOST_REASON
from passes.keep_tails import JOIN, TABLE
from tests.passes.golden import Arrays, run_passes, weight

LOWERED = ("lower", "cancel_transposes", "keep_tails")


def kept(text: str, passes: tuple[str, ...] = LOWERED, **weights: np.ndarray) -> dict[str, str]:
    """Why nodes are kept on the host, by the name of their result in the text."""
    given: Arrays = weights
    _, made = run_passes(passes, text, given)
    return {name.split("/")[0]: reason for name, reason in made.reasons(HOST_REASON).items()}


def test_joins_that_only_leave() -> None:
    text = """
    g (float[1,4,4,4] a) => (float[1,112] y)
    <int64[2] flat = {1, -1}> {
        b = Conv (a, w)
        s = Sigmoid (b)
        j = Concat <axis = 1> (b, s, a)
        r = Reshape (j, flat)
        k = Concat <axis = 1> (r, r)
        l = Slice (k, zero, most, one)
        y = Identity (l)
    }"""
    index = {n: np.array([v], np.int64) for n, v in (("zero", 0), ("most", 112), ("one", 1))}
    layer = weight(4, 4, 1, 1)
    assert kept(text, w=layer, **index) == {}
    text = text.replace("l = Slice (k, zero, most, one)", "").replace(
        "Identity (l)", "Identity (k)"
    )
    assert kept(text.replace("[1,112] y", "[1,384] y"), w=layer) == {"j": JOIN, "y": JOIN}


def test_joins_that_a_layer_reads_are_not() -> None:
    text = """
    g (float[1,4,4,4] a) => (float[1,4,4,4] y) {
        b = Relu (a)
        j = Concat <axis = 1> (a, b)
        y = Conv (j, w)
    }"""
    assert kept(text, w=weight(4, 8, 1, 1)) == {}


def test_tiles_of_one_layer_are_joined_on_the_edge_tpu() -> None:
    text = "g (float[1,4096] x) => (float[1,4096] y) { y = MatMul (x, w) }"
    passes = ("lower", "tile_matmul", "keep_tails")
    _, made = run_passes(passes, text, {"w": weight(4096, 4096)})
    assert made.kinds[-1] == "Concat"
    assert made.reasons(HOST_REASON) == {}


def test_arithmetic_with_tables_that_leaves() -> None:
    """Distances of cells become boxes; a number in front of the table follows, a residual sum does
    not."""
    text = """
    g (float[1,2,4,4] a) => (float[1,2,16] y, float[1,2,4,4] z)
    <int64[3] flat = {1, 2, 16}, float two = {2.0}> {
        b = Conv (a, w)
        z = Add (b, a)
        r = Reshape (b, flat)
        d = Mul (r, two)
        c = Add (d, cells)
        y = Mul (c, strides)
    }"""
    tables = {"cells": weight(1, 2, 16), "strides": np.repeat(np.float32([8, 16]), 8)[None]}
    assert kept(text, w=weight(2, 2, 1, 1), **tables) == {"d": TABLE, "c": TABLE, "y": TABLE}
