"""Recognise attention: two products around a Softmax become one Attention.

    MatMul(Softmax(MatMul(q, Transpose(k)) * scale + mask), v)   ->   Attention(q, k, v, mask)

Queries, keys and values are [batch, heads, rows, width]. Numbers that q, k or the scores are
multiplied by become one scale; masks are added up. Keys and values that were repeated for groups of
heads are given once, as Attention repeats them itself. Where the exporter puts zeros for a softmax
of a row without any allowed key (torch's scaled_dot_product_attention), so does a Where.
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
    producer_of,
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
            _recognise(node, Builder(model, names, node), context)
    tidy(model)


@dataclass
class _Scores:
    """Scores of queries and keys: MatMul(q, keys) * scale + masks.

    q is [B, H, S, D], the transposed keys are [B, H, D, T].
    """

    q: ir.Value
    keys: ir.Value
    scale: float = 1.0
    masks: list[ir.Value] = field(default_factory=list)


def _recognise(node: ir.Node, b: Builder, context: PassContext) -> None:
    probabilities, v = node.inputs
    assert probabilities is not None
    softmax, guarded = _softmax(probabilities)
    if softmax is None:
        return
    if not is_heads(v):
        context.missed(node, "its values are not [batch, heads, rows, width]", fitted=2)
        return
    if axis_of(int(attribute_of(softmax, "axis", -1)), 4) != 3:
        context.missed(node, "its Softmax is not over the last axis", fitted=2)
        return
    scores = _scores(softmax.inputs[0])
    if scores is None:
        reason = "its scores are not a product of queries and keys, times numbers, plus masks"
        context.missed(node, reason, fitted=2)
        return
    if shape_of(scores.q)[:2] != shape_of(v)[:2]:
        context.missed(node, "queries and values differ in batch or heads", fitted=3)
        return
    b.replace(_attention(scores, v, guarded, b))
    context.matched(node)


def _attention(scores: _Scores, v: ir.Value, guarded: bool, b: Builder) -> ir.Value:
    q, q_factor = unscaled(scores.q)
    k, k_factor = _untransposed(scores.keys, b)
    k, v = _ungrouped(k, v)
    inputs = [q, k, v]
    mask = scores.masks[0] if scores.masks else None
    for other in scores.masks[1:]:
        mask = b.op("Add", [mask, other])
    if mask is not None:
        queries = shape_of(scores.q)[2]
        keys = shape_of(scores.keys)[3]
        inputs.append(_whole(mask, queries, keys, b))
    scale = scores.scale * q_factor * k_factor
    result = b.op("Attention", inputs, {"scale": scale})
    if guarded and mask is not None:
        return _zero_where_masked(result, mask, b)
    return result


def is_heads(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Whether a value is computed, float32, and [batch, heads, rows, columns]."""
    if value is None or is_constant(value) or not is_static(value):
        return False
    return value.dtype == ir.DataType.FLOAT and len(shape_of(value)) == 4


def _softmax(value: ir.Value) -> tuple[ir.Node | None, bool]:
    """(the Softmax that made a value, whether zeros stand where it is not a number)."""
    where = produced_by(value, "Where")
    if where is None:
        return produced_by(value, "Softmax"), False
    condition, zero, other = where.inputs
    test = produced_by(condition, "IsNaN")
    softmax = produced_by(other, "Softmax")
    if test is None or test.inputs[0] is not other or scalar_of(zero) != 0:
        return None, False
    return softmax, True


def _scores(value: ir.Value | None) -> _Scores | None:
    """The scores that go into a softmax, None where they are something else."""
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
        return _masked_scores(node)
    rest, factor = unscaled(value)
    scores = _scores(rest) if factor != 1 else None
    # A mask would be multiplied too.
    if scores is None or scores.masks:
        return None
    scores.scale *= factor
    return scores


def _masked_scores(add: ir.Node) -> _Scores | None:
    """Scores plus a mask, in any order."""
    for inner, mask in (add.inputs, add.inputs[::-1]):
        scores = _scores(inner)
        if scores is None or mask is None:
            continue
        if is_static(mask) and len(shape_of(mask)) == 4:
            scores.masks.append(mask)
            return scores
    return None


def _untransposed(value: ir.Value, b: Builder) -> tuple[ir.Value, float]:
    """Keys [B, H, T, D] of transposed ones [B, H, D, T], and the numbers they are multiplied by."""
    value, factor = unscaled(value)
    transpose = produced_by(value, "Transpose")
    if transpose is not None and transpose.inputs[0] is not None:
        source = transpose.inputs[0]
        perm = tuple(attribute_of(transpose, "perm", ()))
        if perm[:2] == (0, 1):
            rest, more = unscaled(source)
            return rest, factor * more
        if len(perm) == 4:
            # One Transpose also brings heads to the front: all but the last exchange stays.
            return b.transpose(source, (perm[0], perm[1], perm[3], perm[2])), factor
    flat_source = _before_flat_transpose(value)
    if flat_source is not None:
        rest, more = unscaled(flat_source)
        return rest, factor * more
    return b.transpose(value, (0, 1, 3, 2)), factor


def _before_flat_transpose(value: ir.Value) -> ir.Value | None:
    """x of Reshape(Transpose(Reshape(x))), by which torch.onnx transposes all heads in a row."""
    reshape = produced_by(value, "Reshape")
    transpose = produced_by(reshape.inputs[0], "Transpose") if reshape is not None else None
    flat = produced_by(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is None or flat is None:
        return None
    if tuple(attribute_of(transpose, "perm", ())) != (0, 2, 1):
        return None
    source = flat.inputs[0]
    batch, heads, rows, columns = shape_of(value)
    if not is_heads(source) or shape_of(source) != (batch, heads, columns, rows):
        return None
    return source


def _ungrouped(k: ir.Value, v: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Keys and values before they are repeated for the heads that share them."""
    keys, values = _unrepeated(k), _unrepeated(v)
    if keys is None or values is None or shape_of(keys)[1] != shape_of(values)[1]:
        return k, v
    return keys, values


def _unrepeated(value: ir.Value) -> ir.Value | None:
    """x [B, G, T, D] of Reshape(Expand(Unsqueeze(x, 2), [B, G, N, T, D]), [B, G * N, T, D])."""
    reshape = produced_by(value, "Reshape")
    expand = produced_by(reshape.inputs[0], "Expand") if reshape is not None else None
    single = producer_of(expand.inputs[0]) if expand is not None else None
    if expand is None or single is None or single.op_type not in ("Unsqueeze", "Reshape"):
        return None
    x = single.inputs[0]
    if not is_heads(x):
        return None
    batch, groups, *rest = shape_of(x)
    expanded = shape_of(expand.outputs[0])
    if shape_of(expand.inputs[0]) != (batch, groups, 1, *rest) or len(expanded) != 5:
        return None
    repeats = expanded[2]
    if expanded != (batch, groups, repeats, *rest):
        return None
    return x if shape_of(value) == (batch, groups * repeats, *rest) else None


def _whole(mask: ir.Value, queries: int, keys: int, b: Builder) -> ir.Value:
    """A mask with a row for each query and a column for each key, which onnxruntime asks for."""
    shape = (*shape_of(mask)[:2], queries, keys)
    if shape_of(mask) == shape:
        return mask
    return b.op("Expand", [mask, b.const(np.array(shape, np.int64), "shape")])


def _zero_where_masked(result: ir.Value, mask: ir.Value, b: Builder) -> ir.Value:
    """Zeros in the rows of which the mask allows nothing."""
    array = constant_of(mask)
    if array is not None:
        allowed = (array > -np.inf).any(-1, keepdims=True)
        if allowed.all():
            return result
        nothing = b.const(~allowed, "nothing")
    else:
        axes = b.const(np.array([-1], np.int64), "axes")
        largest = b.op("ReduceMax", [mask, axes], {"keepdims": 1})
        nothing = b.op("Equal", [largest, b.scalar(-np.inf, "nothing")])
    return b.op("Where", [nothing, b.scalar(0.0, "zero"), result])
