"""Products with numbers are read in whatever order an exporter wrote them."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.graph import product_of, shapes, unscaled
from tests.passes.golden import parsed


def values_of(body: str, constants: str = "") -> dict[str, ir.Value]:
    declared = f"<{constants}>" if constants else ""
    text = f"g (float[1,4] x) => (float[1,4] y) {declared} {{ {body} }}"
    model = ir.serde.deserialize_model(parsed(text))
    shapes.infer(model)
    return ir.convenience.create_value_mapping(model.graph)


@pytest.mark.parametrize(
    ("body", "factor"),
    [
        ("y = Mul (x, two)", 2),
        ("y = Mul (two, x)", 2),
        ("y = Div (x, two)", 0.5),
        ("a = Mul (x, two) b = Mul (four, a) y = Div (b, two)", 4),
    ],
)
def test_numbers_that_x_is_multiplied_by(body: str, factor: float) -> None:
    values = values_of(body, "float two = {2}, float four = {4}")
    assert unscaled(values["y"]) == (values["x"], factor)


@pytest.mark.parametrize("body", ["y = Mul (x, x)", "y = Div (two, x)", "y = Mul (x, table)"])
def test_what_is_no_number(body: str) -> None:
    values = values_of(body, "float two = {2}, float[4] table = {1, 2, 3, 4}")
    assert unscaled(values["y"]) == (values["y"], 1.0)


@pytest.mark.parametrize(
    "body",
    [
        "a = Mul (made, x) y = Mul (a, half)",
        "a = Mul (half, made) y = Mul (x, a)",
        "h = Mul (x, half) y = Mul (made, h)",
        "a = Mul (made, x) y = Div (a, two)",
    ],
)
def test_a_product_of_three(body: str) -> None:
    values = values_of(f"made = Sigmoid (x) {body}", "float half = {0.5}, float two = {2}")
    assert product_of(values["made"], values["x"], 0.5) is values["y"].producer()


@pytest.mark.parametrize(
    "body",
    [
        # Another number, x twice, divided by it, read by others too.
        "a = Mul (made, x) y = Mul (a, two)",
        "a = Mul (made, x) b = Mul (a, x) y = Mul (b, half)",
        "a = Mul (made, x) y = Div (half, a)",
        "a = Mul (made, x) b = Mul (a, half) y = Add (b, made)",
    ],
)
def test_what_is_no_such_product(body: str) -> None:
    values = values_of(f"made = Sigmoid (x) {body}", "float half = {0.5}, float two = {2}")
    assert product_of(values["made"], values["x"], 0.5) is None
