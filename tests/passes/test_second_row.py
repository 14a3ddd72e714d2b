"""A second row, at half the size, for each row of a normalised product."""

from __future__ import annotations

import numpy as np

from tests.passes.golden import compute_the_same, leaves_alone, rewrites, run_passes, weight

NORMALISED = """
    g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {0.6, 0.8, 0.8, -0.6}, float[2] shift = {0.25, -0.5},
     float[2] factors = {5, 10},
     float[2] offsets = {0, 0}>
    {
        z = edgetpu.FullyConnected (x, w, shift)
        [balanced_host] scaled = Mul (z, factors)
        [host] y = Add (scaled, offsets)
    }"""
CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"
# By hand: 2 rows become 4, an image [1, 1, 4, 2]. Twice the half has twice the shift, so that one
# is taken off again.
# Results are read from the first rows up to 126.5 of 127 steps.
AFTER = f"""
    g (float[2,2] x) => (float[2,2] y)
    <float half = {{0.5}}, float[2,2,1,1] weights = {{0.6, 0.8, 0.8, -0.6}},
     int64[4] image = {{1, 1, 4, 2}},
     int64[2] sizes = {{2, 2}}, float largest = {{0.99606299}}, float two = {{2}},
          float[2] shift = {{0.25, -0.5}},
     int64[2] matrix = {{2, 2}}, float[2] factors = {{5, 10}}, float[2] offsets = {{0, 0}}>
    {{
        [host] halves = Mul (x, half)
        [host] both = Concat <axis = 0> (x, halves)
        [host] rows = Reshape (both, image)
        made = {CONV} (rows, weights, shift)
        [host] whole, second = Split <axis = 2> (made, sizes)
        [host] size = Abs (whole)
        [host] inside = Less (size, largest)
        [host] twice = Mul (second, two)
        [host] doubled = Sub (twice, shift)
        [host] chosen = Where (inside, whole, doubled)
        [host] z = Reshape (chosen, matrix)
        [balanced_host] scaled = Mul (z, factors)
        [host] y = Add (scaled, offsets)
    }}"""


def test_rows_are_given_twice_and_the_host_chooses() -> None:
    rewrites("second_row", NORMALISED, AFTER)


def test_results_beyond_the_range_come_from_the_second_row() -> None:
    """The first row's largest output, 8.25, is far beyond 1; -0.2 of the second is within."""
    rewrites(
        "second_row", NORMALISED, AFTER, inputs={"x": np.array([[8, 4], [-0.5, -0.2]], np.float32)}
    )


def test_other_products_keep_their_rows() -> None:
    """Nothing may be known of the range of their outputs."""
    leaves_alone("second_row", NORMALISED.replace("[balanced_host]", "[host]"))


def test_rows_of_a_transformer() -> None:
    """From ONNX through the passes in front, where rows are pixels of an image one pixel high."""
    before = """
    g (float[1,6,8] x) => (float[1,6,16] y) {
        n = Softmax <axis = 1> (x)
        m = MatMul (n, w)
        y = Gelu (m)
    }"""
    names = ("keep_gates", "fold_affine", "shuffle_channels", "lower", "cancel_transposes")
    steps = (*names, "fold_flatten", "cancel_reshapes", "normalise_linears", "second_row")
    original, made = run_passes(steps, before, {"w": weight(8, 16)})
    start = made.kinds.index("Div") + 2  # the image's rows are made a matrix's
    conv = ["Mul", "Concat", "Reshape", "edgetpu.Conv2D", "Split"]
    choice = ["Abs", "Less", "Mul", "Sub", "Where"]
    assert made.kinds[start : start + 10] == [*conv, *choice]
    compute_the_same(original, [made.proto])
