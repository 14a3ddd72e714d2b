"""Who makes and who reads a value."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.graph import consumers_of, only_consumer, produced_by

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[2] x) => (float[2] y, float[2] z) {
    a = Relu (x)
    b = Mul (a, a)
    y = Add (b, x)
    z = Neg (y)
}"""


@pytest.fixture
def values() -> dict[str, ir.Value]:
    """The values of TEXT by name."""
    graph = ir.from_onnx_text(TEXT).graph
    made = [value for node in graph for value in node.outputs]
    return {str(value.name): value for value in [*graph.inputs, *made]}


def test_a_reader_counts_once(values: dict[str, ir.Value]) -> None:
    assert [node.op_type for node in consumers_of(values["a"])] == ["Mul"]
    assert [node.op_type for node in consumers_of(values["x"])] == ["Relu", "Add"]


def test_an_output_of_the_graph_has_another_reader(values: dict[str, ir.Value]) -> None:
    only = only_consumer(values["b"])
    assert only is not None and only.op_type == "Add"
    assert only_consumer(values["x"]) is None  # read twice
    assert only_consumer(values["y"]) is None  # read by Neg and by the user


def test_who_made_a_value(values: dict[str, ir.Value]) -> None:
    made = produced_by(values["b"], "Mul")
    assert made is not None and made.outputs[0] is values["b"]
    assert produced_by(values["b"], "Add") is None
    assert produced_by(values["b"], "Mul", "com.microsoft") is None
    assert produced_by(values["x"], "Relu") is None
    assert produced_by(None, "Relu") is None
