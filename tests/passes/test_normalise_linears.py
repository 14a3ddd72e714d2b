"""Products between host operators get rows in [-1, 1], a factor and an offset for each output."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, run_passes, weight
from tests.passes.hadamard import check_rotation

# The passes between ONNX and the products that this one looks for.
LOWERED = (
    "fold_affine",
    "shuffle_channels",
    "lower",
    "cancel_transposes",
    "fold_flatten",
    "cancel_reshapes",
)
CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"
DENSE = """
    g (float[2,2] x) => (float[2,3] y)
    <float[3,2] w = {3, 4, 0, 0, 5, -12}, float[3] b = {0, 0, 0}>
    {
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = Erf (d)
    }"""


def test_factors_are_the_norms_of_the_weights_rows() -> None:
    """5 of (3, 4), 13 of (5, -12), and 1 where nothing is. Offsets are chosen by calibration."""
    after = """
    g (float[2,2] x) => (float[2,3] y)
    <int64[1] last = {1}, float tiny = {1e-12},
     float[3,2] balanced = {0.6, 0.8, 0, 0, 0.3846154, -0.9230769},
     float[3] shift = {0, 0, 0}, float[3] factors = {5, 1, 13}, float[3] offsets = {0, 0, 0}>
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
    rewrites("normalise_linears", DENSE, after)


def test_rows_of_zeros_stay_zeros() -> None:
    """Nothing is divided by zero; what is computed is compared in `rewrites`."""
    before = DENSE.replace("float[3] b = {0, 0, 0}", "float[3] b = {1, 2, 3}")
    after = """
    g (float[2,2] x) => (float[2,3] y)
    <int64[1] last = {1}, float tiny = {1e-12},
     float[3,2] balanced = {0.6, 0.8, 0, 0, 0.3846154, -0.9230769},
     float[3] shift = {0, 0, 0}, float[3] factors = {5, 1, 13}, float[3] offsets = {0, 0, 0},
          float[3] b = {1, 2, 3}>
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
        [host] whole = Mul (moved, peak)
        [host] d = Add (whole, b)
        y = Erf (d)
    }"""
    rows = np.array([[0, 0], [1000, -1e-3]], np.float32)
    rewrites("normalise_linears", before, after, inputs={"x": rows})


def test_products_of_the_same_rows_become_one() -> None:
    before = """
    g (float[2,2] x) => (float[2,1] y, float[2,2] z)
    <float[1,2] w = {3, 4}, float[2,2] v = {5, 12, 8, 15}, float[1] b = {1}, float[2] c = {2, 3}>
    {
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = Erf (d)
        e = edgetpu.FullyConnected (s, v, c)
        z = Erf (e)
    }"""
    after = """
    g (float[2,2] x) => (float[2,1] y, float[2,2] z)
    <int64[1] last = {1}, float tiny = {1e-12},
     float[3,2] balanced = {0.6, 0.8, 0.3846154, 0.9230769, 0.4705882, 0.8823529},
     float[3] shift = {0, 0, 0}, float[3] factors = {5, 13, 17}, float[3] offsets = {0, 0, 0},
          float[3] biases = {1, 2, 3},
     int64[2] sizes = {1, 2}>
    {
        s = Erf (x)
        [host] highest = ReduceMax (s, last)
        [host] lowest = ReduceMin (s, last)
        [host] below = Neg (lowest)
        [host] peak = Max (highest, below, tiny)
        [host] rows = Div (s, peak)
        z1 = edgetpu.FullyConnected (rows, balanced, shift)
        [balanced_host] scaled = Mul (z1, factors)
        [host] moved = Add (scaled, offsets)
        [host] whole = Mul (moved, peak)
        [host] all = Add (whole, biases)
        [host] d, e = Split <axis = 1> (all, sizes)
        y = Erf (d)
        z = Erf (e)
    }"""
    rewrites("normalise_linears", before, after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The Edge TPU makes the rows.
        ("s = Erf (x)", "s = Tanh (x)"),
        # The Edge TPU reads the result.
        ("y = Erf (d)", "r = Relu (d) y = Erf (r)"),
    ],
)
def test_layers_between_operators_of_the_edge_tpu_stay(old: str, new: str) -> None:
    leaves_alone("normalise_linears", DENSE.replace(old, new))


def test_layers_of_a_chain_on_the_edge_tpu_stay() -> None:
    """From ONNX through the passes in front. The last Gelu is the Edge TPU's too, by its gate."""
    before = """
    g (float[1,6,8] x) => (float[1,6,4] y) {
        m = MatMul (x, w)
        r = Relu (m)
        s = MatMul (r, v)
        y = Gelu (s)
    }"""
    after = f"""
    g (float[1,6,8] x) => (float[1,6,4] y)
    <float[4] zeros = {{0, 0, 0, 0}}, int64[4] image = {{1, 1, 6, 8}},
     int64[3] tokens = {{1, 6, 4}},
     float slope = {{1.702}}>
    {{
        pixels = Reshape (x, image)
        first = {CONV} (pixels, first_weights, zeros)
        relu = Relu (first)
        second = {CONV} (relu, second_weights, zeros)
        s = Reshape (second, tokens)
        scaled = Mul (s, slope)
        gate = edgetpu.GeluGate (scaled)
        y = Mul (s, gate)
    }}"""
    weights = {"w": weight(8, 4), "v": weight(4, 4)}
    constants = {
        "first_weights": weights["w"].T.reshape(4, 8, 1, 1),
        "second_weights": weights["v"].T.reshape(4, 4, 1, 1),
    }
    rewrites(
        (*LOWERED, "rotate_rows", "normalise_linears"),
        before,
        after,
        weights=weights,
        constants=constants,
    )


def test_weights_that_were_given_in_int8_keep_their_grid() -> None:
    """Other rows than those of the quantized model would be rounded anew."""
    before = """
    g (float[2,2] x) => (float[2,2] y)
    <int8[2,2] q = {1, 2, 3, 4}, float[2] s = {0.5, 2}, float[2] b = {0, 0}>
    {
        e = Erf (x)
        w = DequantizeLinear <axis = 0> (q, s)
        d = edgetpu.FullyConnected (e, w, b)
        y = Erf (d)
    }"""
    after = """
    g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {0.5, 1, 6, 8}, float[2] b = {0, 0}>
    {
        e = Erf (x)
        d = edgetpu.FullyConnected (e, w, b)
        y = Erf (d)
    }"""
    rewrites(("keep_scales", "normalise_linears"), before, after)


def test_between_host_operators_of_a_transformer() -> None:
    """From ONNX, rotated first: rows of eight are one block."""
    before = """
    g (float[1,6,8] x) => (float[1,6,4] y) {
        n = LayerNormalization (x, gain, shift)
        m = MatMul (n, w)
        s = Add (m, b)
        y = Gelu (s)
    }"""
    after = f"""
    g (float[1,6,8] x) => (float[1,6,4] y)
    <int64[2] matrix = {{6, 8}}, int64[4] image = {{1, 1, 6, 8}}, int64[1] last = {{3}},
         float tiny = {{1e-12}},
     float[4] zeros = {{0, 0, 0, 0}}, int64[3] tokens = {{1, 6, 4}}>
    {{
        [refused] n = LayerNormalization (x, gain, shift)
        flat = Reshape (n, matrix)
        [host] product = MatMul (flat, rotation)
        turned = Reshape (product, image)
        [host] highest = ReduceMax (turned, last)
        [host] lowest = ReduceMin (turned, last)
        [host] below = Neg (lowest)
        [host] peak = Max (highest, below, tiny)
        [host] rows = Div (turned, peak)
        z = {CONV} (rows, balanced, zeros)
        [balanced_host] scaled = Mul (z, factors)
        [host] moved = Add (scaled, zeros)
        [host] whole = Mul (moved, peak)
        [host] sum = Add (whole, b)
        s = Reshape (sum, tokens)
        [host] y = Gelu (s)
    }}"""
    weights = {"gain": weight(8), "shift": weight(8), "w": weight(8, 4), "b": weight(4)}
    steps = ("keep_gates", *LOWERED, "rotate_rows", "normalise_linears")
    made = run_passes(steps, before, weights)[1]
    rotation = next(array for array in made.constants.values() if array.shape == (8, 8))
    check_rotation(rotation, 8)
    rotate_blocks = weights["w"].T.astype(np.float64) @ rotation
    norms = np.sqrt((rotate_blocks**2).sum(axis=1))
    computed = {"factors": norms, "balanced": (rotate_blocks / norms[:, None]).reshape(4, 8, 1, 1)}
    constants = {name: array.astype(np.float32) for name, array in computed.items()} | {
        "rotation": rotation
    }
    given = {name: weights[name] for name in ("gain", "shift", "b")}
    rewrites(steps, before, after, weights=weights, constants={**constants, **given})
