"""Insert Requantize where operators would tie together fixed int8 scales that differ.

    Concat(Softmax(x), FakeQuantize(y))
        ->  Concat(Requantize(Softmax(x)), Requantize(FakeQuantize(y)))

Inputs and outputs of a Concat must have one scale, while that of a Softmax is fixed at 1/256 and
that of a FakeQuantize is given by the model. A Requantize lets its output have another scale than
its input. Which operators share scales and which are fixed says each operator's own declaration
(`Operator.scales`); the insertion itself is in compiler/quantize/scales.py.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from compiler.device.legality import refusal
from compiler.quantize.scales import separate
from passes.context import PassContext


def run(model: ir.Model, context: PassContext) -> None:
    on_tpu = [node for node in model.graph if refusal(node, context.target) is None]
    before = set(model.graph)
    separate(model, on_tpu)
    for node in model.graph:
        if node not in before:
            context.matched(node)
    # No pass after this one writes the dialect, so functions that are not used by now never are.
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
