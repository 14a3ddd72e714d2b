"""Fold the normalisation of pixels into the convolutions that read them.

    Conv(Add(Mul(Dequantize(pixels), a), b), W, B)   ->   Conv(Dequantize(pixels), W', B')

W' is W times a along the channels, B' is B plus what b gives through W. A convolution that pads
would see its zeros as another pixel than the mean: with b it takes the normalised image, which a
depthwise layer of one tap makes on the Edge TPU. So does whatever else reads the image. An image in
NHWC, which a Transpose follows, is normalised behind that. A Cast of pixels is a DequantizeLinear
of scale 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    NCHW,
    Builder,
    Names,
    array_of,
    attribute_of,
    constant_of,
    consumers_of,
    input_at,
    is_constant,
    key_of,
    only_consumer,
    producer_of,
    shape_of,
)
from compiler.importer import pixels
from compiler.ops.transpose import permutation
from passes.context import PassContext
from passes.fold_affine import Affine, affine
from passes.fold_constants import tidy

# How many channels pixels have.
CHANNELS = (1, 3)


@dataclass(frozen=True)
class _Normalised:
    """The image [1, C, H, W] as `whole` makes it of what is dequantized; `last` is its last
    node."""

    whole: Affine
    last: ir.Node

    @property
    def image(self) -> ir.Value:
        return self.last.outputs[0]


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in list(model.graph):
        if _casts_pixels(node):
            _dequantize(node, Builder(model, names, node))
            context.matched(node)
    for node in list(model.graph):
        found = _normalised_by(node, model, names)
        if found is None:
            continue
        obstacle = _obstacle(found)
        builder = Builder(model, names, found.last)
        if obstacle is None:
            for reader in consumers_of(found.image):
                _fold_into(reader, found, Builder(model, names, reader))
        else:
            context.missed(found.last, f"not folded: {obstacle}")
            builder.replace(_layer(found, builder))
        model.meta[pixels.NORMALISED] = "convolution" if obstacle is None else "layer"
        context.matched(node)
    tidy(model)


def _casts_pixels(node: ir.Node) -> bool:
    """Whether a Cast makes floats of an input of the model that holds pixels."""
    source = node.inputs[0] if node.inputs else None
    if key_of(node) != ("", "Cast") or source is None or not source.is_graph_input():
        return False
    if source.dtype != ir.DataType.UINT8 or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    shape = shape_of(source)
    return len(shape) == 4 and (shape[1] in CHANNELS or shape[3] in CHANNELS)


def _dequantize(node: ir.Node, b: Builder) -> None:
    """Steps of one, from zero."""
    zero = b.const(np.asarray(0, np.uint8), "pixels/zero_point")
    b.replace(b.op("DequantizeLinear", [node.inputs[0], b.scalar(1, "pixels/step"), zero]))


def _normalised_by(node: ir.Node, model: ir.Model, names: Names) -> _Normalised | None:
    """What is made of pixels that `node` dequantizes, where arithmetic on channels follows."""
    source = node.inputs[0] if node.inputs else None
    if key_of(node) != ("", "DequantizeLinear") or source is None or not source.is_graph_input():
        return None
    reader = only_consumer(node.outputs[0])
    if reader is not None and key_of(reader) == ("", "Transpose"):
        reader = only_consumer(reader.outputs[0])
    whole = None if reader is None else affine(reader)
    if reader is None or whole is None or len(shape_of(whole.x)) != 4:
        return None
    last = reader
    while (after := only_consumer(last.outputs[0])) is not None:
        further = affine(after)
        if further is None or further.x is not last.outputs[0]:
            break
        whole = further.of(whole)
        last = after
    wide = [axis for axis in range(4) if max(whole.scale.shape[axis], whole.shift.shape[axis]) > 1]
    found = _Normalised(whole, last)
    transposes = _transposes_behind(found)
    if transposes and wide in ([], [3]):
        return _behind(transposes, found, model, names)
    has_channels_first = shape_of(whole.x)[1] in CHANNELS
    return found if has_channels_first and wide in ([], [1]) else None


def _transposes_behind(found: _Normalised) -> list[ir.Node]:
    """The Transposes to NCHW that read the image, where nothing else does."""
    readers = consumers_of(found.image)
    for reader in readers:
        if key_of(reader) != ("", "Transpose") or permutation(reader) != NCHW:
            return []
    return [] if found.image.is_graph_output() else readers


def _behind(
    transposes: list[ir.Node], found: _Normalised, model: ir.Model, names: Names
) -> _Normalised:
    """The same image in NCHW, normalised behind the Transposes."""
    b = Builder(model, names, found.last)
    whole = Affine(
        b.transpose(found.whole.x, NCHW),
        found.whole.scale.transpose(NCHW),
        found.whole.shift.transpose(NCHW),
    )
    scaled = b.op("Mul", [whole.x, b.const(whole.scale, "pixels/scale")])
    image = b.op("Add", [scaled, b.const(whole.shift, "pixels/shift")])
    last = producer_of(image)
    assert last is not None
    for transpose in transposes:
        Builder(model, names, transpose).replace(image)
    return _Normalised(whole, last)


def _obstacle(found: _Normalised) -> str | None:
    """Why the arithmetic does not go into the weights of all that reads the image."""
    if found.image.is_graph_output():
        return "the image is an output of the model"
    for reader in consumers_of(found.image):
        if key_of(reader) != ("", "Conv") or reader.inputs[0] is not found.image:
            return f"{reader.op_type} '{reader.name}' reads the image too"
        weight, bias = input_at(reader, 1), input_at(reader, 2)
        if not is_constant(weight) or (bias is not None and not is_constant(bias)):
            return f"the weights of '{reader.name}' are no constants"
        if attribute_of(reader, "group", 1) != 1:
            return f"'{reader.name}' has groups"
        if np.any(found.whole.shift) and _pads(reader):
            return f"'{reader.name}' pads, and zero is not the mean of the pixels"
    return None


def _pads(node: ir.Node) -> bool:
    is_explicit = attribute_of(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return not is_explicit or any(attribute_of(node, "pads", ()))


def _fold_into(layer: ir.Node, found: _Normalised, b: Builder) -> None:
    weight, bias = layer.inputs[1], input_at(layer, 2)
    assert weight is not None
    outputs, channels = shape_of(weight)[:2]
    scale = _by_channel(found.whole.scale, channels)
    shift = _by_channel(found.whole.shift, channels)
    weights = array_of(weight)
    taps = weights.reshape(outputs, channels, -1).sum(2, dtype=np.float64)
    through = taps @ shift
    before = constant_of(bias)
    total = through if before is None else through + before
    along = (1, -1) + (1,) * (weights.ndim - 2)
    factor = scale.reshape(along).astype(np.float32)
    scaled = b.lazy(weight, lambda w: w * factor, shape_of(weight), f"{weight.name}/of_pixels")
    layer.replace_input_with(0, found.whole.x)
    layer.replace_input_with(1, scaled)
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    new_bias = total.reshape(outputs).astype(np.float32)
    layer.replace_input_with(2, b.const(new_bias, f"{weight.name}/bias_of_pixels"))


def _layer(found: _Normalised, b: Builder) -> ir.Value:
    """The normalised image, made by a depthwise convolution of one tap."""
    channels = shape_of(found.whole.x)[1]
    scale = _by_channel(found.whole.scale, channels).reshape(channels, 1, 1, 1)
    shift = _by_channel(found.whole.shift, channels)
    weight = b.const(scale.astype(np.float32), "pixels/scale")
    bias = b.const(shift.astype(np.float32), "pixels/shift")
    return b.op("Conv", [found.whole.x, weight, bias], {"group": channels})


def _by_channel(array: np.ndarray, channels: int) -> np.ndarray:
    return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)
