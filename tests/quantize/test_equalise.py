"""Equalising multiplies a channel where it is made and divides by the same where it is read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import activations_around, array_of
from compiler.quantize.calibrate import observe
from compiler.quantize.equalise import equalise
from tests.passes.golden import leaves_alone, rewrites, run_passes

CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"


def graph(first: str, bias: str, second: str, between: str = "r = Relu (c)") -> str:
    return f"""
    g (float[1,2,2,2] x) => (float[1,2,2,2] y) {{
        c = {CONV} (x, {first}, {bias})
        {between}
        y = {CONV} (r, {second}, v)
    }}"""


BEFORE = graph("a", "b", "w")
# The second channel is a hundred times smaller than the first, and read a hundred times as
# strongly.
WEIGHTS = {
    "a": np.array([[3, 1], [0.01, 0.02]], np.float32).reshape(2, 2, 1, 1),
    "b": np.array([1, 0.01], np.float32),
    "w": np.array([[1, 100], [-1, 200]], np.float32).reshape(2, 2, 1, 1),
    "v": np.array([1, 2], np.float32),
}


def run(model: ir.Model) -> None:
    rng = np.random.default_rng(0)
    nodes = list(model.graph)
    samples = [{"x": rng.standard_normal((1, 2, 2, 2)).astype(np.float32)} for _ in range(8)]
    equalise(model, nodes, observe(model, activations_around(nodes), samples))


def test_rows_of_the_layer_in_front_and_columns_of_the_one_behind() -> None:
    made = run_passes(run, BEFORE, WEIGHTS)[1]
    first = made.model.graph[0].inputs[1]
    assert first is not None
    factors = (array_of(first) / WEIGHTS["a"])[:, 0].reshape(2)
    # The small channel gets finer steps; the large one, which fills the range, keeps its own.
    assert factors[0] == 1 and factors[1] > 10
    scaled = {
        "a": WEIGHTS["a"] * factors.reshape(2, 1, 1, 1),
        "b": WEIGHTS["b"] * factors,
        "w": WEIGHTS["w"] / factors.reshape(1, 2, 1, 1),
        "v": WEIGHTS["v"],
    }
    rewrites(run, BEFORE, BEFORE, weights=WEIGHTS, constants=scaled, changed=("c", "r"))


def test_what_bends_keeps_its_channels() -> None:
    """A Tanh of a multiple is no multiple of the Tanh."""
    leaves_alone(run, graph("a", "b", "w", "r = Tanh (c)"), weights=WEIGHTS)
