"""HardSigmoid and HardSwish get their names back."""

from __future__ import annotations

import re

import pytest

from tests.passes.golden import leaves_alone, rewrites

SIGMOID = "HardSigmoid <alpha = 0.166667> (x)"
SWISH = "HardSwish (x)"


def graph(body: str) -> str:
    """With those constants that the body reads."""
    numbers = {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6}
    used = [
        f"float {name} = {{{number}}}"
        for name, number in numbers.items()
        if re.search(rf"\b{name}\b", body)
    ]
    constants = f"<{', '.join(used)}>" if used else ""
    return f"g (float[1,4,2,2] x) => (float[1,4,2,2] y) {constants} {{ {body} }}"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("t = Add (x, three) c = Clip (t, zero, six) y = Div (c, six)", SIGMOID),
        ("t = Add (x, three) c = Clip (t, zero, six) y = Mul (c, sixth)", SIGMOID),
        ("t = Add (x, three) c = Clip (t, zero, six) m = Mul (x, c) y = Div (m, six)", SWISH),
        ("t = Add (three, x) c = Clip (t, zero, six) d = Div (c, six) y = Mul (d, x)", SWISH),
        ("g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, g)", SWISH),
    ],
)
def test_hard_swish_gets_its_name_back(body: str, wanted: str) -> None:
    rewrites("recognise_hard_swish", graph(body), graph(f"y = {wanted}"))


@pytest.mark.parametrize(
    "body",
    [
        "t = Add (x, three) c = Clip (t, zero, six) y = Div (c, three)",  # not a sixth
        "t = Add (x, six) c = Clip (t, zero, six) y = Div (c, six)",  # not shifted by three
        "t = Add (x, three) c = Clip (t, zero, three) y = Div (c, six)",  # not clipped at six
        # Read by another operator.
        "t = Add (x, three) c = Clip (t, zero, six) d = Add (c, c) y = Div (d, six)",
        "g = HardSigmoid <alpha = 0.2, beta = 0.5> (x) y = Mul (x, g)",
        "g = HardSigmoid <alpha = 0.16666667, beta = 0.4> (x) y = Mul (x, g)",
    ],
)
def test_what_is_neither(body: str) -> None:
    leaves_alone("recognise_hard_swish", graph(body))


@pytest.mark.parametrize(
    "product",
    ["y = Div (x, d)", "y = Mul (d, d)"],  # the gate divides, or is squared
)
def test_what_is_a_gate_but_no_swish(product: str) -> None:
    before = graph(f"t = Add (x, three) c = Clip (t, zero, six) d = Div (c, six) {product}")
    rewrites("recognise_hard_swish", before, graph(f"d = {SIGMOID} {product}"))
