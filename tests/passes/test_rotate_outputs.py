"""Outputs of products between host operators are rotated by weights; the host turns them back."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.golden import leaves_alone, rewrites, run_passes, weight
from tests.passes.hadamard import blocks, check_rotation


def dense(outputs: int, last: str = "Erf") -> str:
    return f"""
    g (float[2,4] x) => (float[2,{outputs}] y) {{
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = {last} (d)
    }}"""


@pytest.mark.parametrize(("outputs", "size"), [(8, 8), (24, 8), (128, 64)])
def test_weights_and_bias_are_rotated_and_the_host_turns_back(outputs: int, size: int) -> None:
    weights = {"w": weight(outputs, 4), "b": weight(outputs)}
    made = run_passes("rotate_outputs", dense(outputs), weights)[1]
    rotation = next(array for array in made.constants.values() if array.shape == (size, size))
    check_rotation(rotation, size)
    whole = blocks(rotation, outputs)
    mixed = {"mixed": whole @ weights["w"], "shift": whole @ weights["b"]}
    constants = {name: array.astype(np.float32) for name, array in mixed.items()} | {
        "rotation": rotation
    }
    count = 2 * outputs // size
    reshapes = f"<int64[2] blocks = {{{count}, {size}}}, int64[2] back = {{2, {outputs}}}>"
    turn = "rows = Reshape (m, blocks) [host] p = MatMul (rows, rotation) d = Reshape (p, back)"
    if size == outputs:
        turn, reshapes = "[host] d = MatMul (m, rotation)", ""
    after = f"""
    g (float[2,4] x) => (float[2,{outputs}] y) {reshapes} {{
        s = Erf (x)
        m = edgetpu.FullyConnected (s, mixed, shift)
        {turn}
        y = Erf (d)
    }}"""
    rewrites("rotate_outputs", dense(outputs), after, weights=weights, constants=constants)


@pytest.mark.parametrize(
    ("outputs", "last"),
    [
        # The largest power of two that divides 12 is 4.
        (12, "Erf"),
        # The Edge TPU reads them.
        (8, "Relu"),
    ],
)
def test_what_is_not_rotated(outputs: int, last: str) -> None:
    leaves_alone(
        "rotate_outputs",
        dense(outputs, last),
        weights={"w": weight(outputs, 4), "b": weight(outputs)},
    )


def test_between_host_operators_of_a_transformer() -> None:
    """From ONNX through the passes in front."""
    before = """
    g (float[1,6,8] x) => (float[1,6,16] y) {
        n = Softmax <axis = 1> (x)
        m = MatMul (n, w)
        y = Gelu (m)
    }"""
    after = """
    g (float[1,6,8] x) => (float[1,6,16] y)
    <int64[4] image = {1, 1, 6, 8}, int64[2] rows = {6, 16}, int64[4] outputs = {1, 1, 6, 16},
     int64[3] tokens = {1, 6, 16}>
    {
        n = Softmax <axis = 1> (x)
        pixels = Reshape (n, image)
        mixed = edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]> (pixels,
             turned, zeros)
        blocks = Reshape (mixed, rows)
        [host] back = MatMul (blocks, rotation)
        product = Reshape (back, outputs)
        m = Reshape (product, tokens)
        [host] y = Gelu (m)
    }"""
    names = (
        "keep_gates",
        "fold_affine",
        "shuffle_channels",
        "lower",
        "cancel_transposes",
        "fold_flatten",
    )
    steps, weights = (*names, "cancel_reshapes", "rotate_outputs"), {"w": weight(8, 16)}
    made = run_passes(steps, before, weights)[1]
    rotation = next(array for array in made.constants.values() if array.shape == (16, 16))
    check_rotation(rotation, 16)
    rotate_blocks = (
        (rotation.astype(np.float64) @ weights["w"].T).astype(np.float32).reshape(16, 8, 1, 1)
    )
    constants = {"rotation": rotation, "turned": rotate_blocks, "zeros": np.zeros(16, np.float32)}
    rewrites(steps, before, after, weights=weights, constants=constants)
