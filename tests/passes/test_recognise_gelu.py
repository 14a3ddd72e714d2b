"""Gelu gets its name back, however its exporter ordered the factors."""

from __future__ import annotations

import pytest

from tests.passes.golden import leaves_alone, rewrites

GELU = "g (float[2,8] x) => (float[2,8] y) { y = Gelu (x) }"
GELU_OF_TANH = 'g (float[2,8] x) => (float[2,8] y) { y = Gelu <approximate = "tanh"> (x) }'

ERF = "d = Div (x, root) e = Erf (d) f = Add (e, one)"
CONSTANTS = "float root = {1.4142135}, float one = {1}, float half = {0.5}"


@pytest.mark.parametrize(
    "product",
    [
        "h = Mul (x, half) y = Mul (h, f)",
        "h = Mul (x, f) y = Mul (h, half)",
        "h = Mul (half, f) y = Mul (x, h)",
    ],
)
def test_gelu(product: str) -> None:
    rewrites(
        "recognise_gelu",
        f"g (float[2,8] x) => (float[2,8] y) <{CONSTANTS}> {{ {ERF} {product} }}",
        GELU,
    )


@pytest.mark.parametrize("cube", ["p = Pow (x, three)", "q = Mul (x, x) p = Mul (x, q)"])
@pytest.mark.parametrize(
    "product",
    [
        "h = Mul (half, x) y = Mul (h, o)",
        "h = Mul (x, o) y = Mul (h, half)",
        "h = Mul (half, o) y = Mul (x, h)",
    ],
)
def test_gelu_of_tanh(cube: str, product: str) -> None:
    three = "float three = {3}," if "three" in cube else ""
    text = f"""
    g (float[2,8] x) => (float[2,8] y)
    <{three} float c = {{0.044715}}, float root = {{0.7978845}}, float one = {{1}},
         float half = {{0.5}}>
    {{
        {cube}
        s = Mul (c, p)
        a = Add (x, s)
        i = Mul (root, a)
        t = Tanh (i)
        o = Add (one, t)
        {product}
    }}"""
    rewrites("recognise_gelu", text, GELU_OF_TANH)


@pytest.mark.parametrize(
    ("constants", "body"),
    [
        # Not the root of two.
        (CONSTANTS.replace("1.4142135", "1.5"), f"{ERF} h = Mul (x, f) y = Mul (h, half)"),
        # Not one plus the error function.
        (CONSTANTS.replace("{1}", "{2}"), f"{ERF} h = Mul (x, f) y = Mul (h, half)"),
        # Not half of it.
        (CONSTANTS.replace("0.5", "0.25"), f"{ERF} h = Mul (x, f) y = Mul (h, half)"),
        # Times something else than x.
        (CONSTANTS, f"{ERF} h = Mul (d, f) y = Mul (h, half)"),
        # The sum is read by others too, so that it would have to be computed anyway.
        (CONSTANTS, f"{ERF} h = Mul (x, f) k = Mul (h, half) y = Add (k, f)"),
    ],
)
def test_what_is_no_gelu(constants: str, body: str) -> None:
    leaves_alone("recognise_gelu", f"g (float[2,8] x) => (float[2,8] y) <{constants}> {{ {body} }}")


def test_a_fourth_power_is_no_cube() -> None:
    body = """
        q = Mul (x, x)
        p = Mul (q, q)
        s = Mul (c, p)
        a = Add (x, s)
        i = Mul (root, a)
        t = Tanh (i)
        o = Add (one, t)
        h = Mul (half, x)
        y = Mul (h, o)"""
    constants = (
        "float c = {0.044715}, float root = {0.7978845}, float one = {1}, float half = {0.5}"
    )
    leaves_alone("recognise_gelu", f"g (float[2,8] x) => (float[2,8] y) <{constants}> {{ {body} }}")


@pytest.mark.parametrize(
    ("constant", "power"),
    [("0.05", "3"), ("0.044715", "2")],
    ids=["another factor", "another power"],
)
def test_what_is_no_gelu_of_tanh(constant: str, power: str) -> None:
    leaves_alone(
        "recognise_gelu",
        f"""
    g (float[2,8] x) => (float[2,8] y)
    <float power = {{{power}}}, float c = {{{constant}}}, float root = {{0.7978845}},
         float one = {{1}},
     float half = {{0.5}}>
    {{
        p = Pow (x, power)
        s = Mul (c, p)
        a = Add (x, s)
        i = Mul (root, a)
        t = Tanh (i)
        o = Add (one, t)
        h = Mul (half, x)
        y = Mul (h, o)
    }}""",
    )
