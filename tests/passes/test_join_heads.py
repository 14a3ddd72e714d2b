"""Attention of [batch, rows, heads * width] in the place of four Transposes."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites

GRAPH = """
    g (float[1,3,2,4] q, float[1,5,1,4] k, float[1,5,1,4] v, float[1,1,3,5] m)
        => (float[1,3,2,4] y) {
        a = Transpose <perm = [0, 2, 1, 3]> (q)
        b = Transpose <perm = [0, 2, 1, 3]> (k)
        c = Transpose <perm = [0, 2, 1, 3]> (v)
        d = Attention <scale = 0.25> (a, b, c, m)
        y = Transpose <perm = [0, 2, 1, 3]> (d)
    }"""


def test_heads_are_joined() -> None:
    """Two heads of queries share one of keys and values."""
    after = """
    g (float[1,3,2,4] q, float[1,5,1,4] k, float[1,5,1,4] v, float[1,1,3,5] m)
        => (float[1,3,2,4] y)
    <int64[3] queries = {1, 3, 8}, int64[3] keys = {1, 5, 4}, int64[3] values = {1, 5, 4},
     int64[4] apart = {1, 3, 2, 4}> {
        own_q = Reshape (q, queries)
        own_k = Reshape (k, keys)
        own_v = Reshape (v, values)
        joined = Attention <kv_num_heads = 1, q_num_heads = 2, scale = 0.25>
            (own_q, own_k, own_v, m)
        y = Reshape (joined, apart)
    }"""
    rewrites("join_heads", GRAPH, after)


@pytest.mark.parametrize("name", ["q", "k", "v", "d"])
def test_heads_that_are_not_moved_so_stay(name: str) -> None:
    """Queries, keys, values or results go through another operator in the place of a Transpose."""
    order = "Transpose <perm = [0, 2, 1, 3]>"
    # All axes that change places have one length, so that either order fits.
    graph = GRAPH.replace("[1,3,2,4] q", "[1,2,2,4] q").replace("[1,3,2,4] y", "[1,2,2,4] y")
    graph = graph.replace("[1,5,1,4]", "[1,2,2,4]").replace("[1,1,3,5] m", "[1,1,2,2] m")
    leaves_alone("join_heads", graph.replace(f"{order} ({name})", f"Relu ({name})"))
