"""The gate of a convolution's result gets a layer of ones, for equalising channels later."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites, weight


def graph(body: str, constants: str = "") -> str:
    return f"g (float[1,3,4,4] x) => (float[1,3,4,4] y) {constants} {{ {body} }}"


@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("product", ["c, s", "s, c"])
def test_a_gate_gets_a_layer_in_front(layer: str, product: str) -> None:
    before = graph(f"c = {layer} (x, w) s = Sigmoid (c) y = Mul ({product})")
    after = graph(
        f"c = {layer} (x, w) g = Conv <group = 3> (c, ones) s = Sigmoid (g) y = Mul ({product})",
        "<float[3,1,1,1] ones = {1, 1, 1}>",
    )
    weights = {"w": weight(3, 3, 1, 1)}
    rewrites("split_gates", before, after, weights=weights, constants=weights)


def test_rows_of_sound_have_gates_too() -> None:
    signature = "g (float[1,2,6] x) => (float[1,2,4] y)"
    before = f"{signature} {{ c = Conv (x, w) s = Sigmoid (c) y = Mul (c, s) }}"
    after = f"""{signature} <float[2,1,1] ones = {{1, 1}}> {{
        c = Conv (x, w) g = Conv <group = 2> (c, ones) s = Sigmoid (g) y = Mul (c, s)
    }}"""
    weights = {"w": weight(2, 2, 3)}
    rewrites("split_gates", before, after, weights=weights, constants=weights)


@pytest.mark.parametrize(
    "body",
    [
        # Nothing is gated.
        "c = Conv (x, w) y = Sigmoid (c)",
        # It is gated by itself.
        "c = Conv (x, w) s = Sigmoid (c) y = Mul (s, s)",
        # No layer takes the factors.
        "c = Relu (x) s = Sigmoid (c) y = Mul (c, s)",
        # Added, not multiplied.
        "c = Conv (x, w) s = Sigmoid (c) y = Add (c, s)",
        # Another operator reads the gate.
        "c = Conv (x, w) s = Sigmoid (c) m = Mul (c, s) y = Add (m, s)",
        # It stays on the host, where nothing is equalised.
        "c = Conv (x, w) [host] s = Sigmoid (c) y = Mul (c, s)",
    ],
)
def test_what_is_no_gate_of_a_layer(body: str) -> None:
    leaves_alone(
        "split_gates", graph(body), weights={"w": weight(3, 3, 1, 1)} if "w)" in body else {}
    )
