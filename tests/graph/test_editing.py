"""What replaces a node takes its names, so that outputs keep those that users know."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.graph import Builder, Names, infer_node, replace_node, shape_of
from tests.passes.golden import parsed


def model_of(body: str) -> ir.Model:
    return ir.serde.deserialize_model(parsed(f"g (float[1,4] x) => (float[1,4] y) {{ {body} }}"))


def kinds_and_outputs(model: ir.Model) -> list[tuple[str, str | None]]:
    return [(node.op_type, node.outputs[0].name) for node in model.graph]


def test_a_new_value_takes_the_name() -> None:
    model = model_of("a = Neg (x) y = Relu (a)")
    first, _ = model.graph
    b = Builder(model, Names(model.graph), first)
    b.replace(b.op("Abs", [first.inputs[0]]))
    assert kinds_and_outputs(model) == [("Abs", "a"), ("Relu", "y")]


def test_an_output_that_is_an_inner_value_becomes_a_copy_of_it() -> None:
    """`a` keeps its own name, so that it cannot have that of the output."""
    model = model_of("a = Neg (x) b = Abs (a) y = Add (a, b)")
    *_, last = model.graph
    a = last.inputs[0]
    assert a is not None
    replace_node(last, [a])
    assert kinds_and_outputs(model)[-1] == ("Identity", "y")
    assert model.graph.outputs[0].name == "y"


def test_names_that_are_free() -> None:
    model = model_of("a = Neg (x) y = Relu (a)")
    names = Names(model.graph)
    assert [names.fresh("a"), names.fresh("a"), names.fresh("new")] == ["a_1", "a_2", "new"]


@pytest.mark.parametrize(
    ("node", "shape"),
    [("Transpose <perm = [1, 0]> (x)", (4, 1)), ("edgetpu.Requantize (x)", (1, 4))],
)
def test_shapes_are_inferred_in_the_dialect_too(node: str, shape: tuple[int, ...]) -> None:
    model = model_of(f"a = {node} y = Identity (x)")
    value = next(iter(model.graph)).outputs[0]
    value.shape = None
    infer_node(model, next(iter(model.graph)))
    assert shape_of(value) == shape
