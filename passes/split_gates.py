"""Put a depthwise 1x1 convolution of ones in front of the gate of a convolution's result.

    c = Conv(x); y = c * Sigmoid(c)      ->      c = Conv(x); y = c * Sigmoid(Conv1x1(c, ones))

It changes nothing yet. Equalising channels (compiler/quantize/equalise.py) wants to multiply
channels of c that are small, which a Sigmoid cannot undo; the new layer's weights can.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    HOST_REASON,
    Builder,
    Names,
    float32_nodes,
    input_at,
    is_constant,
    is_static,
    only_consumer,
    shape_of,
)
from passes.context import PassContext

MAKERS = ("Conv", "ConvTranspose")


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if HOST_REASON in node.metadata_props or not _is_gate(node):
            continue
        b = Builder(model, names, node)
        x = node.inputs[0]
        _, channels, *image = shape_of(x)
        kernel = (channels, 1, *[1] * len(image))
        ones = b.const(np.ones(kernel, np.float32), "ones")
        node.replace_input_with(0, b.op("Conv", [x, ones], {"group": channels}))
        context.matched(node)


def _is_gate(node: ir.Node) -> bool:
    """Whether a node is a Sigmoid of a layer's result, by which that result is multiplied."""
    if node.op_type != "Sigmoid":
        return False
    x, product = node.inputs[0], only_consumer(node.outputs[0])
    if x is None or product is None or product.op_type != "Mul" or x not in product.inputs:
        return False
    made = x.producer()
    if made is None or made.op_type not in MAKERS:
        return False
    return is_constant(input_at(made, 1)) and is_static(x)
