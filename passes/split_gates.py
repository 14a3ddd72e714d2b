"""Put a depthwise 1x1 convolution of ones in front of the gate of a convolution's result.

    c = Conv(x); y = c * Sigmoid(c)      ->      c = Conv(x); y = c * Sigmoid(Conv1x1(c))

It changes nothing yet: equalising channels (compiler/quantize/equalise.py) gives `c` finer steps
where its channels are small, and the new layer's weights undo that for the Sigmoid.
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

_MAKERS = ("Conv", "ConvTranspose")


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.op_type == "Sigmoid" and HOST_REASON not in node.metadata_props and _is_gate(node):
            b = Builder(model, names, node)
            x = node.inputs[0]
            channels, *over = shape_of(x)[1:]
            ones = b.const(np.ones((channels, 1, *(1 for _ in over)), np.float32), "ones")
            node.replace_input_with(0, b.op("Conv", [x, ones], {"group": channels}))


def _is_gate(sigmoid: ir.Node) -> bool:
    """Whether its input is made by one layer and multiplied by its result."""
    x, product = sigmoid.inputs[0], only_consumer(sigmoid.outputs[0])
    if x is None or product is None or product.op_type != "Mul" or x not in product.inputs:
        return False
    made = x.producer()
    return (
        made is not None
        and made.op_type in _MAKERS
        and is_constant(input_at(made, 1))
        and is_static(x)
    )
