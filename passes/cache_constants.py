"""Write a factor and an offset per channel as one depthwise 1x1 convolution.

    y = Add(Mul(x, a), b)      ->      y = Conv1x1(x, a, b)      (one group per channel)

The Edge TPU is sent the constants of a MUL and an ADD at each inference, and keeps the weights of a
convolution. Each channel also gets a scale of its own in int8, which a constant tensor has not.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import HOST_REASON, Builder, Names, float32_nodes, only_consumer, shape_of
from passes.context import PassContext
from passes.fold_affine import Affine, affine
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.graph is None or HOST_REASON in node.metadata_props:
            continue  # it was part of a pair before, or needs no int8
        whole = affine(node)
        if whole is None or not _is_inside(node, whole):
            continue
        last = node
        reader = only_consumer(node.outputs[0])
        behind = affine(reader) if reader is not None else None
        if reader is not None and behind is not None and behind.x is node.outputs[0]:
            if not _is_along_channels(behind) or reader.outputs[0].is_graph_output():
                continue
            whole, last = behind.of(whole), reader
        if _is_per_channel(whole):
            b = Builder(model, names, last)
            b.replace(_convolution(whole, b))
            context.matched(last)
    tidy(model)


def _is_inside(node: ir.Node, whole: Affine) -> bool:
    """Whether a node maps the channels of an image that other nodes make for other nodes."""
    if whole.x.producer() is None or node.outputs[0].is_graph_output():
        return False
    shape = shape_of(whole.x)
    return len(shape) == 4 and shape[0] == 1 and _is_along_channels(whole)


def _is_along_channels(whole: Affine) -> bool:
    sizes = [*whole.scale.shape, *whole.shift.shape]
    wide = [axis % 4 for axis, size in enumerate(sizes) if size > 1]
    return whole.scale.ndim == 4 and set(wide) <= {1}


def _is_per_channel(whole: Affine) -> bool:
    """Whether it has more than one number; one number for all channels is not sent."""
    return whole.scale.size > 1 or whole.shift.size > 1


def _convolution(whole: Affine, b: Builder) -> ir.Value:
    channels = shape_of(whole.x)[1]
    scale = np.broadcast_to(whole.scale.reshape(-1), (channels,)).astype(np.float32)
    shift = np.broadcast_to(whole.shift.reshape(-1), (channels,)).astype(np.float32)
    weights = b.const(scale.reshape(channels, 1, 1, 1), "factors")
    offsets = b.const(np.ascontiguousarray(shift), "offsets")
    return b.op("Conv", [whole.x, weights, offsets], {"group": channels})
