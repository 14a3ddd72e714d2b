"""Give attention its name back.

    MatMul(Softmax(MatMul(q, k^T) * scale + mask), v)   ->   Attention(q, k, v, mask)

Scales of q, k and scores become one; keys and values that are repeated for groups of heads are
given once. Where the exporter puts zeros for a softmax without any allowed key (torch's
scaled_dot_product_attention), so does a Where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    axis_of,
    constant_of,
    float32_nodes,
    is_constant,
    is_static,
    key_of,
    produced_by,
    scalar_of,
    shape_of,
    unscaled,
)
from passes.context import PassContext
from passes.fold_constants import tidy


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        if key_of(node) == ("", "MatMul"):
            _attend(node, Builder(model, names, node))
    tidy(model)


@dataclass
class _Scores:
    """q [B, H, S, D] and the transposed keys [B, H, D, T] of a product, times `scale`, plus
    `masks`."""

    q: ir.Value
    keys: ir.Value
    scale: float = 1.0
    masks: list[ir.Value] = field(default_factory=list)


def _attend(node: ir.Node, b: Builder) -> None:
    probabilities, v = node.inputs
    assert probabilities is not None and v is not None
    softmax, guarded = _softmax(probabilities)
    if (
        softmax is None
        or not is_heads(v)
        or axis_of(int(attribute_of(softmax, "axis", -1)), 4) != 3
    ):
        return
    scores = _scores(softmax.inputs[0])
    if scores is None or shape_of(scores.q)[:2] != shape_of(v)[:2]:
        return
    q, scale = unscaled(scores.q)
    k, factor = _untransposed(scores.keys, b)
    k, v = _ungrouped(k, v)
    mask = scores.masks[0] if scores.masks else None
    for other in scores.masks[1:]:
        mask = b.op("Add", [mask, other])
    inputs = [q, k, v]
    if mask is not None:
        inputs.append(_whole(mask, shape_of(scores.q)[2], shape_of(scores.keys)[3], b))
    result = b.op("Attention", inputs, {"scale": scores.scale * scale * factor})
    if guarded and mask is not None:
        result = _zero_where_masked(result, mask, b)
    b.replace(result)


def is_heads(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is computed, float, and [batch, heads, rows, columns]."""
    if (
        value is None
        or is_constant(value)
        or not is_static(value)
        or value.dtype != ir.DataType.FLOAT
    ):
        return False
    return len(shape_of(value)) == 4


def _softmax(value: ir.Value) -> tuple[ir.Node | None, bool]:
    """The Softmax that made a value, and whether zeros stand where it is not a number."""
    where = produced_by(value, "Where")
    if where is None:
        return produced_by(value, "Softmax"), False
    condition, zero, other = where.inputs
    test, softmax = produced_by(condition, "IsNaN"), produced_by(other, "Softmax")
    if test is None or test.inputs[0] is not other or scalar_of(zero) != 0:
        return None, False
    return softmax, True


def _scores(value: ir.Value | None) -> _Scores | None:
    if not is_heads(value):
        return None
    node = value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "MatMul":
        q, keys = node.inputs
        if not is_heads(q) or not is_heads(keys) or shape_of(q)[:2] != shape_of(keys)[:2]:
            return None
        return _Scores(q, keys)
    if node.op_type == "Add":
        for inner, mask in (node.inputs, node.inputs[::-1]):
            found = _scores(inner)
            if (
                found is not None
                and mask is not None
                and is_static(mask)
                and len(shape_of(mask)) == 4
            ):
                found.masks.append(mask)
                return found
        return None
    rest, factor = unscaled(value)
    found = _scores(rest) if factor != 1 else None
    if found is None or found.masks:
        return None
    found.scale *= factor
    return found


def _untransposed(value: ir.Value, b: Builder) -> tuple[ir.Value, float]:
    """Keys [B, H, T, D] without the numbers that they are multiplied by."""
    value, factor = unscaled(value)
    node, shape = value.producer(), shape_of(value)
    if node is not None and key_of(node) == ("", "Transpose") and node.inputs[0] is not None:
        perm = tuple(attribute_of(node, "perm", ()))
        if perm[:2] == (0, 1):
            rest, more = unscaled(node.inputs[0])
            return rest, factor * more
        if len(perm) == 4:
            return b.transpose(node.inputs[0], (perm[0], perm[1], perm[3], perm[2])), factor
    # torch.onnx transposes matrices of all heads in a row: Reshape, Transpose, Reshape.
    rotated = (
        produced_by(node.inputs[0], "Transpose")
        if node is not None and node.op_type == "Reshape"
        else None
    )
    flat = produced_by(rotated.inputs[0], "Reshape") if rotated is not None else None
    if (
        rotated is not None
        and flat is not None
        and tuple(attribute_of(rotated, "perm", ())) == (0, 2, 1)
    ):
        source = flat.inputs[0]
        if is_heads(source) and shape_of(source) == (*shape[:2], shape[3], shape[2]):
            rest, more = unscaled(source)
            return rest, factor * more
    return b.transpose(value, (0, 1, 3, 2)), factor


def _ungrouped(k: ir.Value, v: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Keys and values before they are repeated for the heads that share them."""
    sources = [_repeated(k), _repeated(v)]
    if (
        sources[0] is None
        or sources[1] is None
        or shape_of(sources[0])[1] != shape_of(sources[1])[1]
    ):
        return k, v
    return sources[0], sources[1]


def _repeated(value: ir.Value) -> ir.Value | None:
    """x [B, G, T, D] of Reshape(Expand(Unsqueeze(x, 2), [B, G, N, T, D]), [B, G * N, T, D])."""
    reshape = produced_by(value, "Reshape")
    expand = produced_by(reshape.inputs[0], "Expand") if reshape is not None else None
    single = (
        expand.inputs[0].producer() if expand is not None and expand.inputs[0] is not None else None
    )
    if expand is None or single is None or single.op_type not in ("Unsqueeze", "Reshape"):
        return None
    x = single.inputs[0]
    if not is_heads(x):
        return None
    batch, groups, *rest = shape_of(x)
    wide, whole = shape_of(expand.outputs[0]), shape_of(value)
    same = shape_of(expand.inputs[0]) == (batch, groups, 1, *rest) and wide == (
        batch,
        groups,
        *wide[2:3],
        *rest,
    )
    return x if same and whole == (batch, groups * wide[2], *rest) else None


def _whole(mask: ir.Value, queries: int, keys: int, b: Builder) -> ir.Value:
    """A mask with a row for each query and a column for each key, which onnxruntime asks for."""
    shape = (*shape_of(mask)[:2], queries, keys)
    return (
        mask
        if shape_of(mask) == shape
        else b.op("Expand", [mask, b.const(np.array(shape, np.int64), "shape")])
    )


def _zero_where_masked(result: ir.Value, mask: ir.Value, b: Builder) -> ir.Value:
    """Zeros in the rows of which the mask allows nothing."""
    array = constant_of(mask)
    if array is not None:
        allowed = (array > -np.inf).any(-1, keepdims=True)
        if allowed.all():
            return result
        none = b.const(~allowed, "nothing")
    else:
        most = b.op("ReduceMax", [mask, b.const(np.array([-1], np.int64), "axes")], {"keepdims": 1})
        none = b.op("Equal", [most, b.scalar(-np.inf, "nothing")])
    return b.op("Where", [none, b.scalar(0.0, "zero"), result])
