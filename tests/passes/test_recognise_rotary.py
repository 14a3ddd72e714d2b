"""Rotary embeddings get their name back where both halves turn by the same angles."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, weight

ROTARY = """
    g (float[1,2,4,8] x) => (float[1,2,4,8] y)
    <int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {3},
         int64[1] step = {1}>
    {
        c = Mul (x, cos)
        a = Slice (x, zero, four, last, step)
        b = Slice (x, four, eight, last, step)
        n = Neg (b)
        r = Concat <axis = -1> (n, a)
        s = Mul (r, sin)
        y = Add (c, s)
    }"""
HALF = weight(1, 1, 4, 4)
TABLES = {"cos": np.concatenate([HALF, HALF], -1), "sin": np.concatenate([-HALF, -HALF], -1)}
AFTER = """
    g (float[1,2,4,8] x) => (float[1,2,4,8] y) {
        y = RotaryEmbedding (x, half_cos, half_sin)
    }"""
HALVES = {"half_cos": HALF[:, 0], "half_sin": -HALF[:, 0]}
SPLIT = ROTARY.replace(
    """a = Slice (x, zero, four, last, step)
        b = Slice (x, four, eight, last, step)""",
    "a, b = Split <axis = 3, num_outputs = 2> (x)",
).replace(
    """
    <int64[1] zero = {0}, int64[1] four = {4}, int64[1] eight = {8}, int64[1] last = {3},
         int64[1] step = {1}>""",
    "",
)


@pytest.mark.parametrize(
    "before", [ROTARY, SPLIT, ROTARY.replace("(c, s)", "(s, c)")], ids=["slice", "split", "sum"]
)
def test_tables_that_are_constants(before: str) -> None:
    rewrites("recognise_rotary", before, AFTER, weights=TABLES, constants=HALVES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The same half twice.
        ("b = Slice (x, four, eight, last, step)", "b = Slice (x, zero, four, last, step)"),
        # The halves in their own order: no rotation.
        ("(n, a)", "(a, n)"),
        # Both halves with their own sign.
        ("n = Neg (b)", "n = Abs (b)"),
        # Swapped rows of something else than x.
        ("c = Mul (x, cos)", "z = Relu (x) c = Mul (z, cos)"),
    ],
)
def test_what_is_no_rotation(old: str, new: str) -> None:
    graph = ROTARY.replace(old, new)
    if "eight," not in graph:
        graph = graph.replace("int64[1] eight = {8}, ", "")
    leaves_alone("recognise_rotary", graph, weights=TABLES)


def test_halves_that_differ() -> None:
    leaves_alone("recognise_rotary", ROTARY, weights={**TABLES, "cos": weight(1, 1, 4, 8)})


COMPUTED = ROTARY.replace(
    "(float[1,2,4,8] x)", "(float[1,2,4,8] x, float[1,4,4] angles)", 1
).replace(
    "step = {1}>\n    {",
    """step = {1}, int64[1] one = {1}>
    {
        f = Concat <axis = -1> (angles, angles)
        u = Unsqueeze (f, one)
        cos = Cos (u)
        sin = Sin (u)""",
)


def test_angles_that_are_computed() -> None:
    after = """
    g (float[1,2,4,8] x, float[1,4,4] angles) => (float[1,2,4,8] y)
    <int64[1] zero = {0}, int64[1] four = {4}, int64[1] last = {3}, int64[1] one = {1},
         int64[3] table = {1, 4, 4}>
    {
        f = Concat <axis = -1> (angles, angles)
        u = Unsqueeze (f, one)
        cos = Cos (u)
        sin = Sin (u)
        left_cos = Slice (cos, zero, four, last)
        half_cos = Reshape (left_cos, table)
        left_sin = Slice (sin, zero, four, last)
        half_sin = Reshape (left_sin, table)
        y = RotaryEmbedding (x, half_cos, half_sin)
    }"""
    rewrites("recognise_rotary", COMPUTED, after)


def test_computed_angles_that_differ_between_the_halves() -> None:
    doubled = COMPUTED.replace("(angles, angles)", "(angles, double)").replace(
        "f =", "double = Add (angles, angles) f ="
    )
    leaves_alone("recognise_rotary", doubled)


def test_layers_share_the_halves_of_their_tables() -> None:
    before = SPLIT.replace(
        "=> (float[1,2,4,8] y)", "=> (float[1,2,4,8] y, float[1,2,4,8] w)"
    ).replace(
        "y = Add (c, s)",
        """y = Add (c, s)
        z = Relu (x)
        d = Mul (z, cos)
        e, h = Split <axis = 3, num_outputs = 2> (z)
        i = Neg (h)
        j = Concat <axis = -1> (i, e)
        k = Mul (j, sin)
        w = Add (d, k)""",
    )
    after = """
    g (float[1,2,4,8] x) => (float[1,2,4,8] y, float[1,2,4,8] w) {
        y = RotaryEmbedding (x, half_cos, half_sin)
        z = Relu (x)
        w = RotaryEmbedding (z, half_cos, half_sin)
    }"""
    made = rewrites("recognise_rotary", before, after, weights=TABLES, constants=HALVES)
    assert len(made.constants) == 2
