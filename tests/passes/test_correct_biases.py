"""The means that biases are corrected by are those that calibration shows."""

from __future__ import annotations

import numpy as np

from compiler.graph import activations_around
from compiler.quantize.calibrate import observe
from passes import SampleContext, correct_biases
from tests.passes.golden import TARGET, run_passes

GRAPH = "g (float[1,2] x) => (float[1,2] y) { y = Relu (x) }"


def test_means_of_channels() -> None:
    _, made = run_passes((), GRAPH)
    samples = [{"x": np.array([row], np.float32)} for row in ([1, -2], [3, 4])]
    values = activations_around(made.model.graph)
    context = SampleContext(TARGET, stats=observe(made.model, values, samples))
    correct_biases.run(made.model, context)
    assert {name: mean.tolist() for name, mean in context.means.items()} == {
        "x": [2, 1],
        "y": [2, 2],
    }
