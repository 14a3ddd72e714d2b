"""Fold BatchNormalization and constants per channel into the layer in front, or the one behind.

    y = BatchNormalization(Conv(x, W, B))       ->   y = Conv(x, W', B')
    y = Conv(BatchNormalization(x), W, B)       ->   y = Conv(x, W', B')
    y = Add(Mul(BatchNormalization(x), a), b)   ->   y = Add(Mul(x, a'), b')

Each of these nodes is `scale * x + shift`, with scale and shift along at most one axis. A chain of
them is composed to one, from its last node backwards while no one else reads what lies between. It
goes into the weights of the Conv, ConvTranspose, Gemm or MatMul in front where that has such an
axis of outputs, else into those of the Conv behind. Else it becomes a depthwise Conv of one tap
where it lies between the layers of a network of images, and one Mul and one Add elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    array_of,
    attribute_of,
    constant_of,
    consumers_of,
    element_count,
    float32_nodes,
    input_at,
    is_constant,
    is_static,
    only_consumer,
    operator_name,
    producer_of,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift`, both broadcast against x over one axis."""

    x: ir.Value
    scale: np.ndarray
    shift: np.ndarray

    def of(self, inner: Affine) -> Affine:
        """This map of the result of another one."""
        scale = self.scale * inner.scale
        shift = self.scale * inner.shift + self.shift
        return Affine(inner.x, scale, shift)


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.graph is None or affine(node) is None:
            continue
        reader = only_consumer(node.outputs[0])
        if reader is not None and _continues(node, reader):
            continue  # the whole chain is folded from its end
        _fold_chain(node, Builder(model, names, node), context)
    tidy(model)


def _continues(node: ir.Node, reader: ir.Node) -> bool:
    found = affine(reader)
    return found is not None and found.x is node.outputs[0]


def _fold_chain(node: ir.Node, b: Builder, context: PassContext) -> None:
    """Compose the affine nodes that end in `node` and put them where they cost least."""
    whole = affine(node)
    assert whole is not None
    rank = len(shape_of(node.outputs[0]))
    count = 1
    while True:
        previous = producer_of(whole.x)
        before = affine(previous) if previous is not None else None
        if before is None or only_consumer(whole.x) is None:
            break
        if not _share_an_axis(before, whole, rank):
            break
        whole = whole.of(before)
        count += 1
    layer = producer_of(whole.x)
    if layer is not None and operator_name(layer) in LAYERS:
        reason = _obstacle(layer, whole, shape_of(node.outputs[0]))
        if reason is None:
            _fold_into(layer, whole, b)
            context.matched(node)
            return
        context.missed(node, f"not folded into '{layer.name}': {reason}", fitted=2)
    behind = only_consumer(node.outputs[0])
    if behind is not None and _goes_into_inputs(whole, node, behind):
        _fold_behind(whole, behind, b)
        context.matched(node)
        return
    if count > 1 or operator_name(node) == "BatchNormalization":
        b.replace(_layer(whole, b) if _is_between_layers(whole, node) else _mul_add(whole, b))
        context.matched(node)


def affine(node: ir.Node) -> Affine | None:
    """The node as an affine map of one activation, None where it is not one."""
    if operator_name(node) == "BatchNormalization":
        return _of_batch_norm(node)
    if operator_name(node) in ("Mul", "Add", "Sub", "Div"):
        return _of_arithmetic(node)
    return None


def _of_arithmetic(node: ir.Node) -> Affine | None:
    if not all(is_static(value) for value in [*node.inputs, node.outputs[0]]):
        return None
    left, right = node.inputs
    assert left is not None and right is not None
    if is_constant(left) == is_constant(right) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    x, constant = (right, left) if is_constant(left) else (left, right)
    wide = [size for size in shape_of(constant) if size > 1]
    if shape_of(x) != shape_of(node.outputs[0]) or len(wide) > 1:
        return None
    array = array_of(constant)
    missing = len(shape_of(x)) - array.ndim
    array = array.reshape((1,) * missing + array.shape)
    one, zero = np.ones_like(array), np.zeros_like(array)
    match node.op_type:
        case "Mul":
            return Affine(x, array, zero)
        case "Add":
            return Affine(x, one, array)
        case "Sub":
            return Affine(x, one, -array) if x is left else Affine(x, -one, array)
    if x is not left or np.any(array == 0):
        return None
    return Affine(x, (1 / array).astype(np.float32), zero)


def _of_batch_norm(node: ir.Node) -> Affine | None:
    x = node.inputs[0]
    parameters = [constant_of(value) for value in node.inputs[1:5]]
    arrays = [array.astype(np.float64) for array in parameters if array is not None]
    if x is None or not is_static(x) or len(arrays) < 4:
        return None
    statistics_are_read = any(value.uses() for value in node.outputs[1:])
    if attribute_of(node, "training_mode", 0) or statistics_are_read:
        return None
    gain, bias, mean, variance = arrays
    scale = gain / np.sqrt(variance + float(attribute_of(node, "epsilon", 1e-5)))
    shift = bias - mean * scale
    along_channels = (1, -1) + (1,) * (len(shape_of(x)) - 2)
    return Affine(
        x,
        scale.astype(np.float32).reshape(along_channels),
        shift.astype(np.float32).reshape(along_channels),
    )


def _share_an_axis(first: Affine, second: Affine, rank: int) -> bool:
    """Whether both vary along one axis of `rank`, so that their composition does too."""
    wide = {axis for axis in range(rank) if first.scale.shape[axis] > 1}
    wide |= {axis for axis in range(rank) if second.scale.shape[axis] > 1}
    return len(wide) <= 1


def _output_axis(kind: str, rank: int) -> int:
    """The axis of a layer's result that its weights have an axis for."""
    return 1 if kind in ("Conv", "ConvTranspose") else rank - 1


def _obstacle(layer: ir.Node, whole: Affine, shape: tuple[int, ...]) -> str | None:
    """Why an affine map of a layer's result, of this shape, does not go into its weights."""
    kind = operator_name(layer)
    axis = _output_axis(kind, len(shape))
    weight, bias = input_at(layer, 1), input_at(layer, 2)
    if only_consumer(whole.x) is None:
        return "others read its result too"
    if any(size > 1 for i, size in enumerate(whole.scale.shape) if i != axis):
        return "it does not vary along the outputs"
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        return "weights or bias are no constants"
    if kind == "ConvTranspose" and attribute_of(layer, "group", 1) != 1:
        return "its outputs are in groups"
    if kind == "MatMul" and np.any(whole.shift):
        return "it has no bias"
    if kind == "MatMul" and len(shape_of(weight)) != 2:
        return "its weights are several matrices"
    if kind == "Gemm" and attribute_of(layer, "beta", 1.0) != 1.0:
        return "its bias is scaled"
    if kind == "Gemm" and bias is not None and element_count(bias) != shape[axis]:
        return "its bias has not one number for each output"
    return None


def _fold_into(layer: ir.Node, whole: Affine, b: Builder) -> None:
    kind = operator_name(layer)
    weight, bias = layer.inputs[1], input_at(layer, 2)
    assert weight is not None
    shape = shape_of(b.anchor.outputs[0])
    outputs = shape[_output_axis(kind, len(shape))]
    scale = np.broadcast_to(whole.scale.reshape(-1), (outputs,))
    shift = np.broadcast_to(whole.shift.reshape(-1), (outputs,))
    # Conv has weights [M, C, ...], ConvTranspose [C, M, ...], MatMul and Gemm [K, N], unless
    # transposed.
    first = kind == "Conv" or (kind == "Gemm" and attribute_of(layer, "transB", 0))
    along = [1] * len(shape_of(weight))
    along[0 if first else 1] = outputs
    factor = scale.reshape(along)
    scaled = b.lazy(weight, lambda w: w * factor, shape_of(weight), f"{weight.name}/scaled")
    layer.replace_input_with(1, scaled)
    if kind != "MatMul":
        before = constant_of(bias)
        new = shift if before is None else before.reshape(-1) * scale + shift
        if len(layer.inputs) < 3:
            layer.resize_inputs(3)
        layer.replace_input_with(2, b.const(new.astype(np.float32), f"{weight.name}/bias"))
    # The layer's result is now what the last node of the chain gave, so it takes that name.
    b.made.add(whole.x)
    b.replace(whole.x)


def _goes_into_inputs(whole: Affine, node: ir.Node, conv: ir.Node) -> bool:
    """Whether an affine map along the channels of what a Conv reads goes into its weights."""
    if operator_name(conv) != "Conv" or conv.inputs[0] is not node.outputs[0]:
        return False
    weight, bias = input_at(conv, 1), input_at(conv, 2)
    if not is_constant(weight) or (bias is not None and not is_constant(bias)):
        return False
    if attribute_of(conv, "group", 1) != 1:
        return False
    if any(size > 1 for axis, size in enumerate(whole.scale.shape) if axis != 1):
        return False
    # The zeros around the image are not shifted.
    padded = attribute_of(conv, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    padded = padded or any(attribute_of(conv, "pads", ()))
    return not (padded and np.any(whole.shift))


def _fold_behind(whole: Affine, conv: ir.Node, b: Builder) -> None:
    weight, bias = conv.inputs[1], input_at(conv, 2)
    assert weight is not None
    outputs, channels, *kernel = shape_of(weight)
    scale = np.broadcast_to(whole.scale.reshape(-1), (channels,))
    factor = scale.reshape(1, channels, *[1] * len(kernel))
    shift = np.broadcast_to(whole.shift.reshape(-1), (channels,))
    if np.any(shift):
        taps = array_of(weight).reshape(outputs, channels, -1).sum(axis=2, dtype=np.float64)
        added = taps @ shift.astype(np.float64)
        before = constant_of(bias)
        new = added if before is None else before.reshape(-1) + added
        if len(conv.inputs) < 3:
            conv.resize_inputs(3)
        conv.replace_input_with(2, b.const(new.astype(np.float32), f"{weight.name}/bias"))
    scaled = b.lazy(weight, lambda w: w * factor, shape_of(weight), f"{weight.name}/scaled")
    conv.replace_input_with(1, scaled)
    conv.replace_input_with(0, whole.x)


def _is_between_layers(whole: Affine, node: ir.Node) -> bool:
    """Whether an affine map of both kinds is along the channels of an image that a network makes,
    not of its input, and that a Conv reads further on."""
    shape = shape_of(whole.x)
    sides = (whole.scale, whole.shift)
    wide = {axis for side in sides for axis, size in enumerate(side.shape) if size > 1}
    has_both = bool(np.any(whole.scale != 1) and np.any(whole.shift))
    if len(shape) != 4 or shape[0] != 1 or not wide <= {1} or not has_both:
        return False
    made = producer_of(whole.x)
    return made is not None and _meets_conv(made, _before) and _meets_conv(node, _behind)


def _before(node: ir.Node) -> list[ir.Node | None]:
    return [producer_of(value) for value in node.inputs]


def _behind(node: ir.Node) -> list[ir.Node | None]:
    return [reader for value in node.outputs for reader in consumers_of(value)]


def _meets_conv(first: ir.Node, following: Callable[[ir.Node], Iterable[ir.Node | None]]) -> bool:
    """Whether a Conv is `first`, or is found on a way from there."""
    seen: set[ir.Node] = set()
    waiting: list[ir.Node | None] = [first]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if operator_name(node) == "Conv":
            return True
        seen.add(node)
        waiting += following(node)
    return False


def _layer(whole: Affine, b: Builder) -> ir.Value:
    """A depthwise Conv of one tap: int8 rounds its result once, where a Mul and an Add round two,
    and its weights take up factors of channels (compiler/quantize/equalise.py) on both sides."""
    channels = shape_of(whole.x)[1]
    weight = np.broadcast_to(whole.scale.reshape(-1), (channels,)).reshape(channels, 1, 1, 1)
    bias = np.broadcast_to(whole.shift.reshape(-1), (channels,))
    constants = [
        b.const(np.ascontiguousarray(weight, np.float32), "scale"),
        b.const(np.ascontiguousarray(bias, np.float32), "shift"),
    ]
    attributes = {"group": channels, "kernel_shape": [1, 1]}
    return b.op("Conv", [whole.x, *constants], attributes)


def _mul_add(whole: Affine, b: Builder) -> ir.Value:
    y = whole.x
    if np.any(whole.scale != 1):
        y = b.op("Mul", [y, b.const(whole.scale, "scale")])
    if np.any(whole.shift):
        y = b.op("Add", [y, b.const(whole.shift, "shift")])
    return y
