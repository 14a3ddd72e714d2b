"""A channel shuffle, which ONNX writes with five dimensions, as one of three that the Edge TPU can
transpose.

    Reshape [1,C,H,W -> 1,g,C/g,H,W]; Transpose (0,2,1,3,4); Reshape [-> 1,C,H,W]
->  NHWC: Reshape [1,H,W,C -> 1,HW,g,C/g]; Transpose (0,1,3,2); Reshape [-> 1,H,W,C]
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
        groups = _groups(node)
        if groups is None:
            continue
        x = node.inputs[0].producer().inputs[0].producer().inputs[0]  # type: ignore[union-attr]
        assert x is not None
        b = Builder(model, names, node)
        _, channels, height, width = shape_of(x)
        y = b.reshape(to_nhwc(b, x), (1, height * width, groups, channels // groups))
        y = b.reshape(b.transpose(y, (0, 1, 3, 2)), (1, height, width, channels))
        b.replace(to_nchw(b, y))
    tidy(model)


def _groups(node: ir.Node) -> int | None:
    """The number of groups that a Reshape ends the shuffle of."""
    if key_of(node) != ("", "Reshape") or not all(
        is_static(v) for v in (node.inputs[0], node.outputs[0])
    ):
        return None
    swap = produced_by(node.inputs[0], "Transpose")
    first = produced_by(swap.inputs[0], "Reshape") if swap is not None else None
    if swap is None or first is None or not is_static(first.inputs[0]):
        return None
    before, middle = shape_of(first.inputs[0]), shape_of(first.outputs[0])
    if permutation(swap) != (0, 2, 1, 3, 4) or len(before) != 4 or before[0] != 1:
        return None
    shuffled = shape_of(node.outputs[0]) == before and middle[3:] == before[2:]
    return middle[1] if shuffled and middle[1] * middle[2] == before[1] else None
