"""BatchNormalization and constant Mul/Add/Sub/Div per channel: into the weights in front, else one Mul and one Add.

y = BatchNormalization(Conv(x, W, B))   ->   y = Conv(x, W', B')
y = Add(Mul(BatchNormalization(x), a), b)   ->   y = Add(Mul(x, a'), b')
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.targets import Target
from passes.fold_constants import tidy


@dataclass(frozen=True)
class Affine:
    """`scale * x + shift`, both broadcast against x over one axis."""

    x: ir.Value
    scale: np.ndarray
    shift: np.ndarray


def run(model: ir.Model, target: Target) -> None:
    names = cir.Names(model.graph)
    for node in cir.float32_nodes(model.graph):
        if node.graph is None or affine(node) is None:
            continue
        last = cir.only_consumer(node.outputs[0])
        if last is not None and _continues(node, last):
            continue  # taken up from the end of its chain
        fold_chain(cir.Builder(model, names, node), node)
    tidy(model)


def _continues(node: ir.Node, successor: ir.Node) -> bool:
    found = affine(successor)
    return found is not None and found.x is node.outputs[0]


def fold_chain(b: cir.Builder, node: ir.Node) -> None:
    """Compose the affine nodes that end in `node` and put them where they cost least."""
    chain = [node]
    whole = affine(node)
    assert whole is not None
    while True:
        previous = whole.x.producer()
        before = affine(previous) if previous is not None else None
        if previous is None or before is None or cir.only_consumer(whole.x) is None:
            break
        if not _same_axis(before, whole, len(cir.shape(node.outputs[0]))):
            break
        whole = Affine(before.x, whole.scale * before.scale, whole.scale * before.shift + whole.shift)
        chain.append(previous)
    head = whole.x.producer()
    if head is not None and cir.only_consumer(whole.x) is not None and _fold_into(b, head, whole, node):
        return
    if len(chain) > 1 or cir.kind(node) == "BatchNormalization":
        b.replace(_mul_add(b, whole))


def affine(node: ir.Node) -> Affine | None:
    """The node as an affine map of one activation, None where it is not one."""
    if cir.kind(node) == "BatchNormalization":
        return _batchnorm(node)
    if cir.kind(node) not in ("Mul", "Add", "Sub", "Div") or not all(
        cir.is_static(v) for v in [*node.inputs, node.outputs[0]]
    ):
        return None
    left, right = node.inputs
    assert left is not None and right is not None
    if cir.is_const(left) == cir.is_const(right) or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    x, constant = (right, left) if cir.is_const(left) else (left, right)
    if cir.shape(x) != cir.shape(node.outputs[0]) or sum(d > 1 for d in cir.shape(constant)) > 1:
        return None
    array = cir.const(constant)
    assert array is not None
    array = array.reshape((1,) * (len(cir.shape(x)) - array.ndim) + array.shape)
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
    arrays = [cir.const(v) for v in node.inputs[1:5]]
    x = node.inputs[0]
    training = cir.attr(node, "training_mode", 0) or any(v.uses() for v in list(node.outputs)[1:])
    if training or x is None or not cir.is_static(x) or any(a is None for a in arrays):
        return None
    gain, bias, mean, variance = (a.astype(np.float64) for a in arrays)  # type: ignore[union-attr]
    scale = gain / np.sqrt(variance + float(cir.attr(node, "epsilon", 1e-5)))
    shape = (1, -1) + (1,) * (len(cir.shape(x)) - 2)
    shift = bias - mean * scale
    return Affine(x, scale.astype(np.float32).reshape(shape), shift.astype(np.float32).reshape(shape))


def _same_axis(first: Affine, second: Affine, rank: int) -> bool:
    wide = {axis for a in (first, second) for axis in range(rank) if a.scale.shape[axis] > 1}
    return len(wide) <= 1


def _fold_into(b: cir.Builder, head: ir.Node, whole: Affine, node: ir.Node) -> bool:
    """Fold into the weights of the Conv, ConvTranspose, Gemm or MatMul in front. Returns whether it could."""
    kind, rank = cir.kind(head), len(cir.shape(node.outputs[0]))
    axis = {"Conv": 1, "ConvTranspose": 1, "Gemm": rank - 1, "MatMul": rank - 1}.get(kind)
    if axis is None or any(d > 1 for i, d in enumerate(whole.scale.shape) if i != axis):
        return False
    weight, bias = cir.arg(head, 1), cir.arg(head, 2)
    outputs = cir.shape(node.outputs[0])[axis]
    scale, shift = (np.broadcast_to(a.reshape(-1), (outputs,)) for a in (whole.scale, whole.shift))
    if not cir.is_const(weight) or (bias is not None and not cir.is_const(bias)) or weight is None:
        return False
    if kind == "ConvTranspose" and cir.attr(head, "group", 1) != 1:
        return False
    if kind == "MatMul" and (np.any(shift) or len(cir.shape(weight)) != 2):
        return False
    if kind == "Gemm" and (cir.attr(head, "beta", 1.0) != 1.0 or (bias is not None and cir.size(bias) != outputs)):
        return False
    place = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if cir.attr(head, "transB", 0) else 1, "MatMul": 1}[kind]
    factor = scale.reshape([outputs if i == place else 1 for i in range(len(cir.shape(weight)))])
    head.replace_input_with(1, b.lazy(weight, lambda w: w * factor, cir.shape(weight), f"{weight.name}/scaled"))
    if kind != "MatMul":
        before = cir.const(bias)
        new = shift if before is None else before.reshape(-1) * scale + shift
        if len(head.inputs) < 3:
            head.resize_inputs(3)
        head.replace_input_with(2, b.const(new.astype(np.float32), f"{weight.name}/bias"))
    b.made.add(whole.x)  # it holds what the last node of the chain gave, so it takes that name
    b.replace(whole.x)
    return True


def _mul_add(b: cir.Builder, whole: Affine) -> ir.Value:
    y = whole.x
    if np.any(whole.scale != 1):
        y = b.op("Mul", [y, b.const(whole.scale, "scale")])
    if np.any(whole.shift):
        y = b.op("Add", [y, b.const(whole.shift, "shift")])
    return y
