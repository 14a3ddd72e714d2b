"""Run the float model on the samples and note what each channel of an activation shows.

Nothing changes in the graph. Activations whose range is known already are left out, and ranges end
where what reads an activation no longer tells values apart (compiler/quantize/saturate.py).
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import quantized_around
from compiler.quantize.calibrate import observe
from compiler.quantize.saturate import saturated
from passes.context import SampleContext


def run(model: ir.Model, context: SampleContext) -> None:
    values = quantized_around(context.nodes)
    unknown = [value for value in values if str(value.name) not in context.ranges]
    if not unknown:
        return
    step = context.announce("calibrating", len(context.samples))
    shown = observe(model, unknown, context.samples, step)
    context.stats = saturated(context.nodes, shown)
