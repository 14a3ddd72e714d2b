"""Who makes and who reads a value, subgraphs included."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from compiler.graph import (
    consumers_of,
    float32_nodes,
    only_consumer,
    produced_by,
    producer_of,
    values_read,
)
from tests.passes.golden import parsed


def model_of(text: str) -> ir.Model:
    return ir.serde.deserialize_model(parsed(text))


def test_readers_and_makers() -> None:
    model = model_of("g (float[4] x) => (float[4] y) { a = Neg (x) b = Mul (a, a) y = Abs (b) }")
    neg, mul, absolute = model.graph
    (x,) = model.graph.inputs
    assert consumers_of(neg.outputs[0]) == [mul]
    assert only_consumer(neg.outputs[0]) is mul
    assert only_consumer(absolute.outputs[0]) is None
    assert producer_of(mul.outputs[0]) is mul
    assert producer_of(x) is None and producer_of(None) is None
    assert produced_by(mul.outputs[0], "Mul") is mul
    assert produced_by(mul.outputs[0], "Add") is None


def test_an_output_of_the_model_has_another_reader() -> None:
    model = model_of("g (float[4] x) => (float[4] y, float[4] z) { y = Neg (x) z = Abs (y) }")
    assert only_consumer(next(iter(model.graph)).outputs[0]) is None


def test_nodes_of_other_floats_are_left_out() -> None:
    model = model_of(
        "g (float[4] x) => (float[4] y)"
        " { h = Cast <to = 10> (x) r = Relu (h) f = Cast <to = 1> (r) y = Neg (f) }"
    )
    onnx.checker.check_model(ir.serde.serialize_model(model))
    for value in (node.outputs[0] for node in list(model.graph)[:2]):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    assert [node.op_type for node in float32_nodes(model.graph)] == ["Neg"]


def test_what_branches_capture_is_read() -> None:
    text = """
    g (bool c, float[4] x, float[4] z) => (float[4] y) {
        y = If (c) <
            then_branch = t () => (float[4] a) { b = Neg (x) a = Abs (b) },
            else_branch = e () => (float[4] d) { d = Add (x, z) }
        >
    }"""
    model = model_of(text)
    (branch,) = model.graph
    assert [value.name for value in values_read(branch)] == ["c", "x", "z"]
