"""Split a mean over more positions than the Edge TPU takes into a pooling and a smaller mean.

    ReduceMean(x[1, 112, 112, C])  ->  ReduceMean(AveragePool2D(x, 2 x 2)[1, 56, 56, C])

The pooling window divides the image, so that every position counts once: exact.
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

# Windows of more pixels a side are not tried.
LARGEST_WINDOW = 15


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    limit = context.target.mean_positions
    for node in float32_nodes(model.graph):
        if not _is_mean_of_image(node):
            continue
        _, height, width, _ = shape_of(node.inputs[0])
        if height * width <= limit:
            continue
        side = _window(height, width, limit)
        if side is None:
            reason = f"no window divides {height} x {width} so that {limit} positions are left"
            context.missed(node, reason)
            continue
        b = Builder(model, names, node)
        window = {"kernel_shape": (side, side), "strides": (side, side), "pads": (0, 0, 0, 0)}
        pooled = b.op("AveragePool2D", [node.inputs[0]], window, DIALECT)
        node.replace_input_with(0, pooled)
        context.matched(node)


def _is_mean_of_image(node: ir.Node) -> bool:
    """Whether a node is the mean over height and width of an image in NHWC."""
    if key_of(node) != ("", "ReduceMean") or not is_static(node.inputs[0]):
        return False
    if len(shape_of(node.inputs[0])) != 4 or not is_constant(input_at(node, 1)):
        return False
    return axes_of(node) == [1, 2]


def _window(height: int, width: int, limit: int) -> int | None:
    """The smallest square window that divides the image and leaves few enough positions."""
    for side in range(2, LARGEST_WINDOW + 1):
        if height % side or width % side:
            continue
        if height * width <= limit * side * side:
            return side
    return None
