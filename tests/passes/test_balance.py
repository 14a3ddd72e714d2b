"""The pass balances the products it is given; compiler/quantize/balance.py has tests of its own."""

from __future__ import annotations

import numpy as np

from compiler.graph import array_of
from compiler.quantize.balance import UNIT
from compiler.quantize.products import products
from compiler.quantize.samples import Samples
from passes import SampleContext, balance
from tests.passes.golden import TARGET, run_passes

GRAPH = """
    g (float[2,2] x) => (float[2,2] y)
    <float[2,2] w = {3, 4, 5, -12}, float[2] b = {0, 0}>
    {
        s = Erf (x)
        d = edgetpu.FullyConnected (s, w, b)
        y = Erf (d)
    }"""
SAMPLES = Samples([lambda: {"x": np.array([[9, 9], [9, -9]], np.float32)}] * 2)


def test_ranges_are_known_afterwards() -> None:
    _, made = run_passes("normalise_linears", GRAPH)
    (product,) = products(made.model.graph).values()
    before = array_of(product.factors)
    context = SampleContext(TARGET, samples=SAMPLES, products=[product])
    balance.run(made.model, context)
    # Of the product and of the rows that it multiplies.
    rows = next(node for node in made.model.graph if node.op_type == "Div").outputs[0]
    assert context.ranges == {str(product.z.name): UNIT, str(rows.name): UNIT}
    assert not np.array_equal(array_of(product.factors), before)
    assert len(context.trace.matches) == 1


def test_nothing_to_balance() -> None:
    _, made = run_passes("normalise_linears", GRAPH)
    (product,) = products(made.model.graph).values()
    before = array_of(product.factors)
    context = SampleContext(TARGET, samples=SAMPLES)
    balance.run(made.model, context)
    assert context.ranges == {} and not context.trace.matches
    assert np.array_equal(array_of(product.factors), before)
