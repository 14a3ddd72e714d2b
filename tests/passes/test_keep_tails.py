"""Joins that only leave, and arithmetic with tables for what leaves, are kept on the host."""

from __future__ import annotations

import numpy as np

from compiler.device.legality import refusal
from compiler.graph import HOST_REASON
from passes.keep_tails import ARITHMETIC, JOIN, PROBABILITIES, TABLE
from tests.passes.golden import TARGET, Arrays, run_passes, weight

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
    wanted = {"s": PROBABILITIES, "j": JOIN, "y": JOIN}
    assert kept(text.replace("[1,112] y", "[1,384] y"), w=layer) == wanted


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


LEVELS = """
    g (float[1,4,4,4] a, float[1,4,2,2] b) => (float[1,7,20] y)
    <int64[3] wide = {{1, 4, -1}}, int64[3] narrow = {{1, 3, -1}}> {{
        d = Conv (a, w)  e = Conv (b, w)  p = Conv (a, v)  q = Conv (b, v)
        dr = Reshape (d, wide)  er = Reshape (e, wide)
        pr = Reshape (p, narrow)  qr = Reshape (q, narrow)
        boxes = Concat <axis = 2> (dr, er)
        {0}
        j = Concat <axis = 1> (boxes, s)
        y = Identity (j)
    }}"""
WEIGHTS = {"w": weight(4, 4, 1, 1), "v": weight(3, 4, 1, 1)}


def test_levels_are_joined_on_the_edge_tpu_and_their_logits_leave() -> None:
    """Rows of boxes, and rows of scores: what joins both stays with the Sigmoid on the host."""
    text = LEVELS.format("l = Concat <axis = 2> (pr, qr) s = Sigmoid (l)")
    assert kept(text, **WEIGHTS) == {"s": PROBABILITIES, "y": JOIN}


def test_levels_of_probabilities_are_joined_on_the_host() -> None:
    text = LEVELS.format("ps = Sigmoid (pr) qs = Sigmoid (qr) s = Concat <axis = 2> (ps, qs)")
    wanted = {"ps": PROBABILITIES, "qs": PROBABILITIES, "s": JOIN, "y": JOIN}
    assert kept(text, **WEIGHTS) == wanted


def test_a_probability_that_leaves_by_itself_is_of_the_edge_tpu() -> None:
    text = """
    g (float[1,4,4,4] a) => (float[1,4,16] y) <int64[3] flat = {1, 4, 16}> {
        b = Conv (a, w)
        s = Sigmoid (b)
        y = Reshape (s, flat)
    }"""
    assert kept(text, w=weight(4, 4, 1, 1)) == {}


def test_anchors_of_levels_are_joined_on_the_edge_tpu() -> None:
    """As SSD has them: two boxes in each cell, and a softmax over the classes of each."""
    text = """
    g (float[1,4,4,4] a, float[1,4,2,2] b) => (float[1,40,4] y, float[1,40,4] z)
    <int64[3] four = {1, -1, 4}> {
        d = Conv (a, w)  e = Conv (b, w)  p = Conv (a, v)  q = Conv (b, v)
        dt = Transpose <perm = [0, 2, 3, 1]> (d)  et = Transpose <perm = [0, 2, 3, 1]> (e)
        pt = Transpose <perm = [0, 2, 3, 1]> (p)  qt = Transpose <perm = [0, 2, 3, 1]> (q)
        dr = Reshape (dt, four)  er = Reshape (et, four)
        pr = Reshape (pt, four)  qr = Reshape (qt, four)
        boxes = Concat <axis = 1> (dr, er)
        classes = Concat <axis = 1> (pr, qr)
        y = Add (boxes, anchors)
        s = Softmax <axis = 2> (classes)
        z = Exp (s)
    }"""
    tables = {"w": weight(8, 4, 1, 1), "v": weight(8, 4, 1, 1) * 2, "anchors": weight(1, 40, 4)}
    found = kept(text, **tables)
    assert found.pop("s", PROBABILITIES) == PROBABILITIES
    assert found == {"y": TABLE}


def test_the_mean_of_a_distribution_and_what_is_computed_of_it() -> None:
    """Four distances of 8 bins for each cell become the corners, middle and size of a box."""
    text = """
    g (float[1,4,4,4] a) => (float[1,4,16] y)
    <int64[4] bins = {1, 4, 8, 16}, int64[3] sides = {1, 4, 16}, int64[2] two = {2, 2},
     float half = {0.5}> {
        b = Conv (a, w)
        r = Reshape (b, bins)
        t = Transpose <perm = [0, 2, 1, 3]> (r)
        s = Softmax <axis = 1> (t)
        m = Conv (s, places)
        d = Reshape (m, sides)
        near, far = Split <axis = 1> (d, two)
        low = Sub (cells, near)
        high = Add (cells, far)
        sum = Add (low, high)
        middle = Mul (sum, half)
        extent = Sub (high, low)
        y = Concat <axis = 1> (middle, extent)
    }"""
    places = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)
    tables = {"places": places, "cells": weight(1, 2, 16)}
    _, made = run_passes(LOWERED, text, {"w": weight(32, 4, 1, 1), **tables})
    reasons = made.reasons(HOST_REASON)
    computed = [node for node in made.model.graph if node.op_type in ("Conv2D", *ARITHMETIC)]
    on_host = [node for node in computed if reasons.get(str(node.outputs[0].name)) == TABLE]
    # Only the first layer is left to the Edge TPU.
    assert computed[1:] == on_host
    (softmax,) = (node for node in made.model.graph if node.op_type == "Softmax")
    assert refusal(softmax, TARGET) is not None
