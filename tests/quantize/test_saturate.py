"""Ranges end where readers no longer tell values apart, and only there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compiler.graph import activations_around
from compiler.quantize.calibrate import observe
from compiler.quantize.saturate import saturated

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
SAMPLE = {"x": np.linspace(-200, 100, 64, dtype=np.float32).reshape(1, 64)}


def lowest_of_x(body: str) -> float:
    """Where the range of x begins that its readers leave."""
    text = (
        f"{HEAD}\ng (float[1,64] x) => (float[1,64] y)"
        f" <float three = {{3}}, float one = {{1}}, float zero = {{0}}, float six = {{6}},"
        f" float sixth = {{0.16666667}}> {{ {body} }}"
    )
    model = ir.from_onnx_text(text)
    nodes = list(model.graph)
    for node in nodes:
        node.outputs[0].shape = ir.Shape((1, 64))
        node.outputs[0].dtype = ir.DataType.FLOAT
    stats = observe(model, activations_around(nodes), [SAMPLE])
    return saturated(nodes, stats)["x"].range[0]


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
