"""Each channel's range over the samples, for activations around nodes on the Edge TPU."""

from __future__ import annotations

import numpy as np

from compiler.quantize.samples import Samples
from passes import SampleContext, observe
from tests.passes.golden import TARGET, run_passes

GRAPH = "g (float[1,2] x) => (float[1,2] y) { n = Neg (x) y = Relu (n) }"
SAMPLES = Samples(
    [
        lambda: {"x": np.array([[1, -2]], np.float32)},
        lambda: {"x": np.array([[3, 4]], np.float32)},
    ]
)


def test_channels_of_what_is_not_known() -> None:
    _, made = run_passes((), GRAPH)
    context = SampleContext(
        TARGET, samples=SAMPLES, nodes=list(made.model.graph), ranges={"x": (0, 1)}
    )
    observe.run(made.model, context)
    assert set(context.stats) == {"n", "y"}
    assert context.stats["y"].range == (0, 2)
    np.testing.assert_allclose(context.stats["n"].mean, [-2, -1])


def test_where_all_is_known_no_sample_is_read() -> None:
    _, made = run_passes((), GRAPH)
    known = dict.fromkeys(("x", "n", "y"), (-1.0, 1.0))
    context = SampleContext(TARGET, nodes=list(made.model.graph), ranges=known)
    observe.run(made.model, context)
    assert context.stats == {}
