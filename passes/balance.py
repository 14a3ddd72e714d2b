"""Let each output channel of a normalised product fill its int8 range, by what samples show.

    Add(Mul(z, factors), offsets)    with the factors and offsets that normalise_linears chose
        ->  the same, with half ranges and middles of the channels of z

z is computed with weights that are divided by the factors, so any factors give the same result.
compiler/quantize/balance.py says how they are chosen. The ranges of z and of the rows that it is
made of are known from then on, without calibration.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.quantize.balance import balance
from passes.context import SampleContext


def run(model: ir.Model, context: SampleContext) -> None:
    if not context.products:
        return
    step = context.announce("balancing channels", len(context.samples))
    context.ranges |= balance(model, context.products, context.samples, step)
    for product in context.products:
        made = product.z.producer()
        assert made is not None
        context.matched(made)
