"""The pass says what it rescaled; compiler/quantize/equalise.py has tests of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.graph import activations_around
from compiler.quantize.calibrate import ChannelStats, observe
from passes import SampleContext, equalise
from tests.passes.golden import TARGET, run_passes

CONV = "edgetpu.Conv2D <dilations = [1, 1], pads = [0, 0, 0, 0], strides = [1, 1]>"
# The second channel is a hundred times smaller than the first.
WEIGHTS = {
    "a": np.array([[3, 1], [0.01, 0.02]], np.float32).reshape(2, 2, 1, 1),
    "b": np.array([0, 0], np.float32),
    "w": np.array([[1, 100], [-1, 200]], np.float32).reshape(2, 2, 1, 1),
}


def equalised(between: str) -> SampleContext:
    text = f"""
    g (float[1,2,2,2] x) => (float[1,2,2,2] y) {{
        c = {CONV} (x, a, b)
        r = {between} (c)
        y = {CONV} (r, w, b)
    }}"""
    _, made = run_passes((), text, WEIGHTS)
    nodes: list[ir.Node] = list(made.model.graph)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 2, 2, 2)).astype(np.float32)} for _ in range(8)]
    stats = observe(made.model, activations_around(nodes), samples)
    context = SampleContext(TARGET, nodes=nodes, stats=stats)
    equalise.run(made.model, context)
    return context


def test_what_was_multiplied_is_named() -> None:
    context = equalised("Relu")
    assert context.rescaled == {"c", "r"}
    assert len(context.trace.matches) == 2


def test_where_no_factor_passes_nothing_was() -> None:
    context = equalised("Sigmoid")
    assert context.rescaled == set() and not context.trace.matches


@pytest.mark.parametrize(("weights", "is_worth"), [((1.0, 0.45), False), ((0.45, 1.0), True)])
def test_a_wider_range_must_save_more_than_it_costs(
    weights: tuple[float, float], is_worth: bool
) -> None:
    """The first channel spans -6 to 20, the second -6 to 12, which may grow to -10 to 20: all steps
    get 15% wider and those of the second channel 31% finer, which pays where it weighs more."""
    text = f"""
    g (float[1,2,2,2] x) => (float[1,2,2,1] y) {{
        c = {CONV} (x, a, b)
        y = {CONV} (c, w, z)
    }}"""
    constants = {
        "a": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
        "b": np.zeros(2, np.float32),
        "w": np.array(weights, np.float32).reshape(1, 2, 1, 1),
        "z": np.zeros(1, np.float32),
    }
    _, made = run_passes((), text, constants)
    low = np.full((2, 2), -6, np.float32)
    high = np.tile(np.float32([20, 12]), (2, 1))
    ones = np.ones(2, np.float32)
    one = np.ones((2, 1), np.float32)
    stats = {
        "x": ChannelStats(low, high, ones, ones),
        "c": ChannelStats(low, high, ones, ones),
        "y": ChannelStats(-one, one, one[0], one[0]),
    }
    context = SampleContext(TARGET, nodes=list(made.model.graph), stats=stats)
    equalise.run(made.model, context)
    assert ("c" in context.rescaled) == is_worth
