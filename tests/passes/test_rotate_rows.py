"""Rows of products between host operators are rotated, and weights turned to undo it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, run_passes, weight
from tests.passes.hadamard import blocks, check_rotation

# [rows, 1, 1, channels] would be dense; an image one pixel high is how several rows are multiplied.
CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"


def dense(inputs: int) -> str:
    """A dense layer between a Softmax and an Erf, which the host has."""
    return f"""
    g (float[2,{inputs}] x) => (float[2,4] y) {{
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = Erf (d)
    }}"""


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        (8, 8),
        (16, 16),
        # Three blocks of eight: no larger power of two divides 24.
        (24, 8),
        # Two blocks of the largest size.
        (128, 64),
    ],
)
def test_rows_are_rotated_and_weights_undo_it(inputs: int, size: int) -> None:
    weights = {"w": weight(4, inputs), "b": weight(4)}
    made = run_passes("rotate_rows", dense(inputs), weights)[1]
    rotation = next(array for array in made.constants.values() if array.shape == (size, size))
    check_rotation(rotation, size)
    # x h (w h)^T = x w^T for any h with h h^T = 1; `h` multiplies all blocks of a row.
    rotate_blocks = weights["w"].astype(np.float64) @ blocks(rotation, inputs)
    constants = {
        "rotation": rotation,
        "turned": rotate_blocks.astype(np.float32),
        "b": weights["b"],
    }
    count = 2 * inputs // size
    product = "[host] p = MatMul (rows, rotation) r = Reshape (p, back)"
    whole = f"rows = Reshape (s, blocks) {product}"
    reshapes = f"<int64[2] blocks = {{{count}, {size}}}, int64[2] back = {{2, {inputs}}}>"
    if size == inputs:
        whole, reshapes = "[host] r = MatMul (s, rotation)", ""
    after = f"""
    g (float[2,{inputs}] x) => (float[2,4] y) {reshapes} {{
        s = Erf (x)
        {whole}
        d = edgetpu.FullyConnected (r, turned, b)
        y = Erf (d)
    }}"""
    rewrites("rotate_rows", dense(inputs), after, weights=weights, constants=constants)


def test_products_of_the_same_rows_share_the_rotation() -> None:
    before = f"""
    g (float[1,3,8] x) => (float[1,1,3,2] y, float[1,1,3,3] z)
    <int64[4] image = {{1, 1, 3, 8}}>
    {{
        s = Erf (x)
        i = Reshape (s, image)
        c = {CONV} (i, w, b)
        y = Erf (c)
        d = {CONV} (i, v, a)
        z = Erf (d)
    }}"""
    after = f"""
    g (float[1,3,8] x) => (float[1,1,3,2] y, float[1,1,3,3] z)
    <int64[2] rows = {{3, 8}}, int64[4] image = {{1, 1, 3, 8}}>
    {{
        s = Erf (x)
        matrix = Reshape (s, rows)
        [host] product = MatMul (matrix, rotation)
        turned = Reshape (product, image)
        c = {CONV} (turned, w, b)
        y = Erf (c)
        d = {CONV} (turned, v, a)
        z = Erf (d)
    }}"""
    weights = {"w": weight(2, 8, 1, 1), "b": weight(2), "v": weight(3, 8, 1, 1), "a": weight(3)}
    made = run_passes("rotate_rows", before, weights)[1]
    (rotation,) = [array for array in made.constants.values() if array.shape == (8, 8)]
    check_rotation(rotation, 8)
    rotate_blocks = {
        name: np.einsum("nkij,kl->nlij", weights[name], rotation) for name in ("w", "v")
    }
    constants = {**weights, **rotate_blocks, "rotation": rotation}
    rewrites("rotate_rows", before, after, weights=weights, constants=constants)


BETWEEN = dense(8)


@pytest.mark.parametrize(
    ("inputs", "old", "new"),
    [
        # The largest power of two that divides 12 is 4: too small a block to spread anything.
        (12, "", ""),
        # The Edge TPU makes the rows, so the host would have to fetch them.
        (8, "s = Erf (x)", "s = Tanh (x)"),
        # The Edge TPU reads the result: the product is one of many, in a segment.
        (8, "y = Erf (d)", "y = Relu (d)"),
        # One of several readers is on the Edge TPU.
        (8, "y = Erf (d)", "e = Erf (d) r = Relu (d) y = Add (e, r)"),
    ],
)
def test_what_is_not_rotated(inputs: int, old: str, new: str) -> None:
    graph = dense(inputs).replace(old, new) if old else dense(inputs)
    leaves_alone("rotate_rows", graph, weights={"w": weight(4, inputs), "b": weight(4)})


@pytest.mark.parametrize("attributes", ["strides = [1, 2]", "strides = [1, 1]"])
def test_convolutions_of_images_are_no_products_of_rows(attributes: str) -> None:
    """One skips rows, the other's image is higher than a pixel."""
    height, width = (1, 2) if "2" in attributes else (2, 3)
    columns = 4 if "2" in attributes else 3
    leaves_alone(
        "rotate_rows",
        f"""
    g (float[1,{height},{columns},8] x) => (float[1,{height},{width},2] y) {{
        s = Erf (x)
        c = edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], {attributes}> (s, w, b)
        y = Erf (c)
    }}""",
        weights={"w": weight(2, 8, 1, 1), "b": weight(2)},
    )
