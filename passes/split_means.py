"""A mean over more positions than the Edge TPU takes becomes an average pooling and a mean of what
it gives.

ReduceMean(x[1, 112, 112, C])  ->  ReduceMean(AveragePool2D(x, 2 x 2)[1, 56, 56, C])
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    Builder,
    Names,
    float32_nodes,
    input_at,
    is_constant,
    is_static,
    key_of,
    shape_of,
)
from compiler.ops.reduce import axes_of
from passes.context import PassContext


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        factor = _factor(node, context.target.mean_positions)
        if factor > 1:
            b = Builder(model, names, node)
            window = {
                "kernel_shape": (factor, factor),
                "strides": (factor, factor),
                "pads": (0, 0, 0, 0),
            }
            node.replace_input_with(0, b.op("AveragePool2D", [node.inputs[0]], window, DIALECT))


def _factor(node: ir.Node, limit: int) -> int:
    """The smallest square window that divides the image and leaves few enough positions; 1 where
    there is none."""
    if (
        key_of(node) != ("", "ReduceMean")
        or not is_static(node.inputs[0])
        or len(shape_of(node.inputs[0])) != 4
    ):
        return 1
    _, height, width, _ = shape_of(node.inputs[0])
    if not is_constant(input_at(node, 1)) or axes_of(node) != [1, 2] or height * width <= limit:
        return 1
    fitting = (
        k for k in range(2, 16) if height % k == width % k == 0 and height * width <= limit * k * k
    )
    return next(fitting, 1)
