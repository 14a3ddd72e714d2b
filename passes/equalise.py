"""Give small channels more int8 steps: multiply where they are made, divide where they are read.

    W2 relu(W1 x + b)   ->   (W2 / d) relu(d W1 x + d b)      for d > 0

exactly. An activation has one int8 scale, so that a small channel would have few steps.
compiler/quantize/equalise.py says how the factors are chosen, and where they can go.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.quantize.equalise import equalise
from passes.context import SampleContext


def run(model: ir.Model, context: SampleContext) -> None:
    before = context.stats
    context.stats = equalise(model, context.nodes, before)
    context.rescaled = {
        name
        for name, shown in before.items()
        if not np.array_equal(shown.square, context.stats[name].square)
    }
    for node in context.nodes:
        if any(str(value.name) in context.rescaled for value in node.outputs):
            context.matched(node)
