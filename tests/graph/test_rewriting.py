"""A rewrite runs until it changes nothing, and an endless one is an error."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from compiler.graph import Builder, rewrite_until_stable, shapes
from tests.passes.golden import parsed


def model_of(body: str, shape: str = "1,4") -> ir.Model:
    text = f"g (float[{shape}] x) => (float[{shape}] y) {{ {body} }}"
    model = ir.serde.deserialize_model(parsed(text))
    shapes.infer(model)
    return model


def drop_relu(node: ir.Node, b: Builder) -> bool:
    if node.op_type != "Relu":
        return False
    assert node.inputs[0] is not None
    b.replace(node.inputs[0])
    return True


def test_it_returns_the_nodes_at_which_something_changed() -> None:
    model = model_of("a = Relu (x) b = Relu (a) y = Neg (b)")
    changed = rewrite_until_stable(model, drop_relu)
    assert [node.op_type for node in changed] == ["Relu", "Relu"]
    assert [node.op_type for node in model.graph] == ["Neg"]
    assert rewrite_until_stable(model, drop_relu) == []


def test_nodes_of_unknown_shape_are_not_offered() -> None:
    model = model_of("a = Relu (x) y = Neg (a)", shape="n,4")
    assert rewrite_until_stable(model, drop_relu) == []


def test_a_rewrite_without_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.graph.rewriting.MOST_ROUNDS", 5)
    with pytest.raises(RuntimeError, match="does not come to an end"):
        rewrite_until_stable(model_of("y = Relu (x)"), lambda node, b: True)
