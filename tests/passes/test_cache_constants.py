"""A factor and an offset per channel become a depthwise convolution."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites

TWO = "<float[2,1,1] a = {2, -3}, float[1,2,1,1] b = {0.5, 4}, float h = {0.5}>"


def graph(body: str, constants: str = TWO) -> str:
    return f"g (float[1,2,4,4] x) => (float[1,2,4,4] y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "weights", "offsets"),
    [
        ("m = Mul (r, a) z = Add (m, b)", "2, -3", "0.5, 4"),
        ("m = Add (r, b) z = Mul (a, m)", "2, -3", "1, -12"),
        ("m = Mul (r, a) z = Add (m, h)", "2, -3", "0.5, 0.5"),
        ("m = Mul (r, h) z = Sub (m, b)", "0.5, 0.5", "-0.5, -4"),
        ("z = Mul (r, a)", "2, -3", "0, 0"),
        ("z = Add (b, r)", "1, 1", "0.5, 4"),
    ],
)
def test_constants_per_channel_become_a_layer(body: str, weights: str, offsets: str) -> None:
    after = graph(
        "r = Relu (x) z = Conv <group = 2> (r, w, c) y = Sigmoid (z)",
        f"<float[2,1,1,1] w = {{{weights}}}, float[2] c = {{{offsets}}}>",
    )
    rewrites("cache_constants", graph(f"r = Relu (x) {body} y = Sigmoid (z)"), after)


A, B = "float[2,1,1] a = {2, -3}", "float[1,2,1,1] b = {0.5, 4}"


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        # One number is not sent.
        ("r = Relu (x) m = Mul (r, h) z = Add (m, h) y = Sigmoid (z)", "<float h = {0.5}>"),
        # At the border it may run on the host.
        ("m = Mul (x, a) y = Sigmoid (m)", f"<{A}>"),
        ("r = Relu (x) y = Mul (r, a)", f"<{A}>"),
        ("r = Relu (x) m = Mul (r, a) y = Add (m, b)", f"<{A}, {B}>"),
        # It varies along the width.
        ("r = Relu (x) m = Mul (r, v) y = Sigmoid (m)", "<float[4] v = {1, 2, 3, 4}>"),
        # It stays on the host.
        ("r = Relu (x) [host] m = Mul (r, a) y = Sigmoid (m)", f"<{A}>"),
    ],
)
def test_what_stays(body: str, constants: str) -> None:
    leaves_alone("cache_constants", graph(body, constants))
