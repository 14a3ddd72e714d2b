"""BatchNormalization and constant Mul/Add/Sub/Div per channel: into the weights in front, else one
Mul and one Add.

y = BatchNormalization(Conv(x, W, B))   ->   y = Conv(x, W', B')
y = Add(Mul(BatchNormalization(x), a), b)   ->   y = Add(Mul(x, a'), b')
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    constant_of,
    element_count,
    float32_nodes,
    input_at,
    is_constant,
    is_static,
    only_consumer,
    operator_name,
    shape_of,
)
from passes.context import PassContext
from passes.fold_constants import tidy


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift`, both broadcast against x over one axis."""

    x: ir.Value
    scale: np.ndarray
    shift: np.ndarray


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if node.graph is None or affine(node) is None:
            continue
        last = only_consumer(node.outputs[0])
        if last is not None and _continues(node, last):
            continue  # taken up from the end of its chain
        fold_chain(Builder(model, names, node), node)
    tidy(model)


def _continues(node: ir.Node, successor: ir.Node) -> bool:
    found = affine(successor)
    return found is not None and found.x is node.outputs[0]


def fold_chain(b: Builder, node: ir.Node) -> None:
    """Compose the affine nodes that end in `node` and put them where they cost least."""
    chain = [node]
    whole = affine(node)
    assert whole is not None
    while True:
        previous = whole.x.producer()
        before = affine(previous) if previous is not None else None
        if previous is None or before is None or only_consumer(whole.x) is None:
            break
        if not _same_axis(before, whole, len(shape_of(node.outputs[0]))):
            break
        whole = Affine(
            before.x, whole.scale * before.scale, whole.scale * before.shift + whole.shift
        )
        chain.append(previous)
    head = whole.x.producer()
    if head is not None and only_consumer(whole.x) is not None and _fold_into(b, head, whole, node):
        return
    if len(chain) > 1 or operator_name(node) == "BatchNormalization":
        b.replace(_mul_add(b, whole))


def affine(node: ir.Node) -> Affine | None:
    """The node as an affine map of one activation, None where it is not one."""
    if operator_name(node) == "BatchNormalization":
        return _batchnorm(node)
    if operator_name(node) not in ("Mul", "Add", "Sub", "Div") or not all(
        is_static(v) for v in [*node.inputs, node.outputs[0]]
    ):
        return None
    left, right = node.inputs
    assert left is not None and right is not None
    if is_constant(left) == is_constant(right) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    x, constant = (right, left) if is_constant(left) else (left, right)
    if shape_of(x) != shape_of(node.outputs[0]) or sum(d > 1 for d in shape_of(constant)) > 1:
        return None
    array = constant_of(constant)
    assert array is not None
    array = array.reshape((1,) * (len(shape_of(x)) - array.ndim) + array.shape)
    one, zero = np.ones_like(array), np.zeros_like(array)
    if node.op_type == "Mul":
        return Affine(x, array, zero)
    if node.op_type == "Add":
        return Affine(x, one, array)
    if node.op_type == "Sub":
        return Affine(x, one, -array) if x is left else Affine(x, -one, array)
    if x is left and np.all(array != 0):
        return Affine(x, (1 / array).astype(np.float32), zero)
    return None


def _batchnorm(node: ir.Node) -> Affine | None:
    arrays = [constant_of(v) for v in node.inputs[1:5]]
    x = node.inputs[0]
    training = attribute_of(node, "training_mode", 0) or any(
        v.uses() for v in list(node.outputs)[1:]
    )
    if training or x is None or not is_static(x) or any(a is None for a in arrays):
        return None
    gain, bias, mean, variance = (a.astype(np.float64) for a in arrays)  # type: ignore[union-attr]
    scale = gain / np.sqrt(variance + float(attribute_of(node, "epsilon", 1e-5)))
    shape = (1, -1) + (1,) * (len(shape_of(x)) - 2)
    shift = bias - mean * scale
    return Affine(
        x, scale.astype(np.float32).reshape(shape), shift.astype(np.float32).reshape(shape)
    )


def _same_axis(first: Affine, second: Affine, rank: int) -> bool:
    wide = {axis for a in (first, second) for axis in range(rank) if a.scale.shape[axis] > 1}
    return len(wide) <= 1


def _fold_into(b: Builder, head: ir.Node, whole: Affine, node: ir.Node) -> bool:
    """Fold into the weights of the Conv, ConvTranspose, Gemm or MatMul in front. Returns whether it
    could."""
    kind, rank = operator_name(head), len(shape_of(node.outputs[0]))
    axis = {"Conv": 1, "ConvTranspose": 1, "Gemm": rank - 1, "MatMul": rank - 1}.get(kind)
    if axis is None or any(d > 1 for i, d in enumerate(whole.scale.shape) if i != axis):
        return False
    weight, bias = input_at(head, 1), input_at(head, 2)
    outputs = shape_of(node.outputs[0])[axis]
    scale, shift = (np.broadcast_to(a.reshape(-1), (outputs,)) for a in (whole.scale, whole.shift))
    if not is_constant(weight) or (bias is not None and not is_constant(bias)) or weight is None:
        return False
    if kind == "ConvTranspose" and attribute_of(head, "group", 1) != 1:
        return False
    if kind == "MatMul" and (np.any(shift) or len(shape_of(weight)) != 2):
        return False
    if kind == "Gemm" and (
        attribute_of(head, "beta", 1.0) != 1.0
        or (bias is not None and element_count(bias) != outputs)
    ):
        return False
    place = {
        "Conv": 0,
        "ConvTranspose": 1,
        "Gemm": 0 if attribute_of(head, "transB", 0) else 1,
        "MatMul": 1,
    }[kind]
    factor = scale.reshape([outputs if i == place else 1 for i in range(len(shape_of(weight)))])
    head.replace_input_with(
        1, b.lazy(weight, lambda w: w * factor, shape_of(weight), f"{weight.name}/scaled")
    )
    if kind != "MatMul":
        before = constant_of(bias)
        new = shift if before is None else before.reshape(-1) * scale + shift
        if len(head.inputs) < 3:
            head.resize_inputs(3)
        head.replace_input_with(2, b.const(new.astype(np.float32), f"{weight.name}/bias"))
    b.made.add(whole.x)  # it holds what the last node of the chain gave, so it takes that name
    b.replace(whole.x)
    return True


def _mul_add(b: Builder, whole: Affine) -> ir.Value:
    y = whole.x
    if np.any(whole.scale != 1):
        y = b.op("Mul", [y, b.const(whole.scale, "scale")])
    if np.any(whole.shift):
        y = b.op("Add", [y, b.const(whole.shift, "shift")])
    return y
