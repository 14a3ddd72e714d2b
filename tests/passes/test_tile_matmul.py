"""Layers that do not fit one Edge TPU become tiles that do."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.targets import Layer, fits
from passes.tile_matmul import plan
from tests.passes.golden import TARGET, leaves_alone, rewrites, weight

# Two halves of the inputs, each a multiple of 4 (the device's); the bias is added once.
PARTIAL_SUMS = """
    g (float[1,9000] x) => (float[1,64] y)
    <int64[1] zero = {0}, int64[1] half = {4500}, int64[1] whole = {9000}, int64[1] one = {1}>
    {
        front = Slice (x, zero, half, one)
        back = Slice (x, half, whole, one)
        first = edgetpu.FullyConnected (front, w1, b)
        second = edgetpu.FullyConnected (back, w2, zeros)
        y = Add (first, second)
    }"""


def test_tiles_of_outputs_are_joined() -> None:
    before = "g (float[1,4096] x) => (float[1,2048] y) { y = edgetpu.FullyConnected (x, w, b) }"
    after = """
    g (float[1,4096] x) => (float[1,2048] y) {
        first = edgetpu.FullyConnected (x, w1, b1)
        second = edgetpu.FullyConnected (x, w2, b2)
        y = Concat <axis = 1> (first, second)
    }"""
    # 32 MB of drawn numbers would take longer than the pass.
    w, b = np.resize(weight(997), (2048, 4096)), weight(2048)
    constants = {"w1": w[:1024], "w2": w[1024:], "b1": b[:1024], "b2": b[1024:]}
    rewrites("tile_matmul", before, after, weights={"w": w, "b": b}, constants=constants)


def test_partial_sums_are_added_where_one_block_does_not_fit() -> None:
    before = "g (float[1,9000] x) => (float[1,64] y) { y = edgetpu.FullyConnected (x, w, b) }"
    w, b = weight(64, 9000), weight(64)
    constants = {"w1": w[:, :4500], "w2": w[:, 4500:], "b": b, "zeros": np.zeros(64, np.float32)}
    rewrites("tile_matmul", before, PARTIAL_SUMS, weights={"w": w, "b": b}, constants=constants)


def test_a_dense_layer_of_onnx() -> None:
    """Through lowering, where weights stand in columns."""
    before = "g (float[1,9000] x) => (float[1,64] y) { y = Gemm (x, w, b) }"
    w, b = weight(9000, 64), weight(64)
    constants = {"w1": w[:4500].T, "w2": w[4500:].T, "b": b, "zeros": np.zeros(64, np.float32)}
    rewrites(
        ("lower", "tile_matmul"),
        before,
        PARTIAL_SUMS,
        weights={"w": w, "b": b},
        constants=constants,
    )


def test_what_fits_is_not_tiled() -> None:
    """As many inputs as one tile of the device holds for a block of 64 outputs."""
    graph = "g (float[1,8064] x) => (float[1,64] y) { y = edgetpu.FullyConnected (x, w, b) }"
    leaves_alone("tile_matmul", graph, weights={"w": weight(64, 8064), "b": weight(64)})


TILES = [
    # outputs, inputs -> tile outputs, tile inputs
    (4096, 25088, 1024, 6272),
    (4096, 4096, 1024, 4096),
    (8192, 2016, 4096, 2016),
    (6144, 2688, 3072, 2688),
    (4096, 4032, 2048, 4032),
    (2048, 8064, 1024, 8064),
    (32000, 576, 11264, 576),
    (2752, 2752, 2048, 2752),
]


@pytest.mark.parametrize(("outputs", "inputs", "tile_outputs", "tile_inputs"), TILES)
def test_tiles(outputs: int, inputs: int, tile_outputs: int, tile_inputs: int) -> None:
    tiling = plan(Layer("dense", inputs, outputs), TARGET)
    assert (tiling.outputs, tiling.inputs) == (tile_outputs, tile_inputs)
    assert fits([Layer("dense", tiling.inputs, tiling.outputs)], TARGET)
    assert not fits([Layer("dense", inputs, outputs)], TARGET)


def test_the_largest_square_layer() -> None:
    assert fits([Layer("dense", 2688, 2688)], TARGET)
    assert not fits([Layer("dense", 2752, 2752)], TARGET)
