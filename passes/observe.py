"""Run the float model on the samples and note what each channel of an activation shows.

Nothing changes in the graph. Activations whose range is known already are left out, and ranges end
where what reads an activation no longer tells values apart (compiler/quantize/saturate.py).
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import quantized_around
from compiler.quantize.calibrate import observe
from compiler.quantize.products import joined_from
from compiler.quantize.saturate import saturated
from passes.context import SampleContext


def run(model: ir.Model, context: SampleContext) -> None:
    wanted: set[ir.Value] = set()
    for product in context.products:
        if not product.has_unit_rows:
            # Its rows are equalised by what they make of its outputs, whose range is known.
            wanted.update(joined_from(product.made))
    values = quantized_around([*context.nodes, *context.joins])
    unknown = [v for v in values if v in wanted or str(v.name) not in context.ranges]
    if not unknown:
        return
    step = context.announce("calibrating", len(context.samples))
    shown = observe(model, unknown, context.samples, step)
    context.stats = saturated(context.nodes, shown)
