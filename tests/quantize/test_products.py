"""A normalised product is found whole by the mark of the pass that wrote it."""

from __future__ import annotations

import onnx_ir as ir

from compiler.emit.qgemm import host_products
from compiler.quantize.products import Product, joined_from, products, row_scaling
from tests.passes.golden import run_passes

LAYER = """
    g (float[{rows},2] x) => (float[{rows},2] y)
    <float[2,2] w = {{3, 4, 5, -12}}, float[2] b = {{0, 0}}>
    {{
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = Erf (d)
    }}"""


def found(rows: int, *passes: str) -> tuple[ir.Model, Product]:
    """A layer after some passes, and its product."""
    _, made = run_passes(["normalise_linears", *passes], LAYER.format(rows=rows), None)
    (product,) = products(made.model.graph).values()
    return made.model, product


def test_a_product_and_what_scales_its_rows() -> None:
    model, product = found(2)
    assert (product.scale.op_type, product.shift.op_type) == ("Mul", "Add")
    assert product.made is product.z and not product.has_second_row
    layer = product.z.producer()
    assert layer is not None and layer.op_type == "FullyConnected" and layer.inputs[0] is not None
    scaling = row_scaling(product, layer.inputs[0])
    assert scaling is not None
    erf = model.graph[0]
    assert scaling.x is erf.outputs[0]
    assert [node.op_type for node in scaling.nodes[:2]] == ["Div", "Max"]
    assert sorted(node.op_type for node in scaling.nodes[2:]) == ["Neg", "ReduceMax", "ReduceMin"]
    assert scaling.undo.inputs[1] is scaling.peak


def test_two_rows_for_one_are_what_the_edge_tpu_makes() -> None:
    _, product = found(2, "second_row")
    assert product.has_second_row
    last = list(joined_from(product.made))[-1].producer()
    assert last is not None and last.op_type == "Conv2D" and last.inputs[0] is not None
    assert row_scaling(product, last.inputs[0]) is None


def test_the_host_takes_products_that_are_whole() -> None:
    """Of a single row, it scales the row too."""
    for rows, replaced in ((1, 9), (2, 4)):
        model, product = found(rows)
        nodes = list(model.graph)
        ((last, whole),) = host_products(nodes).items()
        assert last is whole.last and len(whole.replaced) == replaced
        # Without what shifts its result it is not whole.
        assert host_products([node for node in nodes if node is not product.shift]) == {}
