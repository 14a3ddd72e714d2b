"""Join the phases of an image that a convolution reads: the Focus of YOLOv5 and YOLOX.

    Conv(Concat(x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]), W)
        ->   Conv(x, W')        with kernel, strides and padding twice as large

Each tap of the kernel read four pixels, which are now taps of their own. The Edge TPU has no slices
with steps, so that the host would cut the image up in front.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    axis_of,
    consumers_of,
    float32_nodes,
    input_at,
    ints_of,
    is_constant,
    is_static,
    key_of,
    producer_of,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy

# (row, column) at which a phase begins.
Phase = tuple[int, int]
_PHASES = {(0, 0), (0, 1), (1, 0), (1, 1)}


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.graph is None or key_of(node) != ("", "Concat"):
            continue
        found = _phases(node)
        if found is None:
            continue
        image, phases = found
        readers = consumers_of(node.outputs[0])
        if node.outputs[0].is_graph_output() or not all(map(_may_join, readers)):
            context.missed(node, "something else than a convolution reads the phases", fitted=2)
            continue
        for reader in readers:
            _join(reader, image, phases, Builder(model, names, reader))
        context.matched(node)
    tidy(model)


def _phases(concat: ir.Node) -> tuple[ir.Value, list[Phase]] | None:
    """The image [1, C, H, W] whose four phases a Concat joins along the channels, and their
    order."""
    if not is_static(concat.outputs[0]) or len(shape_of(concat.outputs[0])) != 4:
        return None
    if axis_of(int(attribute_of(concat, "axis", 0)), 4) != 1 or len(concat.inputs) != len(_PHASES):
        return None
    found = [_phase(value) for value in concat.inputs]
    images = {image for image, _ in found}
    phases = [phase for _, phase in found if phase is not None]
    (image, *others) = images
    if others or image is None or len(phases) != len(found) or set(phases) != _PHASES:
        return None
    return image, phases


def _phase(value: ir.Value | None) -> tuple[ir.Value | None, Phase | None]:
    """What a chain of Slices cuts a value from, and which phase the value is; None where it is
    none."""
    steps = {2: 1, 3: 1}
    begins = {2: 0, 3: 0}
    while (node := producer_of(value)) is not None and key_of(node) == ("", "Slice"):
        cut = _cut(node)
        if cut is None or not set(cut) <= {2, 3}:
            break
        for axis, (begin, step) in cut.items():
            # Of the axis as it was before the cuts that come behind.
            begins[axis] = begin + step * begins[axis]
            steps[axis] *= step
        value = node.inputs[0]
    is_whole = value is not None and is_static(value) and len(shape_of(value)) == 4
    if set(steps.values()) != {2} or not is_whole or any(s % 2 for s in shape_of(value)[2:]):
        return value, None
    return value, (begins[2], begins[3])


def _cut(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """By axis (begin, step) of a Slice that goes on to the end; None for another one."""
    source = node.inputs[0]
    bounds = [ints_of(input_at(node, index)) for index in (1, 2, 3, 4)]
    if source is None or not is_static(source) or bounds[0] is None or bounds[1] is None:
        return None
    if any(value is not None and not is_constant(value) for value in node.inputs[1:]):
        return None
    shape = shape_of(source)
    axes = bounds[2] or list(range(len(bounds[0])))
    found = {}
    for place, given in enumerate(axes):
        axis = axis_of(given, len(shape))
        step = bounds[3][place] if bounds[3] is not None else 1
        begin, end, step = slice(bounds[0][place], bounds[1][place], step).indices(shape[axis])
        if step < 1 or end != shape[axis]:
            return None
        found[axis] = (begin, step)
    return found


def _may_join(reader: ir.Node) -> bool:
    """Whether a reader is a convolution over all channels, without gaps between its taps."""
    if key_of(reader) != ("", "Conv") or not is_constant(input_at(reader, 1)):
        return False
    is_padded_as_said = attribute_of(reader, "auto_pad", "NOTSET") == "NOTSET"
    has_gaps = set(attribute_of(reader, "dilations", (1,))) != {1}
    return is_padded_as_said and not has_gaps and attribute_of(reader, "group", 1) == 1


def _join(layer: ir.Node, image: ir.Value, phases: list[Phase], b: Builder) -> None:
    weight = layer.inputs[1]
    assert weight is not None
    outputs, inputs, tall, wide = shape_of(weight)
    channels = inputs // len(phases)

    def joined(array: np.ndarray) -> np.ndarray:
        whole = np.zeros((outputs, channels, 2 * tall, 2 * wide), array.dtype)
        for index, (row, column) in enumerate(phases):
            part = array[:, index * channels : (index + 1) * channels]
            whole[:, :, row::2, column::2] = part
        return whole

    new = (outputs, channels, 2 * tall, 2 * wide)
    layer.replace_input_with(0, image)
    layer.replace_input_with(1, b.lazy(weight, joined, new, f"{weight.name}/joined"))
    strides = attribute_of(layer, "strides", (1, 1))
    pads = attribute_of(layer, "pads", (0, 0, 0, 0))
    sizes = {
        "kernel_shape": new[2:],
        "strides": [2 * s for s in strides],
        "pads": [2 * p for p in pads],
    }
    for name, numbers in sizes.items():
        layer.attributes[name] = ir.AttrInt64s(name, [int(number) for number in numbers])
