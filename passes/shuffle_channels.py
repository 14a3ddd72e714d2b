"""Write a channel shuffle with three dimensions, which the Edge TPU can transpose, instead of five.

Reshape [1,C,H,W -> 1,g,C/g,H,W];  Transpose (0,2,1,3,4);  Reshape [-> 1,C,H,W]
    ->  in NHWC: Reshape [1,H,W,C -> 1,HW,g,C/g];  Transpose (0,1,3,2);  Reshape [-> 1,H,W,C]
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    float32_nodes,
    is_static,
    key_of,
    produced_by,
    shape_of,
    to_nchw,
    to_nhwc,
)
from compiler.ops.transpose import permutation
from passes.context import PassContext
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        found = _shuffled(node)
        if found is None:
            continue
        x, groups = found
        b = Builder(model, names, node)
        _, channels, height, width = shape_of(x)
        y = b.reshape(to_nhwc(b, x), (1, height * width, groups, channels // groups))
        y = b.reshape(b.transpose(y, (0, 1, 3, 2)), (1, height, width, channels))
        b.replace(to_nchw(b, y))
        context.matched(node)
    tidy(model)


def _shuffled(node: ir.Node) -> tuple[ir.Value, int] | None:
    """(image, number of groups) of the channel shuffle that a node ends."""
    if key_of(node) != ("", "Reshape"):
        return None
    swap = produced_by(node.inputs[0], "Transpose")
    first = produced_by(swap.inputs[0], "Reshape") if swap is not None else None
    if swap is None or first is None:
        return None
    x = first.inputs[0]
    if x is None or not all(is_static(v) for v in (x, node.inputs[0], node.outputs[0])):
        return None
    before, middle = shape_of(x), shape_of(first.outputs[0])
    if permutation(swap) != (0, 2, 1, 3, 4) or len(before) != 4 or before[0] != 1:
        return None
    # The five dimensions are those of the image, with its channels in groups.
    if middle[3:] != before[2:] or middle[1] * middle[2] != before[1]:
        return None
    return (x, middle[1]) if shape_of(node.outputs[0]) == before else None
