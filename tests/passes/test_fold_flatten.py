"""A Transpose that is flattened into a dense layer becomes an order of the layer's weights."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, weight

SMALL = """
    g (float[1,2,2,2] x) => (float[1,1] y)
    <int64[2] flat = {1, 8}, float[1,8] w = {0, 1, 2, 3, 4, 5, 6, 7}, float[1] b = {9}>
    {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        f = Reshape (t, flat)
        y = edgetpu.FullyConnected (f, w, b)
    }"""


def test_weights_take_the_order_of_the_image() -> None:
    """Column c * 4 + p of a channel c and a position p is read at p * 2 + c."""
    after = """
    g (float[1,2,2,2] x) => (float[1,1] y)
    <int64[2] flat = {1, 8}, float[1,8] nhwc = {0, 4, 1, 5, 2, 6, 3, 7}, float[1] b = {9}>
    {
        rows = Reshape (x, flat)
        y = edgetpu.FullyConnected (rows, nhwc, b)
    }"""
    rewrites("fold_flatten", SMALL, after)


@pytest.mark.parametrize("perm", [(0, 3, 1, 2), (0, 2, 1, 3), (0, 3, 2, 1)])
def test_any_permutation(perm: tuple[int, ...]) -> None:
    image = (1, 3, 2, 4)
    before = f"""
    g (float[1,3,2,4] x) => (float[1,5] y, float[1,2] z)
    <int64[2] flat = {{1, 24}}>
    {{
        t = Transpose <perm = {list(perm)}> (x)
        f = Reshape (t, flat)
        y = edgetpu.FullyConnected (f, w, b)
        z = edgetpu.FullyConnected (f, v, c)
    }}"""
    after = """
    g (float[1,3,2,4] x) => (float[1,5] y, float[1,2] z)
    <int64[2] flat = {1, 24}>
    {
        rows = Reshape (x, flat)
        y = edgetpu.FullyConnected (rows, w, b)
        z = edgetpu.FullyConnected (rows, v, c)
    }"""
    w, v, rest = weight(5, 24), weight(2, 24), {"b": weight(5), "c": weight(2)}
    # Where the Transpose puts each element of the image, by moving their numbers.
    places = np.arange(24).reshape(image).transpose(perm).reshape(-1)
    moved = {"w": w[:, np.argsort(places)], "v": v[:, np.argsort(places)]}
    rewrites(
        "fold_flatten", before, after, weights={"w": w, "v": v, **rest}, constants={**moved, **rest}
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Something else than a layer reads the flat values in their order.
        ("y = edgetpu", "z = Relu (f) y = edgetpu"),
        # They leave the graph in their order.
        ("=> (float[1,1] y)", "=> (float[1,1] y, float[1,8] f)"),
        # What is between looks at the order.
        ("y = edgetpu.FullyConnected (f,", "s = Softmax (f) y = edgetpu.FullyConnected (s,"),
        # Nothing was transposed.
        ("Transpose <perm = [0, 3, 1, 2]>", "Relu"),
    ],
)
def test_the_order_stays_where_it_is_seen(old: str, new: str) -> None:
    graph = SMALL.replace(old, new)
    if "z =" in new:
        graph = graph.replace("=> (float[1,1] y)", "=> (float[1,1] y, float[1,8] z)")
    leaves_alone("fold_flatten", graph)


def test_rows_of_several_images_are_not_one_flat_image() -> None:
    """Two positions become two rows: the layer's inputs are a part of what was transposed."""
    leaves_alone(
        "fold_flatten",
        """
    g (float[1,2,2,2] x) => (float[2,1] y)
    <int64[2] flat = {2, 4}, float[1,4] w = {0, 1, 2, 3}, float[1] b = {9}>
    {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        f = Reshape (t, flat)
        y = edgetpu.FullyConnected (f, w, b)
    }""",
    )


def test_flatten_of_a_convolution() -> None:
    """From ONNX through the passes in front: one Transpose is left, of the input."""
    before = """
    g (float[1,3,4,4] x) => (float[1,5] y) {
        c = Conv (x, w)
        f = Flatten (c)
        y = Gemm <transB = 1> (f, v, b)
    }"""
    after = """
    g (float[1,3,4,4] x) => (float[1,5] y)
    <float[2] zeros = {0, 0}, int64[2] flat = {1, 8}, float[5] b>
    {
        nhwc = Transpose <perm = [0, 2, 3, 1]> (x)
        conv = edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]> (nhwc, w,
             zeros)
        rows = Reshape (conv, flat)
        y = edgetpu.FullyConnected (rows, v, b)
    }"""
    names = (
        "fold_affine",
        "shuffle_channels",
        "lower",
        "cancel_transposes",
        "fold_flatten",
        "cancel_reshapes",
    )
    weights = {"w": weight(2, 3, 3, 3), "v": weight(5, 8), "b": weight(5)}
    moved = weights["v"].reshape(5, 2, 2, 2).transpose(0, 2, 3, 1).reshape(5, 8)
    rewrites(names, before, after, weights=weights, constants={**weights, "v": moved})
