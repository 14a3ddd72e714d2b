"""Channel shuffles of five dimensions become three-dimensional."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites

SHUFFLE = """
    g (float[1,6,4,4] x) => (float[1,6,4,4] y)
    <int64[5] five = {1, 2, 3, 4, 4}, int64[4] four = {1, 6, 4, 4}>
    {
        a = Reshape (x, five)
        b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
        y = Reshape (b, four)
    }"""


def test_a_shuffle_of_two_groups() -> None:
    after = """
    g (float[1,6,4,4] x) => (float[1,6,4,4] y)
    <int64[4] groups = {1, 16, 2, 3}, int64[4] image = {1, 4, 4, 6}>
    {
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        rows = Reshape (nhwc, groups)
        turned = Transpose <perm = [0, 1, 3, 2]> (rows)
        shuffled = Reshape (turned, image)
        y = Transpose <perm = [0, 3, 1, 2]> (shuffled)
    }"""
    rewrites("shuffle_channels", SHUFFLE, after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Rows and columns are exchanged, not groups.
        ("[0, 2, 1, 3, 4]", "[0, 1, 2, 4, 3]"),
        # Groups of rows of the image.
        ("five = {1, 2, 3, 4, 4}", "five = {1, 6, 2, 2, 4}"),
        # The result has another shape.
        ("=> (float[1,6,4,4] y)", "=> (float[1,4,6,4] y)"),
        # Two images.
        ("float[1,6,4,4]", "float[2,3,4,4]"),
    ],
)
def test_what_is_no_shuffle(old: str, new: str) -> None:
    assert old in SHUFFLE
    graph = SHUFFLE.replace(old, new)
    if new.startswith("=>"):
        graph = graph.replace("four = {1, 6, 4, 4}", "four = {1, 4, 6, 4}")
    if new.startswith("float[2"):
        graph = graph.replace("{1, 2, 3, 4, 4}", "{2, 1, 3, 4, 4}").replace(
            "{1, 6, 4, 4}", "{2, 3, 4, 4}"
        )
    leaves_alone("shuffle_channels", graph)
