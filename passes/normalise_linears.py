"""Matrix products between host operators, as in transformers, with each row brought to [-1, 1] first.

Linear maps are homogeneous, so for each row (token) with s = max|x| and one factor a per output channel

    W x + c   =   s * a * ((W / a) (x / s)) + c

exactly. int8 then resolves every row, however far its largest value lies from those of other rows, and every output
channel. Division, multiplication and bias stay on the host, where x comes from and the result goes. Static int8
ranges cannot do this: activations of transformers have single rows a hundred times larger than others.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.legality import refusal
from compiler.ops.conv import zero_bias
from compiler.targets import Target
from passes.fold_constants import tidy

# Smallest row maximum to divide by: rows of zeros stay zero.
TINY = 1e-12


def run(model: ir.Model, target: Target) -> None:
    names = cir.Names(model.graph)
    scaled: dict[tuple[ir.Value, cir.Shape], tuple[ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        if _is_rows(node) and _from_host(node.inputs[0], target) and _to_host(node.outputs[0], target):
            _normalise(node, cir.Builder(model, names, node), scaled)
    tidy(model)


def _is_rows(node: ir.Node) -> bool:
    """A product of several rows with a matrix: a 1x1 convolution of an image one pixel high."""
    if cir.kind(node) != "edgetpu.Conv2D" or cir.shape(node.inputs[1])[2:] != (1, 1):
        return False
    _, height, rows, _ = cir.shape(node.inputs[0])
    return height == 1 and rows > 1 and cir.attr(node, "strides") == (1, 1)


def _from_host(value: ir.Value | None, target: Target) -> bool:
    node = value.producer() if value is not None else None
    if node is not None and node.op_type in ("Reshape", "Transpose"):
        return _from_host(node.inputs[0], target)
    return node is None or refusal(node, target) is not None or _joins(node, target)


def _joins(node: ir.Node, target: Target) -> bool:
    """An elementwise operator with a host value on one side: the partitioner leaves it on the host."""
    inputs = cir.activations(node)
    return node.op_type in ("Add", "Sub", "Mul") and any(_from_host(v, target) for v in inputs)


def _to_host(value: ir.Value, target: Target) -> bool:
    """Whether only the host reads a value."""
    users = cir.consumers(value)
    return all(
        refusal(user, target) is not None
        or (user.op_type in ("Reshape", "Transpose", "Add", "Sub", "Mul") and _to_host(user.outputs[0], target))
        for user in users
    )


def _normalise(
    node: ir.Node, b: cir.Builder, scaled: dict[tuple[ir.Value, cir.Shape], tuple[ir.Value, ir.Value]]
) -> None:
    x, weight, bias = node.inputs
    assert x is not None and weight is not None and bias is not None
    source = x.producer()
    key = (source.inputs[0] if source is not None and source.op_type == "Reshape" else x, cir.shape(x))
    if key not in scaled:
        scaled[key] = _rows_to_one(b, x)  # type: ignore[index]
    rows, peak = scaled[key]  # type: ignore[index]
    unit = b.lazy_rows(weight, _unit, cir.shape(weight), f"{weight.name}/unit")
    factors = b.lazy(weight, _norms, cir.shape(weight)[:1], f"{weight.name}/factors")
    zero = zero_bias(b, cir.shape(weight)[0], weight)
    y = b.op("Mul", [b.op("Conv2D", [rows, unit, zero], node.attributes, cir.DIALECT), peak])
    y = b.op("Mul", [y, factors])
    if np.any(cir.array_of(bias)):
        y = b.op("Add", [y, bias])
    for value in b.made:
        made = value.producer()
        if made is not None and made.domain != cir.DIALECT and made.op_type != "Reshape":
            made.metadata_props[cir.HOST] = "it normalises the rows of a linear layer, exactly, in float"
    b.replace(y)


def _norms(weight: np.ndarray) -> np.ndarray:
    """One factor for each output; computed when the weights are read, so that planning reads none."""
    norms = np.linalg.norm(weight.reshape(len(weight), -1).astype(np.float64), axis=1)
    return np.where(norms > 0, norms, 1).astype(np.float32)


def _unit(weight: np.ndarray) -> np.ndarray:
    return weight * (1 / _norms(weight))[:, None, None, None].astype(np.float32)


def _rows_to_one(b: cir.Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(rows divided by their largest magnitude, that magnitude)."""
    axes = b.const(np.array([3], np.int64), "axes")
    peak = b.op("ReduceMax", [b.op("Abs", [x]), axes], {"keepdims": 1})
    peak = b.op("Max", [peak, b.scalar(TINY, "tiny")])
    return b.op("Div", [x, peak]), peak
