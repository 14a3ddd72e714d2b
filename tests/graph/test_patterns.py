"""Products with constants are found in any order of their factors."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest

from compiler.graph.patterns import product_of, unscaled


def graph(body: str) -> ir.Graph:
    """A graph with inputs x and w, constants two and four, and the output y."""
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float[3] x, float[3] w) => (float[3] y) <float two = {{2.0}}, float four = {{4.0}}>
    {{ {body} }}"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    return ir.from_proto(proto).graph


@pytest.mark.parametrize(
    ("body", "factor"),
    [
        ("y = Mul (x, two)", 2.0),
        ("y = Mul (two, x)", 2.0),
        ("y = Div (x, four)", 0.25),
        ("a = Div (x, two) y = Mul (four, a)", 2.0),
        ("y = Identity (x)", 1.0),
    ],
)
def test_factors_are_taken_off(body: str, factor: float) -> None:
    model = graph(body)
    rest, found = unscaled(model.outputs[0])
    assert found == factor
    assert rest.name == ("y" if "Identity" in body else "x")


def test_a_number_that_is_divided_is_no_factor() -> None:
    model = graph("y = Div (two, x)")
    assert unscaled(model.outputs[0]) == (model.outputs[0], 1.0)


@pytest.mark.parametrize(
    "body",
    [
        "m = Relu (w) a = Mul (m, x) y = Div (a, two)",
        "m = Relu (w) a = Div (m, two) y = Mul (x, a)",
        "m = Relu (w) a = Div (x, two) y = Mul (m, a)",
        "m = Relu (w) b = Mul (m, two) a = Mul (b, x) y = Div (a, four)",
    ],
)
def test_a_product_in_any_order(body: str) -> None:
    model = graph(body)
    last = product_of(made(model), model.inputs[0], 0.5)
    assert last is model.outputs[0].producer()


@pytest.mark.parametrize(
    "body",
    [
        "m = Relu (w) y = Div (m, two)",  # without x
        "m = Relu (w) a = Mul (m, x) y = Mul (a, four)",  # another number
        "m = Relu (w) a = Mul (m, x) b = Mul (a, x) y = Div (b, two)",  # x twice
        "m = Relu (w) a = Mul (m, x) b = Div (a, two) y = Add (b, m)",  # another reader
        "m = Relu (w) a = Mul (m, x) y = Div (two, a)",  # the product divides
    ],
)
def test_other_products_are_left(body: str) -> None:
    model = graph(body)
    assert product_of(made(model), model.inputs[0], 0.5) is None


def made(model: ir.Graph) -> ir.Value:
    """The value `m`."""
    return next(value for node in model for value in node.outputs if value.name == "m")
