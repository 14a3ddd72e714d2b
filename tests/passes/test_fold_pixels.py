"""The normalisation of pixels goes into the weights that read them, or into a layer in front."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.importer import pixels
from tests.passes.golden import leaves_alone, rewrites, weight

HEAD = """
    <float scale = {1.0}, uint8 zero = {100}, float[1,3,1,1] factor = {0.5, 0.25, 2},
     float[1,3,1,1] shift = {1, -1, 0.5}>"""
FACTOR = np.array([0.5, 0.25, 2], np.float32)
SHIFT = np.array([1, -1, 0.5], np.float32)


def normalised(reader: str) -> str:
    """A graph whose pixels are normalised, then read by `reader`."""
    return f"""
    g (uint8[1,6,6,3] x) => (float[1,4,4,4] y) {HEAD} {{
        d = DequantizeLinear (x, scale, zero)
        t = Transpose <perm = [0, 3, 1, 2]> (d)
        m = Mul (t, factor)
        image = Add (m, shift)
        {reader}
    }}"""


def test_a_convolution_without_padding_takes_all() -> None:
    after = """
    g (uint8[1,6,6,3] x) => (float[1,4,4,4] y) <float scale = {1.0}, uint8 zero = {100}> {
        d = DequantizeLinear (x, scale, zero)
        t = Transpose <perm = [0, 3, 1, 2]> (d)
        y = Conv (t, folded, bias)
    }"""
    w, b = weight(4, 3, 3, 3), weight(4)
    constants = {
        "folded": w * FACTOR.reshape(1, 3, 1, 1),
        "bias": b + (w * SHIFT.reshape(1, 3, 1, 1)).sum((1, 2, 3)),
    }
    made = rewrites(
        "fold_pixels",
        normalised("y = Conv (image, w, b)"),
        after,
        weights={"w": w, "b": b},
        constants=constants,
    )
    assert made.model.meta[pixels.NORMALISED] == "convolution"


def test_what_only_scales_goes_into_a_convolution_that_pads() -> None:
    before = """
    g (uint8[1,3,6,6] x) => (float[1,4,6,6] y)
    <float scale = {1.0}, uint8 zero = {0}, float[1,3,1,1] factor = {0.5, 0.25, 2}> {
        d = DequantizeLinear (x, scale, zero)
        m = Mul (d, factor)
        y = Conv <pads = [1, 1, 1, 1]> (m, w)
    }"""
    after = """
    g (uint8[1,3,6,6] x) => (float[1,4,6,6] y) <float scale = {1.0}, uint8 zero = {0}> {
        d = DequantizeLinear (x, scale, zero)
        y = Conv <pads = [1, 1, 1, 1]> (d, folded, none)
    }"""
    w = weight(4, 3, 3, 3)
    constants = {"folded": w * FACTOR.reshape(1, 3, 1, 1), "none": np.zeros(4, np.float32)}
    rewrites("fold_pixels", before, after, weights={"w": w}, constants=constants)


@pytest.mark.parametrize(
    "reader",
    [
        "y = Conv <pads = [1, 1, 1, 1], strides = [2, 2], kernel_shape = [5, 5]> (image, w)",
        "c = Conv <group = 3> (image, w) \n y = Conv (c, v)",
        "y = MaxPool <kernel_shape = [3, 3]> (image)",
    ],
)
def test_other_readers_get_the_normalised_image_from_a_layer(reader: str) -> None:
    """Zeros around the image are the mean of the pixels, not the pixel 100; and only convolutions
    have weights to fold into."""
    after = f"""
    g (uint8[1,6,6,3] x) => (float[1,4,4,4] y) <float scale = {{1.0}}, uint8 zero = {{100}}> {{
        d = DequantizeLinear (x, scale, zero)
        t = Transpose <perm = [0, 3, 1, 2]> (d)
        image = Conv <group = 3> (t, factors, shifts)
        {reader}
    }}"""
    weights = {"w": weight(4, 3, 5, 5)} if "5, 5" in reader else {}
    if "group" in reader:
        weights = {"w": weight(3, 1, 3, 3), "v": weight(4, 3, 1, 1)}
    constants = {**weights, "factors": FACTOR.reshape(3, 1, 1, 1), "shifts": SHIFT}
    made = rewrites("fold_pixels", normalised(reader), after, weights=weights, constants=constants)
    assert made.model.meta[pixels.NORMALISED] == "layer"


def test_floats_and_constants_of_their_own_stay() -> None:
    graph = """
    g (float[1,3,6,6] x) => (float[1,4,4,4] y) <float[1,3,1,1] factor = {0.5, 0.25, 2}> {
        m = Mul (x, factor)
        y = Conv (m, w)
    }"""
    leaves_alone("fold_pixels", graph, weights={"w": weight(4, 3, 3, 3)})
    columns = """
    g (uint8[1,3,6,6] x) => (float[1,4,4,4] y)
    <float scale = {1.0}, uint8 zero = {0}, float[1,1,1,6] factor = {1, 2, 3, 4, 5, 6}> {
        d = DequantizeLinear (x, scale, zero)
        m = Mul (d, factor)
        y = Conv (m, w)
    }"""
    leaves_alone("fold_pixels", columns, weights={"w": weight(4, 3, 3, 3)})


def test_an_image_in_nhwc_is_normalised_behind_its_transpose() -> None:
    before = """
    g (uint8[1,6,6,3] x) => (float[1,4,4,4] y)
    <float scale = {1.0}, uint8 zero = {100}, float[3] factor = {0.5, 0.25, 2}, float half = {0.5}>
    {
        d = DequantizeLinear (x, scale, zero)
        m = Mul (d, factor)
        a = Add (m, half)
        t = Transpose <perm = [0, 3, 1, 2]> (a)
        y = Conv (t, w)
    }"""
    after = """
    g (uint8[1,6,6,3] x) => (float[1,4,4,4] y) <float scale = {1.0}, uint8 zero = {100}> {
        d = DequantizeLinear (x, scale, zero)
        turned = Transpose <perm = [0, 3, 1, 2]> (d)
        y = Conv (turned, folded, bias)
    }"""
    w = weight(4, 3, 3, 3)
    constants = {"folded": w * FACTOR.reshape(1, 3, 1, 1), "bias": 0.5 * w.sum((1, 2, 3))}
    rewrites("fold_pixels", before, after, weights={"w": w}, constants=constants)


def test_one_number_for_channels_that_are_last_stays_where_it_is() -> None:
    """Whoever reads it: a layer has its channels first."""
    graph = """
    g (uint8[1,6,6,3] x) => (float[1,6,6,3] y)
    <float scale = {1.0}, uint8 zero = {1}, float b = {2}> {
        d = DequantizeLinear (x, scale, zero)
        a = Add (d, b)
        y = Relu (a)
    }"""
    leaves_alone("fold_pixels", graph)


def test_a_cast_of_pixels_is_a_step_of_one() -> None:
    before = """
    g (uint8[1,6,6,3] x) => (float[1,3,6,6] y) {
        f = Cast <to = 1> (x)
        t = Transpose <perm = [0, 3, 1, 2]> (f)
        y = Relu (t)
    }"""
    after = """
    g (uint8[1,6,6,3] x) => (float[1,3,6,6] y) <float one = {1}, uint8 zero = {0}> {
        f = DequantizeLinear (x, one, zero)
        t = Transpose <perm = [0, 3, 1, 2]> (f)
        y = Relu (t)
    }"""
    rewrites("fold_pixels", before, after)
    # Five numbers are no colour.
    leaves_alone("fold_pixels", before.replace("6,3]", "6,5]").replace("[1,3,6", "[1,5,6"))
