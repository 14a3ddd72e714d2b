"""A mean over more positions than the Edge TPU takes becomes an average pooling and a mean."""

from __future__ import annotations

import pytest

from tests.passes.golden import TARGET, leaves_alone, rewrites


def graph(height: int, width: int, body: str, axes: str = "{1, 2}", keep: bool = True) -> str:
    out = "float[1,1,1,2]" if keep else "float[1,2]"
    count = axes.count(",") + 1
    return f"g (float[1,{height},{width},2] x) => ({out} y) <int64[{count}] axes = {axes}> {{ {body} }}"


@pytest.mark.parametrize(
    ("height", "width", "window"),
    [
        (96, 96, 2),
        # 93 and 99 have no half.
        (93, 99, 3),
        # A window of 2 would leave 10,000 positions, one of 3 does not divide 200.
        (200, 200, 4),
    ],
)
def test_the_smallest_window_that_leaves_few_enough(height: int, width: int, window: int) -> None:
    assert height * width > TARGET.mean_positions >= height * width / window**2
    sides = f"[{window}, {window}]"
    pool = f"edgetpu.AveragePool2D <kernel_shape = {sides}, pads = [0, 0, 0, 0], strides = {sides}>"
    before = graph(height, width, "y = ReduceMean (x, axes)")
    after = graph(height, width, f"p = {pool} (x) y = ReduceMean (p, axes)")
    rewrites("split_means", before, after)


def test_attributes_of_the_mean_stay() -> None:
    pool = "edgetpu.AveragePool2D <kernel_shape = [2, 2], pads = [0, 0, 0, 0], strides = [2, 2]>"
    before = graph(128, 128, "y = ReduceMean <keepdims = 0> (x, axes)", keep=False)
    after = graph(128, 128, f"p = {pool} (x) y = ReduceMean <keepdims = 0> (p, axes)", keep=False)
    rewrites("split_means", before, after)


@pytest.mark.parametrize(
    ("height", "width", "body", "axes", "out"),
    [
        # 8192 positions are just not too many.
        (64, 128, "y = ReduceMean (x, axes)", "{1, 2}", "[1,1,1,2]"),
        # No window divides both sides.
        (97, 97, "y = ReduceMean (x, axes)", "{1, 2}", "[1,1,1,2]"),
        # A mean of each row.
        (96, 96, "y = ReduceMean (x, axes)", "{2}", "[1,96,1,2]"),
        # Of the channels too.
        (96, 96, "y = ReduceMean (x, axes)", "{1, 2, 3}", "[1,1,1,1]"),
        # A largest value is none that pooling averages.
        (96, 96, "y = ReduceMax (x, axes)", "{1, 2}", "[1,1,1,2]"),
    ],
)
def test_what_is_not_split(height: int, width: int, body: str, axes: str, out: str) -> None:
    text = graph(height, width, body, axes).replace("float[1,1,1,2] y", f"float{out} y")
    leaves_alone("split_means", text)
