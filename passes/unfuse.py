"""Operators that onnxruntime's optimizer and optimum fuse (com.microsoft) become ONNX's own, so
that later passes see the products with weights in them.

SkipLayerNormalization(x, skip, gain, bias)  ->  LayerNormalization(Add(x, skip), gain, bias)
Attention(x, weights, bias, mask)            ->  Attention of three parts of MatMul(x, weights) +
bias

What they compute: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    Builder,
    Names,
    attribute_of,
    float32_nodes,
    infer_node,
    input_at,
    is_static,
    key_of,
    shape_of,
)
from compiler.ops.common import RefuseError
from passes import fold_constants
from passes.context import PassContext

_DOMAIN = "com.microsoft"
# ORT's masks are added: this to what may be seen, mask_filter_value to the rest.
_FILTER = -10000.0


def run(model: ir.Model, context: PassContext) -> None:
    if not any(key_of(node) in _RULES for node in model.graph):
        return
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        rule = _RULES.get(key_of(node))
        if rule is None:
            if any(
                v.shape is None for v in node.outputs
            ):  # ONNX's inference ended at what it does not know
                infer_node(model, node)
            continue
        b = Builder(model, names, node)
        try:
            results = rule(node, b)
        except RefuseError:
            continue  # it stays; onnxruntime runs it on the host
        if not any(v.uses() or v.is_graph_output() for v in node.outputs[len(results) :]):
            node.resize_outputs(len(results))
            b.replace(*results)
    fold_constants.run(model, context)  # shapes behind are known now


def _sum(b: Builder, *values: ir.Value | None) -> ir.Value:
    first, *rest = [v for v in values if v is not None]
    for value in rest:
        first = b.op("Add", [first, value])
    return first


def _skip(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Layer or RMS normalisation of a sum; the sum itself is the fourth output."""
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    x, skip, gain = node.inputs[:3]
    total = _sum(b, x, skip, input_at(node, 3 if simplified else 4))
    attributes = {"axis": -1, "epsilon": float(attribute_of(node, "epsilon", 1e-12))}
    if simplified:
        y = b.op("RMSNormalization", [total, gain], attributes)
    else:
        bias = input_at(node, 3)
        y = b.op(
            "LayerNormalization", [total, gain, *([bias] if bias is not None else [])], attributes
        )
    if len(node.outputs) > 3 and node.outputs[3].name:
        given = node.outputs[3]
        ir.convenience.replace_all_uses_with(given, total, replace_graph_outputs=True)
        # The sum may be an output of the model, whose name users know.
        given.name, total.name = f"{given.name}/replaced", given.name
    return [y]


def _gelu(node: ir.Node, b: Builder) -> list[ir.Value]:
    approximate = "tanh" if node.op_type == "FastGelu" else "none"
    return [
        b.op("Gelu", [_sum(b, node.inputs[0], input_at(node, 1))], {"approximate": approximate})
    ]


def _quick_gelu(node: ir.Node, b: Builder) -> list[ir.Value]:
    (x,) = node.inputs
    slope = b.scalar(float(attribute_of(node, "alpha", 1.702)), "slope")
    return [b.op("Mul", [x, b.op("Sigmoid", [b.op("Mul", [x, slope])])])]


def _fused_matmul(node: ir.Node, b: Builder) -> list[ir.Value]:
    if attribute_of(node, "transBatchA", 0) or attribute_of(node, "transBatchB", 0):
        raise RefuseError("its batch is transposed")
    sides = []
    for value, flag in zip(node.inputs, ("transA", "transB"), strict=True):
        assert value is not None
        sides.append(_turned(b, value) if attribute_of(node, flag, 0) else value)
    y, alpha = b.op("MatMul", sides), float(attribute_of(node, "alpha", 1.0))
    return [y if alpha == 1 else b.op("Mul", [y, b.scalar(alpha, "alpha")])]


def _turned(b: Builder, value: ir.Value) -> ir.Value:
    if value.shape is None:
        raise RefuseError("its rank is not known")
    rank = len(value.shape)
    return b.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


def _with_activation(plain: str) -> Callable[[ir.Node, Builder], list[ir.Value]]:
    def rule(node: ir.Node, b: Builder) -> list[ir.Value]:
        own = {n: a.value for n, a in node.attributes.items() if not n.startswith("activation")}
        kind = attribute_of(node, "activation", "")
        bounds = attribute_of(node, "activation_params", ())
        y = b.op(plain, list(node.inputs[:3]), own)
        if len(node.inputs) > 3:
            y = _sum(b, y, node.inputs[3])
        match kind:
            case "":
                return [y]
            case "Relu" | "Sigmoid" | "Tanh":
                return [b.op(kind, [y])]
            case "Clip":
                return [b.op("Clip", [y, *(b.scalar(float(v), "bound") for v in bounds)])]
            case "LeakyRelu":
                return [b.op("LeakyRelu", [y], {"alpha": float(bounds[0]) if bounds else 0.01})]
        raise RefuseError(f"its activation is {kind}")

    return rule


def _attention(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Self-attention with the products of queries, keys and values in one; no cache, no rotary
    embedding."""
    x, weights, bias = node.inputs[:3]
    sizes = [int(s) for s in attribute_of(node, "qkv_hidden_sizes", ()) or ()]
    if any(input_at(node, i) is not None for i in (4, 5, 6)) or attribute_of(node, "do_rotary", 0):
        raise RefuseError("it has a cache, a bias of its scores, or turns its rows")
    if x is None or weights is None or not is_static(x) or not is_static(weights):
        raise RefuseError("its shape is not known")
    batch, tokens, _ = shape_of(x)
    sizes = sizes or [shape_of(weights)[1] // 3] * 3
    joined = _sum(b, b.op("MatMul", [x, weights]), bias)
    cuts = b.const(np.asarray(sizes, np.int64), "sizes")
    parts = b.ops("Split", [joined, cuts], {"axis": -1}, outputs=3)
    return [_attended(node, b, parts, _mask(node, b, input_at(node, 3), (batch, tokens)))]


def _multi_head(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Attention of rows [B, S, D] that are projected already; no cache."""
    q, k, v = (input_at(node, i) for i in range(3))
    if len(node.inputs) > 6 and any(value is not None for value in node.inputs[6:]):
        raise RefuseError("it has a cache")
    if any(x is None or not is_static(x) or len(shape_of(x)) != 3 for x in (q, k, v)):
        raise RefuseError("its rows are packed, or their shape is not known")
    bias, at, parts = input_at(node, 3), 0, []
    for value in (q, k, v):
        width = shape_of(value)[2]
        bounds = [b.const(np.array([i], np.int64), "bound") for i in (at, at + width, 0)]
        parts.append(_sum(b, value, None if bias is None else b.op("Slice", [bias, *bounds])))
        at += width
    masks = [_mask(node, b, input_at(node, 4), (shape_of(k)[0], shape_of(k)[1])), input_at(node, 5)]
    return [
        _attended(node, b, parts, _sum(b, *masks) if any(m is not None for m in masks) else None)
    ]


def _attended(
    node: ir.Node, b: Builder, rows: Sequence[ir.Value], mask: ir.Value | None
) -> ir.Value:
    """Attention of queries, keys and values [B, S, D], heads side by side; `mask` is added to the
    scores."""
    heads = int(attribute_of(node, "num_heads"))
    (batch, queries, width), keys = shape_of(rows[0]), shape_of(rows[1])[1]
    parts = []
    for value in rows:
        *outer, columns = shape_of(value)
        parts.append(b.transpose(b.reshape(value, (*outer, heads, columns // heads)), (0, 2, 1, 3)))
    if mask is not None:
        parts.append(
            b.op("Expand", [mask, b.const(np.array([batch, 1, queries, keys], np.int64), "whole")])
        )
    scale = float(attribute_of(node, "scale", 0.0)) or (width // heads) ** -0.5
    y = b.op(
        "Attention",
        parts,
        {"scale": scale, "is_causal": int(attribute_of(node, "unidirectional", 0))},
    )
    return b.reshape(b.transpose(y, (0, 2, 1, 3)), (batch, queries, shape_of(rows[2])[2]))


def _rotary(node: ir.Node, b: Builder) -> list[ir.Value]:
    x, places, cos, sin = node.inputs
    if x is None or places is None or not all(map(is_static, (x, places, cos))):
        raise RefuseError("its shape is not known")
    tokens = shape_of(x)[1 if len(shape_of(x)) == 3 else 2]
    if shape_of(places) != (shape_of(x)[0], tokens) or attribute_of(node, "is_packed_batching", 0):
        raise RefuseError("its positions are an offset, or packed")
    found = {
        n: int(attribute_of(node, n, 0))
        for n in ("interleaved", "num_heads", "rotary_embedding_dim")
    }
    if len(shape_of(x)) == 3 and not found["num_heads"]:
        found["num_heads"] = shape_of(x)[2] // (2 * shape_of(cos)[1])
    return [b.op("RotaryEmbedding", [x, cos, sin, places], found)]


def _mask(
    node: ir.Node, b: Builder, given: ir.Value | None, sizes: tuple[int, int]
) -> ir.Value | None:
    """What is added to the scores, [B, 1, 1, T]: from lengths [B] or a mask [B, T] of what may be
    seen."""
    if given is None:
        return None
    batch, tokens = sizes
    shape = shape_of(given) if is_static(given) else ()
    if shape == (batch,):
        places = b.const(np.arange(tokens, dtype=np.int32).reshape(1, 1, 1, tokens), "places")
        seen = b.op("Less", [places, b.reshape(given, (batch, 1, 1, 1))])
    elif shape == (batch, tokens):
        seen = b.op(
            "Cast", [b.reshape(given, (batch, 1, 1, tokens))], {"to": ir.DataType.BOOL.value}
        )
    else:
        raise RefuseError(f"its mask is {list(shape)}")
    hidden = float(attribute_of(node, "mask_filter_value", _FILTER))
    return b.op("Where", [seen, b.scalar(0.0, "seen"), b.scalar(hidden, "hidden")])


Rule = Callable[[ir.Node, Builder], Sequence[ir.Value]]
_RULES: dict[tuple[str, str], Rule] = {
    (_DOMAIN, "SkipLayerNormalization"): _skip,
    (_DOMAIN, "SkipSimplifiedLayerNormalization"): _skip,
    (_DOMAIN, "BiasGelu"): _gelu,
    (_DOMAIN, "FastGelu"): _gelu,
    (_DOMAIN, "Gelu"): _gelu,
    (_DOMAIN, "QuickGelu"): _quick_gelu,
    (_DOMAIN, "FusedMatMul"): _fused_matmul,
    (_DOMAIN, "FusedGemm"): _with_activation("Gemm"),
    (_DOMAIN, "FusedConv"): _with_activation("Conv"),
    (_DOMAIN, "Attention"): _attention,
    (_DOMAIN, "MultiHeadAttention"): _multi_head,
    (_DOMAIN, "RotaryEmbedding"): _rotary,
}
