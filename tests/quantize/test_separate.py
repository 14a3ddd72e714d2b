"""Requantize stands where operators that share a scale would tie fixed scales that differ."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.quantize.scales import separate
from tests.passes.golden import leaves_alone, rewrites


def run(model: ir.Model) -> None:
    separate(model, list(model.graph))


def graph(body: str) -> str:
    return f"g (float[1,4] x, float[1,4] z) => (float[1,8] y) {{ {body} }}"


def test_a_join_of_two_fixed_scales() -> None:
    """Sigmoid has [0, 1), Tanh [-1, 1)."""
    rewrites(
        run,
        graph("s = Sigmoid (x) t = Tanh (z) y = Concat <axis = 1> (s, t)"),
        graph(
            "s = Sigmoid (x) t = Tanh (z) a = edgetpu.Requantize (s) b = edgetpu.Requantize (t) "
            "y = Concat <axis = 1> (a, b)"
        ),
    )


def test_a_join_of_a_fixed_scale_and_a_free_one() -> None:
    rewrites(
        run,
        graph("s = Sigmoid (x) y = Concat <axis = 1> (s, z)"),
        graph(
            "s = Sigmoid (x) a = edgetpu.Requantize (s) b = edgetpu.Requantize (z) "
            "y = Concat <axis = 1> (a, b)"
        ),
    )


@pytest.mark.parametrize(
    "body",
    [
        # Free scales become one.
        "a = Relu (x) b = Add (z, x) y = Concat <axis = 1> (a, b)",
        # Operators without a common scale take any.
        "s = Sigmoid (x) t = Tanh (z) m = Mul (s, t) y = Concat <axis = 1> (m, m)",
        # The one input brings the scale along.
        "c = Concat <axis = 1> (x, z) s = Sigmoid (c) y = Transpose <perm = [0, 1]> (s)",
    ],
)
def test_what_has_one_scale(body: str) -> None:
    leaves_alone(run, graph(body))
