"""Ranges end where readers no longer tell values apart, and only there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.graph import activations_around
from compiler.quantize.calibrate import ChannelStats, observe
from compiler.quantize.saturate import saturated

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
SAMPLE = {"x": np.linspace(-200, 100, 64, dtype=np.float32).reshape(1, 64)}


def shown(body: str, *samples: dict[str, np.ndarray], on_host: str = "") -> dict[str, ChannelStats]:
    """What the readers of activations leave of samples; nodes of the kind `on_host` are on the
    host."""
    text = (
        f"{HEAD}\ng (float[1,64] x) => (float[1,64] y)"
        f" <float three = {{3}}, float one = {{1}}, float zero = {{0}}, float six = {{6}},"
        f" float sixth = {{0.16666667}}> {{ {body} }}"
    )
    model = ir.from_onnx_text(text)
    for node in model.graph:
        node.outputs[0].shape = ir.Shape((1, 64))
        node.outputs[0].dtype = ir.DataType.FLOAT
    nodes = [node for node in model.graph if node.op_type != on_host]
    stats = observe(model, activations_around(nodes), samples or [SAMPLE])
    return saturated(nodes, stats)


def lowest_of_x(body: str) -> float:
    """Where the range of x begins that its readers leave."""
    return shown(body)["x"].range[0]


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        # Hard swish is closed below -3, within a quarter of a step of a result up to 100.
        (
            "a = Add (x, three) b = Clip (a, zero, six) c = Mul (b, sixth) y = Mul (x, c)",
            -3.2,
            -2.7,
        ),
        # x (x + 3) goes on growing, far below what closed gates are looked for.
        ("a = Add (x, three) y = Mul (x, a)", -200.1, -199.9),
        # SiLU is closed where the sigmoid is.
        ("s = Sigmoid (x) y = Mul (x, s)", -8, -3),
    ],
)
def test_gates_that_close_and_one_that_does_not(body: str, low: float, high: float) -> None:
    assert low <= lowest_of_x(body) <= high


def test_a_range_ends_where_results_below_zero_are_one_step() -> None:
    """SiLU gives -0.278 at the least: 255 such steps from there end at 70.7."""
    usual = np.linspace(-3, 3, 64, dtype=np.float32).reshape(1, 64)
    samples = [{"x": usual}] * 15 + [{"x": usual.copy()}]
    samples[-1]["x"][0, 0] = 160
    found = shown("s = Sigmoid (x) m = Mul (x, s) y = Add (m, one)", *samples)
    assert found["x"].range[1] == pytest.approx(70.7, abs=0.1)
    assert found["m"].range[1] == pytest.approx(70.7, abs=0.1)


@pytest.mark.parametrize("most", [60, 160])
def test_a_range_that_is_needed_or_fine_does_not_end_there(most: float) -> None:
    """Up to 60 the steps are fine; of values that all are large, none is far out."""
    array = np.full((1, 64), most, np.float32)
    array[0, 0] = -3
    found = shown("s = Sigmoid (x) y = Mul (x, s)", {"x": array})
    assert found["x"].range[1] == most


LOGITS = "a = Add (x, one) b = Identity (a) p = Sigmoid (b) y = Relu (p)"


@pytest.mark.parametrize(
    ("low", "high", "end"),
    [(-10, 1, 5), (-10, 7, 7), (-10, -3, -3), (-1, 1, 1)],
)
def test_logits_have_room_for_what_is_surer(low: float, high: float, end: float) -> None:
    """Where most are far below and some are not; else they are no logits of objects."""
    sample = {"x": np.linspace(low - 1, high - 1, 64, dtype=np.float32).reshape(1, 64)}
    assert shown(LOGITS, sample, on_host="Sigmoid")["b"].range[1] == pytest.approx(end, abs=1e-5)
    # What the Edge TPU makes probabilities of ends where these are.
    assert shown(LOGITS, sample)["b"].range[1] <= max(high, 0) + 1e-5
