"""BatchNormalization and constants per channel are folded into the layer in front."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, weight


def test_a_chain_goes_into_a_convolution() -> None:
    """BatchNormalization is (c - 1) / 2 * gain + bias; then channels times 2, 4 and plus 2, 4."""
    before = """
    g (float[1,3,4,4] x) => (float[1,2,2,2] y)
    <float[2,3,1,1] w = {1, 2, 3, -1, -2, -3}, float[2] gain = {1, 2}, float[2] bias = {0.5, -0.5},
     float[2] mean = {1, 1}, float[2] variance = {4, 4}, float[2,1,1] a = {2, 4}>
    {
        c = Conv <strides = [2, 2]> (x, w)
        n = BatchNormalization <epsilon = 0.0> (c, gain, bias, mean, variance)
        m = Mul (n, a)
        y = Add (m, a)
    }"""
    after = """
    g (float[1,3,4,4] x) => (float[1,2,2,2] y)
    <float[2,3,1,1] scaled = {1, 2, 3, -4, -8, -12}, float[2] b = {2, -2}>
    {
        y = Conv <strides = [2, 2]> (x, scaled, b)
    }"""
    rewrites("fold_affine", before, after)


def test_statistics_of_real_size_go_into_a_convolution() -> None:
    before = """
    g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        c = Conv (x, w)
        n = BatchNormalization (c, gain, bias, mean, variance)
        m = Mul (n, a)
        y = Add (m, a)
    }"""
    after = """
    g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
        y = Conv (x, scaled, b)
    }"""
    statistics = {name: np.abs(weight(4)) + 0.5 for name in ("gain", "bias", "mean", "variance")}
    w, a = weight(4, 3, 3, 3), weight(4, 1, 1)
    deviation = np.sqrt(statistics["variance"].astype(np.float64) + 1e-5)
    factor = statistics["gain"] / deviation
    shift = statistics["bias"] - statistics["mean"] * factor
    constants = {
        "scaled": (w * (factor * a[:, 0, 0])[:, None, None, None]).astype(np.float32),
        "b": (shift * a[:, 0, 0] + a[:, 0, 0]).astype(np.float32),
    }
    rewrites(
        "fold_affine", before, after, weights={"w": w, "a": a, **statistics}, constants=constants
    )


def test_a_bias_is_scaled_with_the_weights_and_shifted() -> None:
    before = """
    g (float[1,2,2,2] x) => (float[1,2,4,4] y)
    <float[2,2,2,2] w = {1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4, -5, -6, -7, -8},
     float[2] b = {10, 20},
     float[1,2,1,1] half = {0.5, 0.25}, float[2,1,1] three = {3, 6}>
    {
        c = ConvTranspose <strides = [2, 2]> (x, w, b)
        m = Mul (half, c)
        y = Sub (m, three)
    }"""
    after = """
    g (float[1,2,2,2] x) => (float[1,2,4,4] y)
    <float[2,2,2,2] scaled = {0.5, 1, 1.5, 2, 1.25, 1.5, 1.75, 2, -0.5, -1, -1.5, -2, -1.25, -1.5,
         -1.75, -2},
     float[2] shifted = {2, -1}>
    {
        y = ConvTranspose <strides = [2, 2]> (x, scaled, shifted)
    }"""
    rewrites("fold_affine", before, after)


@pytest.mark.parametrize(
    ("flag", "w", "scaled"),
    [
        ("", "float[2,3] w = {1, 2, 3, 4, 5, 6}", "float[2,3] scaled = {1, 4, 9, 4, 10, 18}"),
        (
            "<transB = 1>",
            "float[3,2] w = {1, 4, 2, 5, 3, 6}",
            "float[3,2] scaled = {1, 4, 4, 10, 9, 18}",
        ),
    ],
)
def test_outputs_of_a_dense_layer_are_rows_or_columns_of_its_weights(
    flag: str, w: str, scaled: str
) -> None:
    before = f"""
    g (float[4,2] x) => (float[4,3] y)
    <{w}, float[3] b = {{1, 1, 1}}, float[3] a = {{1, 2, 3}}>
    {{
        d = Gemm {flag} (x, w, b)
        m = Mul (d, a)
        y = Add (a, m)
    }}"""
    after = f"""
    g (float[4,2] x) => (float[4,3] y)
    <{scaled}, float[3] b = {{2, 4, 6}}>
    {{
        y = Gemm {flag} (x, scaled, b)
    }}"""
    rewrites("fold_affine", before, after)


def test_a_divisor_goes_into_a_matrix_product() -> None:
    before = """
    g (float[1,4,2] x) => (float[1,4,2] y)
    <float[2,2] w = {1, 2, 3, 4}, float[2] divisor = {2, 4}>
    {
        d = MatMul (x, w)
        y = Div (d, divisor)
    }"""
    after = """
    g (float[1,4,2] x) => (float[1,4,2] y)
    <float[2,2] scaled = {0.5, 0.5, 1.5, 1}>
    {
        y = MatMul (x, scaled)
    }"""
    rewrites("fold_affine", before, after)


def test_a_chain_without_a_layer_becomes_one_product_and_one_sum() -> None:
    """By channel: 3 - 2 (x + 1) is -2 x + 1, and 5 - 4 (x + 1) is -4 x + 1."""
    before = """
    g (float[1,2,3,3] x) => (float[1,2,3,3] y)
    <float one = {1}, float[2,1,1] a = {2, 4}, float[2,1,1] b = {3, 5}>
    {
        r = Relu (x)
        p = Add (r, one)
        m = Mul (a, p)
        y = Sub (b, m)
    }"""
    after = """
    g (float[1,2,3,3] x) => (float[1,2,3,3] y)
    <float[1,2,1,1] scale = {-2, -4}, float[1,2,1,1] shift = {1, 1}>
    {
        r = Relu (x)
        scaled = Mul (r, scale)
        y = Add (scaled, shift)
    }"""
    rewrites("fold_affine", before, after)


def test_between_layers_a_chain_becomes_a_layer_of_one_tap() -> None:
    """Around it an image goes through convolutions; the product in front is no layer."""
    before = """
    g (float[1,2,3,3] x) => (float[1,2,3,3] y)
    <float[2,2,1,1] w = {1, 2, 3, 4}, float two = {2}, float[2,1,1] shift = {3, -5}>
    {
        c = Conv (x, w)
        s = Sigmoid (c)
        gated = Mul (c, s)
        m = Mul (gated, two)
        a = Add (m, shift)
        r = Relu (a)
        y = Conv (r, w)
    }"""
    after = """
    g (float[1,2,3,3] x) => (float[1,2,3,3] y)
    <float[2,2,1,1] w = {1, 2, 3, 4}, float[2,1,1,1] scale = {2, 2}, float[2] shift = {3, -5}>
    {
        c = Conv (x, w)
        s = Sigmoid (c)
        gated = Mul (c, s)
        a = Conv <group = 2, kernel_shape = [1, 1]> (gated, scale, shift)
        r = Relu (a)
        y = Conv (r, w)
    }"""
    rewrites("fold_affine", before, after)


def test_normalisation_without_a_layer() -> None:
    before = """
    g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        r = Relu (x)
        n = BatchNormalization (r, gain, bias, mean, variance)
        m = Mul (n, a)
        y = Sub (m, a)
    }"""
    after = """
    g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        r = Relu (x)
        scaled = Mul (r, scale)
        y = Add (scaled, shift)
    }"""
    statistics = {name: np.abs(weight(4)) + 0.5 for name in ("gain", "bias", "mean", "variance")}
    a = weight(4, 1, 1)
    factor = statistics["gain"] / np.sqrt(statistics["variance"].astype(np.float64) + 1e-5)
    shift = statistics["bias"] - statistics["mean"] * factor
    constants = {
        "scale": (factor * a[:, 0, 0]).reshape(1, 4, 1, 1).astype(np.float32),
        "shift": (shift * a[:, 0, 0] - a[:, 0, 0]).reshape(1, 4, 1, 1).astype(np.float32),
    }
    rewrites("fold_affine", before, after, weights={"a": a, **statistics}, constants=constants)


def test_the_layer_takes_what_only_reads_it_and_a_value_that_others_read_stays() -> None:
    leaves_alone(
        "fold_affine",
        """
    g (float[1,2,2,2] x) => (float[1,2,2,2] y)
    <float[2,2,1,1] w = {1, 2, 3, 4}, float[2,1,1] a = {2, 3}>
    {
        c = Conv (x, w)
        m = Mul (c, a)
        y = Add (m, c)
    }""",
    )


@pytest.mark.parametrize(
    "body",
    [
        # A sum has no place in a matrix product, and alone it is one node already.
        "d = MatMul (x, w) y = Add (d, column)",
        # The bias would have to be divided by beta.
        "d = Gemm <beta = 2.0> (x, w, column) y = Mul (d, column)",
        # The layer's weights are no constant.
        "e = Relu (x) d = MatMul (e, x) y = Mul (d, column)",
        # One factor for each row, where the layer has one weight for each column.
        "d = MatMul (x, w) y = Mul (d, row)",
        # Factors of both axes cannot be one chain.
        "e = Relu (x) d = Mul (e, column) y = Mul (d, row)",
        # A constant with two axes is no factor for each channel.
        "d = MatMul (x, w) y = Mul (d, w)",
        # Division by the value is not affine, nor by a zero.
        "d = MatMul (x, w) y = Div (column, d)",
        # The result is larger than the value.
        "e = ReduceMax <keepdims = 1> (x) y = Mul (e, column)",
    ],
)
def test_what_cannot_be_folded(body: str) -> None:
    known = {
        "w": "float[2,2] w = {1, 2, 3, 4}",
        "column": "float[2] column = {1, 2}",
        "row": "float[2,1] row = {3, 4}",
    }
    used = ", ".join(text for name, text in known.items() if re.search(rf"\b{name}\b", body))
    shape = "float[1,2]" if "ReduceMax" in body else "float[2,2]"
    leaves_alone("fold_affine", f"g (float[2,2] x) => ({shape} y) <{used}> {{ {body} }}")


def test_channels_of_a_grouped_transposed_convolution_are_not_told_apart() -> None:
    leaves_alone(
        "fold_affine",
        """
    g (float[1,2,2,2] x) => (float[1,2,2,2] y)
    <float[2,1,1,1] w = {1, 2}, float[2,1,1] a = {2, 3}>
    {
        c = ConvTranspose <group = 2> (x, w)
        y = Mul (c, a)
    }""",
    )


def test_training_is_left_alone() -> None:
    """By its own mean and variance; the running ones of the outputs are what training reads."""
    leaves_alone(
        "fold_affine",
        """
    g (float[2,2,3] x) => (float[2,2,3] y, float[2] running)
    <float[2] gain = {1, 2}, float[2] bias = {0, 1}, float[2] mean = {0, 0},
         float[2] variance = {1, 1}>
    {
        y, running, v = BatchNormalization <training_mode = 1> (x, gain, bias, mean, variance)
    }""",
    )


def test_constants_in_front_of_a_convolution_go_into_it() -> None:
    """A Relu keeps them from the layer in front; the zeros around an image are only scaled."""
    constants = """<float[1,2,1,1] w = {1, 2}, float[1] b = {0.5}, float[2,1,1] a = {2, 4},
                    float[2,1,1] s = {3, 1}>"""
    signature = "g (float[1,2,3,3] x) => (float[1,1,3,3] y)"
    before = f"""{signature} {constants} {{
        r = Relu (x) m = Mul (r, a) n = Add (m, s) y = Conv (n, w, b)
    }}"""
    after = f"""{signature} <float[1,2,1,1] w = {{2, 8}}, float[1] b = {{5.5}}> {{
        r = Relu (x) y = Conv (r, w, b)
    }}"""
    rewrites("fold_affine", before, after)


def test_a_factor_goes_through_padding() -> None:
    signature = "g (float[1,2,3,3] x) => (float[1,1,3,3] y)"
    before = f"""{signature} <float[2,1,1] a = {{2, 4}}> {{
        r = Relu (x) m = Mul (r, a) y = Conv <pads = [1, 1, 1, 1]> (m, w)
    }}"""
    after = f"""{signature} {{
        r = Relu (x) y = Conv <pads = [1, 1, 1, 1]> (r, scaled)
    }}"""
    w = weight(1, 2, 3, 3)
    factor = np.array([2, 4], np.float32)[:, None, None]
    rewrites("fold_affine", before, after, weights={"w": w}, constants={"scaled": w * factor})


@pytest.mark.parametrize(
    "body",
    [
        # The zeros of the padding would be shifted.
        "r = Relu (x) m = Add (r, a) y = Conv <pads = [1, 1, 1, 1]> (m, w)",
        # Another operator reads the product.
        "r = Relu (x) m = Mul (r, a) c = Conv <pads = [1, 1, 1, 1]> (m, w) y = Add (c, m)",
    ],
)
def test_what_does_not_go_into_the_layer_behind(body: str) -> None:
    before = f"g (float[1,2,3,3] x) => (float[1,2,3,3] y) <float[2,1,1] a = {{2, 4}}> {{ {body} }}"
    leaves_alone("fold_affine", before, weights={"w": weight(2, 2, 3, 3)})
