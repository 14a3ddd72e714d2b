"""A convolution of an image's four phases reads the image itself."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, weight

# Bounds and axes as torch.onnx writes them: rows are cut, then columns.
CONSTANTS = """
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
     int64[1] end = {9223372036854775807}>"""
SLICES = """
        r0 = Slice (x, zero, end, two, two)
        p00 = Slice (r0, zero, end, three, two)
        r1 = Slice (x, one, end, two, two)
        p10 = Slice (r1, zero, end, three, two)
        p01 = Slice (r0, one, end, three, two)
        p11 = Slice (r1, one, end, three, two)"""


def joined(w: np.ndarray, phases: list[tuple[int, int]]) -> np.ndarray:
    """Tap (row, column) of phase (i, j) is tap (2 row + i, 2 column + j) of the image."""
    outputs, inputs, tall, wide = w.shape
    channels = inputs // 4
    whole = np.zeros((outputs, channels, 2 * tall, 2 * wide), np.float32)
    for index, (i, j) in enumerate(phases):
        for channel in range(channels):
            for row in range(tall):
                for column in range(wide):
                    taken = w[:, index * channels + channel, row, column]
                    whole[:, channel, 2 * row + i, 2 * column + j] = taken
    return whole


@pytest.mark.parametrize(
    ("order", "phases"),
    [
        ("p00, p10, p01, p11", [(0, 0), (1, 0), (0, 1), (1, 1)]),
        ("p11, p00, p01, p10", [(1, 1), (0, 0), (0, 1), (1, 0)]),
    ],
)
def test_a_convolution_with_padding_and_bias(order: str, phases: list[tuple[int, int]]) -> None:
    before = f"""
    g (float[1,3,8,12] x) => (float[1,4,4,6] y) {CONSTANTS} {{
        {SLICES}
        c = Concat <axis = 1> ({order})
        y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c, w, b)
    }}"""
    after = """
    g (float[1,3,8,12] x) => (float[1,4,4,6] y) {
        y = Conv <kernel_shape = [6, 6], pads = [2, 2, 2, 2], strides = [2, 2]> (x, whole, b)
    }"""
    w, b = weight(4, 12, 3, 3), weight(4)
    constants = {"whole": joined(w, phases), "b": b}
    rewrites("join_phases", before, after, weights={"w": w, "b": b}, constants=constants)


def test_strides_double_too() -> None:
    before = f"""
    g (float[1,1,8,8] x) => (float[1,2,2,1] y) {CONSTANTS} {{
        {SLICES}
        c = Concat <axis = 1> (p00, p10, p01, p11)
        y = Conv <pads = [0, 0, 1, 0], strides = [2, 3]> (c, w)
    }}"""
    after = """
    g (float[1,1,8,8] x) => (float[1,2,2,1] y) {
        y = Conv <kernel_shape = [6, 4], pads = [0, 0, 2, 0], strides = [4, 6]> (x, whole)
    }"""
    w = weight(2, 4, 3, 2)
    whole = joined(w, [(0, 0), (1, 0), (0, 1), (1, 1)])
    rewrites("join_phases", before, after, weights={"w": w}, constants={"whole": whole})


@pytest.mark.parametrize(
    ("order", "reader"),
    [
        # One phase stands twice.
        ("p00, p10, p01, p00", "y = Conv (c, w)"),
        ("p00, p10, p01, p11", "y = Conv <dilations = [2, 1]> (c, w)"),
        ("p00, p10, p01, p11", "y = MaxPool <kernel_shape = [3, 3]> (c)"),
    ],
)
def test_what_stays(order: str, reader: str) -> None:
    height = 2 if "dilations" not in reader else 0
    channels = 4 if "Conv" in reader else 12
    if not height:
        reader = reader.replace("[2, 1]", "[2, 1], pads = [1, 0, 1, 0]")
    graph = f"""
    g (float[1,3,8,8] x) => (float[1,{channels},2,2] y) {CONSTANTS} {{
        {SLICES}
        c = Concat <axis = 1> ({order})
        {reader}
    }}"""
    if "p11" not in order:
        graph = graph.replace("p11 = Slice (r1, one, end, three, two)", "")
    weights = {"w": weight(4, 12, 3, 3)} if "Conv" in reader else None
    leaves_alone("join_phases", graph, weights=weights)


def test_odd_sizes_stay() -> None:
    """The second phase of an odd number of rows is one row short: zeros stand for it."""
    graph = """
    g (float[1,1,7,8] x) => (float[1,2,1,2] y)
    <int64[2] a = {0, 0}, int64[2] b = {0, 1}, int64[2] axes = {2, 3}, int64[2] steps = {2, 2},
     int64[2] e = {6, 8}, int64[2] c0 = {1, 0}, int64[2] d0 = {1, 1}> {
        p00 = Slice (x, a, e, axes, steps)
        p10 = Slice (x, c0, e, axes, steps)
        p01 = Slice (x, b, e, axes, steps)
        p11 = Slice (x, d0, e, axes, steps)
        c = Concat <axis = 1> (p00, p10, p01, p11)
        y = Conv (c, w)
    }"""
    leaves_alone("join_phases", graph, weights={"w": weight(2, 4, 3, 3)})
