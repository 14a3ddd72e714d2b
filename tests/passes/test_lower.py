"""ONNX's operators become those that the Edge TPU has, or stay with the reason why not.

Each operator's rules are tested in tests/ops; here is what the pass does around them.
"""

from __future__ import annotations

import pytest

from compiler.graph import LOWERING_REASON
from tests.passes.golden import rewrites, weight


def test_a_convolution_takes_images_with_channels_last() -> None:
    """TFLite has no such padding, so it is a node of its own: begins of all axes, then ends."""
    before = """
    g (float[1,3,8,9] x) => (float[1,4,4,8] y) {
        y = Conv <dilations = [1, 2], pads = [1, 1, 0, 2], strides = [2, 1]> (x, w)
    }"""
    after = """
    g (float[1,3,8,9] x) => (float[1,4,4,8] y)
    <int64[8] pads = {0, 1, 1, 0, 0, 0, 2, 0}, float[4] zeros = {0, 0, 0, 0}>
    {
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        padded = Pad (nhwc, pads)
        conv = edgetpu.Conv2D <dilations = [1, 2], pads = [0, 0, 0, 0], strides = [2, 1]> (padded,
             w, zeros)
        y = Transpose <perm = [0, 3, 1, 2]> (conv)
    }"""
    weights = {"w": weight(4, 3, 3, 3)}
    rewrites("lower", before, after, weights=weights, constants=weights)


def test_signals_of_a_batch_are_the_rows_of_an_image() -> None:
    before = """
    g (float[5,3,8] x) => (float[5,4,6] y)
    {
        y = Conv (x, w)
    }"""
    after = """
    g (float[5,3,8] x) => (float[5,4,6] y)
    <int64[4] image = {1, 5, 8, 3}, int64[3] signals = {5, 6, 4}, float[4] zeros = {0, 0, 0, 0}>
    {
        last = Transpose <perm = [0, 2, 1]> (x)
        rows = Reshape (last, image)
        conv = edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]> (rows,
             two, zeros)
        apart = Reshape (conv, signals)
        y = Transpose <perm = [0, 2, 1]> (apart)
    }"""
    kernel = weight(4, 3, 3)
    rewrites(
        "lower", before, after, weights={"w": kernel}, constants={"two": kernel[:, :, None, :]}
    )


def test_a_depthwise_convolution_keeps_its_bias_and_groups() -> None:
    before = """
    g (float[1,2,4,4] x) => (float[1,4,4,4] y)
    <float[4] b = {1, 2, 3, 4}>
    {
        y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)
    }"""
    after = """
    g (float[1,2,4,4] x) => (float[1,4,4,4] y)
    <float[4] b = {1, 2, 3, 4}>
    {
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        conv = edgetpu.DepthwiseConv2D <dilations = [1, 1], group = 2, pads = [1, 1, 1, 1],
             strides = [1, 1]> (nhwc, w, b)
        y = Transpose <perm = [0, 3, 1, 2]> (conv)
    }"""
    weights = {"w": weight(4, 1, 3, 3)}
    rewrites("lower", before, after, weights=weights, constants=weights)


def test_a_dense_layer_has_its_outputs_in_rows() -> None:
    before = """
    g (float[1,2] x) => (float[1,3] y)
    <float[2,3] w = {1, 2, 3, 4, 5, 6}, float[3] b = {1, 2, 3}>
    {
        y = Gemm (x, w, b)
    }"""
    after = """
    g (float[1,2] x) => (float[1,3] y)
    <float[3,2] rows = {1, 4, 2, 5, 3, 6}, float[3] b = {1, 2, 3}>
    {
        y = edgetpu.FullyConnected (x, rows, b)
    }"""
    rewrites("lower", before, after)


def test_a_product_of_several_rows_is_a_convolution_of_an_image_one_pixel_high() -> None:
    before = """
    g (float[1,4,2] x) => (float[1,4,3] y)
    <float[2,3] w = {1, 2, 3, 4, 5, 6}>
    {
        y = MatMul (x, w)
    }"""
    after = """
    g (float[1,4,2] x) => (float[1,4,3] y)
    <float[3] zeros = {0, 0, 0},
     float[3,2,1,1] rows = {1, 4, 2, 5, 3, 6},
     int64[4] image = {1, 1, 4, 2},
     int64[3] back = {1, 4, 3}>
    {
        row = Reshape (x, image)
        conv = edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]> (row,
             rows, zeros)
        y = Reshape (conv, back)
    }"""
    rewrites("lower", before, after)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pooling(kind: str) -> None:
    before = f"""
    g (float[1,2,5,6] x) => (float[1,2,2,2] y) {{
        y = {kind} <kernel_shape = [2, 3], strides = [2, 3]> (x)
    }}"""
    after = f"""
    g (float[1,2,5,6] x) => (float[1,2,2,2] y) {{
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        pool = edgetpu.{kind}2D <kernel_shape = [2, 3], pads = [0, 0, 0, 0],
            strides = [2, 3]> (nhwc)
        y = Transpose <perm = [0, 3, 1, 2]> (pool)
    }}"""
    rewrites("lower", before, after)


REFUSED = {
    "its weights are computed": (
        "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { y = Conv (x, w) }",
        "its weights are computed at run time; the Edge TPU needs them constant",
    ),
    "it computes on numbers that are no floats": (
        "g (int32[1,4] x, int32[4,2] z) => (int32[1,2] y) { y = MatMul (x, z) }",
        "it computes on int32; the Edge TPU computes on int8 made from float",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_stays_with_the_reason(name: str) -> None:
    before, reason = REFUSED[name]
    made = rewrites("lower", before, before.replace("{ y", "{ [refused] y"))
    assert made.reasons(LOWERING_REASON) == {"y": reason}


def test_a_shape_that_depends_on_data_is_refused() -> None:
    before = """
    g (float[4] x) => (float[n] y)
    <int64[1] axis = {0}>
    {
        i = NonZero (x)
        p = Squeeze (i, axis)
        y = Gather (x, p)
    }"""
    after = before.replace("p = Squ", "[refused] p = Squ").replace("y = Gat", "[refused] y = Gat")
    made = rewrites("lower", before, after)
    wanted = "the shape of '{}' depends on data; the Edge TPU needs static shapes"
    assert made.reasons(LOWERING_REASON) == {"p": wanted.format("i"), "y": wanted.format("p")}


def test_what_a_pass_keeps_on_the_host_is_not_lowered() -> None:
    graph = """
    g (float[1,2,5,6] x) => (float[1,2,2,2] y) {
        [host] y = MaxPool <kernel_shape = [2, 3], strides = [2, 3]> (x)
    }"""
    rewrites("lower", graph, graph)
