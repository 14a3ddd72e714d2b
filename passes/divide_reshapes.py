"""Divide a Reshape of image rows that is too large for the Edge TPU.

    Reshape(x [1, H, W, C]) [1, H * W, C]
        ->  Concat(Reshape(first rows of x), Reshape(last rows of x))

The Edge TPU refuses a RESHAPE to one long line of positions, as detectors make of the largest of
their levels. A part of the rows of the image is a part of the line. The parts go into the Concat
that joins the line with those of other levels, where there is one.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler.device.legality import refusal
from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    axis_of,
    consumers_of,
    float32_nodes,
    is_static,
    key_of,
    shape_of,
)
from compiler.targets import Target
from passes.context import PassContext
from passes.fold_constants import tidy

# Axes of an image's rows, and of the line's positions.
ROWS = 1


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if not _makes_line(node) or refusal(node, context.target) is None:
            continue
        # For a reader on the host the line is made there, for nothing.
        readers = consumers_of(node.outputs[0])
        if not readers or any(refusal(reader, context.target) for reader in readers):
            continue
        if _divide(node, Builder(model, names, node), context.target):
            context.matched(node)
    # What was tried in vain goes too.
    tidy(model)


def _makes_line(node: ir.Node) -> bool:
    """Whether a node makes one line [1, H * W, C] of an image [1, H, W, C]."""
    if key_of(node) != ("", "Reshape") or not is_static(node.inputs[0]):
        return False
    if not is_static(node.outputs[0]):
        return False
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if len(before) != 4:
        return False
    batch, height, width, channels = before
    return batch == 1 and after == (1, height * width, channels)


def _divide(node: ir.Node, b: Builder, target: Target) -> bool:
    """Put the fewest equal parts that the Edge TPU takes in the place of a line. Returns whether
    there are such."""
    line = node.outputs[0]
    parts = _parts(node, b, target)
    if not parts:
        return False
    readers = consumers_of(line)
    if len(readers) == 1 and not line.is_graph_output() and _joins_lines(readers[0]):
        _replace_part(readers[0], line, parts)
        return True
    joined = b.op("Concat", parts, {"axis": ROWS})
    join = joined.producer()
    assert join is not None
    if refusal(join, target) is not None:
        return False
    b.replace(joined)
    return True


def _parts(node: ir.Node, b: Builder, target: Target) -> list[ir.Value]:
    """The line in parts, empty where the Edge TPU takes none."""
    x = node.inputs[0]
    assert x is not None
    _, height, width, channels = shape_of(x)
    for count in range(2, height + 1):
        if height % count:
            continue
        images = b.ops("Split", [x], {"axis": ROWS, "num_outputs": count}, outputs=count)
        shape = (1, height // count * width, channels)
        lines = [b.reshape(image, shape) for image in images]
        makers = [value.producer() for value in (images[0], lines[0])]
        if all(maker is not None and refusal(maker, target) is None for maker in makers):
            return lines
    return []


def _joins_lines(node: ir.Node) -> bool:
    if key_of(node) != ("", "Concat"):
        return False
    axis = axis_of(int(attribute_of(node, "axis")), len(shape_of(node.outputs[0])))
    return axis == ROWS


def _replace_part(join: ir.Node, line: ir.Value, parts: list[ir.Value]) -> None:
    """Let a Concat join parts of a line instead of the line."""
    inputs: list[ir.Value | None] = []
    for value in join.inputs:
        inputs += parts if value is line else [value]
    join.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        join.replace_input_with(index, value)
