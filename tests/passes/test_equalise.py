"""The pass says what it rescaled; compiler/quantize/equalise.py has tests of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import activations_around
from compiler.quantize.calibrate import observe
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
