"""Keep the mean of each channel, so that biases can make up for what rounding adds to it.

Nothing changes in the graph: rounded weights shift the mean of a layer's outputs by their error
times the mean of its inputs, and the TFLite writer subtracts that from the int32 bias
(compiler/quantize/weights.py).
"""

from __future__ import annotations

import onnx_ir as ir

from passes.context import SampleContext


def run(model: ir.Model, context: SampleContext) -> None:
    context.means = {name: stats.mean for name, stats in context.stats.items()}
