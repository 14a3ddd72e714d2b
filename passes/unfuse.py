"""Decompose the operators that onnxruntime's optimizer and optimum fuse (com.microsoft).

    SkipLayerNormalization(x, skip, gain, bias)   ->  LayerNormalization(Add(x, skip), gain, bias)
    Attention(x, weights, bias, mask)             ->  q, k, v = Split(MatMul(x, weights) + bias)
                                                      Attention(q, k, v, mask)

Later passes then see the products with weights in them. Each operator has a rule, which refuses
forms that ONNX has no words for: a cache, packed rows, other masks. Such a node stays, and
onnxruntime runs it on the host. What the operators compute:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
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

DOMAIN = "com.microsoft"
# onnxruntime adds masks to the scores: 0 for what may be seen, mask_filter_value for the rest.
MASK_FILTER = -10000.0


def run(model: ir.Model, context: PassContext) -> None:
    if not any(key_of(node) in RULES for node in model.graph):
        return
    names = Names(model.graph)
    for node in float32_nodes(model.graph):
        rule = RULES.get(key_of(node))
        if rule is not None:
            _apply(rule, node, Builder(model, names, node), context)
        elif any(value.shape is None for value in node.outputs):
            # ONNX's inference ended at an operator that it does not know.
            infer_node(model, node)
    # Shapes behind are known now, and what depends on them only can be evaluated.
    fold_constants.run(model, context)


def _apply(rule: Rule, node: ir.Node, b: Builder, context: PassContext) -> None:
    try:
        results = rule(node, b)
    except RefuseError as reason:
        context.missed(node, f"{node.op_type}: {reason}")
        return
    others = node.outputs[len(results) :]
    if any(value.uses() or value.is_graph_output() for value in others):
        context.missed(node, f"{node.op_type}: more than its first outputs are read")
        return
    node.resize_outputs(len(results))
    b.replace(*results)
    context.matched(node)


def _sum(b: Builder, *values: ir.Value | None) -> ir.Value:
    """The sum of the values that are there, of which there is at least one."""
    first, *rest = [value for value in values if value is not None]
    for value in rest:
        first = b.op("Add", [first, value])
    return first


def _skip_norm(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Layer or RMS normalisation of a sum; the sum itself is the fourth output."""
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    x, skip, gain = node.inputs[:3]
    addend = input_at(node, 3 if simplified else 4)
    total = _sum(b, x, skip, addend)
    attributes = {"axis": -1, "epsilon": float(attribute_of(node, "epsilon", 1e-12))}
    if simplified:
        y = b.op("RMSNormalization", [total, gain], attributes)
    else:
        bias = input_at(node, 3)
        inputs = [total, gain] if bias is None else [total, gain, bias]
        y = b.op("LayerNormalization", inputs, attributes)
    if len(node.outputs) > 3 and node.outputs[3].name:
        given = node.outputs[3]
        ir.convenience.replace_all_uses_with(given, total, replace_graph_outputs=True)
        # The sum may be an output of the model, whose name users know.
        name = given.name
        given.name = f"{name}/replaced"
        total.name = name
    return [y]


def _gelu(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Gelu of x + bias; FastGelu is the approximation by tanh."""
    approximate = "tanh" if node.op_type == "FastGelu" else "none"
    x = _sum(b, node.inputs[0], input_at(node, 1))
    return [b.op("Gelu", [x], {"approximate": approximate})]


def _quick_gelu(node: ir.Node, b: Builder) -> list[ir.Value]:
    """x * sigmoid(alpha * x)."""
    (x,) = node.inputs
    slope = b.scalar(float(attribute_of(node, "alpha", 1.702)), "slope")
    gate = b.op("Sigmoid", [b.op("Mul", [x, slope])])
    return [b.op("Mul", [x, gate])]


def _fused_matmul(node: ir.Node, b: Builder) -> list[ir.Value]:
    """alpha * A B, either of which may be transposed."""
    if attribute_of(node, "transBatchA", 0) or attribute_of(node, "transBatchB", 0):
        raise RefuseError("its batch is transposed")
    left, right = node.inputs
    assert left is not None and right is not None
    if attribute_of(node, "transA", 0):
        left = _transposed(b, left)
    if attribute_of(node, "transB", 0):
        right = _transposed(b, right)
    y = b.op("MatMul", [left, right])
    alpha = float(attribute_of(node, "alpha", 1.0))
    return [y if alpha == 1 else b.op("Mul", [y, b.scalar(alpha, "alpha")])]


def _transposed(b: Builder, value: ir.Value) -> ir.Value:
    """Matrices with their last two axes exchanged."""
    if value.shape is None:
        raise RefuseError("its rank is not known")
    rank = len(value.shape)
    return b.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


def _fused_gemm(node: ir.Node, b: Builder) -> list[ir.Value]:
    return _with_activation("Gemm", node, b)


def _fused_conv(node: ir.Node, b: Builder) -> list[ir.Value]:
    return _with_activation("Conv", node, b)


def _with_activation(plain: str, node: ir.Node, b: Builder) -> list[ir.Value]:
    """A layer, an addend of its result, and an activation."""
    own = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if not name.startswith("activation")
    }
    y = b.op(plain, list(node.inputs[:3]), own)
    if len(node.inputs) > 3:
        y = _sum(b, y, node.inputs[3])
    numbers = [float(number) for number in attribute_of(node, "activation_params", ())]
    match attribute_of(node, "activation", ""):
        case "":
            return [y]
        case "Relu" | "Sigmoid" | "Tanh" as name:
            return [b.op(name, [y])]
        case "Clip":
            return [b.op("Clip", [y, *(b.scalar(number, "bound") for number in numbers)])]
        case "LeakyRelu":
            return [b.op("LeakyRelu", [y], {"alpha": numbers[0] if numbers else 0.01})]
        case other:
            raise RefuseError(f"its activation is {other}")


def _attention(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Self-attention whose queries, keys and values are one product; no cache, no rotary
    embedding."""
    x, weights, bias = node.inputs[:3]
    past_or_bias = [input_at(node, index) for index in (4, 5, 6)]
    if any(value is not None for value in past_or_bias) or attribute_of(node, "do_rotary", 0):
        raise RefuseError("it has a cache, a bias of its scores, or turns its rows")
    if x is None or weights is None or not is_static(x) or not is_static(weights):
        raise RefuseError("its shape is not known")
    batch, tokens, _ = shape_of(x)
    sizes = [int(size) for size in attribute_of(node, "qkv_hidden_sizes", ()) or ()]
    if not sizes:
        sizes = [shape_of(weights)[1] // 3] * 3
    joined = _sum(b, b.op("MatMul", [x, weights]), bias)
    cuts = b.const(np.asarray(sizes, np.int64), "sizes")
    parts = b.ops("Split", [joined, cuts], {"axis": -1}, outputs=3)
    mask = _mask(node, b, input_at(node, 3), (batch, tokens))
    return [_attended(node, b, parts, mask)]


def _multi_head(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Attention of rows [B, S, D] that are projected already; no cache."""
    rows = [input_at(node, index) for index in range(3)]
    if any(value is not None for value in node.inputs[6:]):
        raise RefuseError("it has a cache")
    if not all(is_static(value) and len(shape_of(value)) == 3 for value in rows):
        raise RefuseError("its rows are packed, or their shape is not known")
    bias = input_at(node, 3)
    parts = []
    start = 0
    for value in rows:
        width = shape_of(value)[2]
        own_bias = _columns(b, bias, start, start + width) if bias is not None else None
        parts.append(_sum(b, value, own_bias))
        start += width
    batch, tokens, _ = shape_of(rows[1])
    masks = [_mask(node, b, input_at(node, 4), (batch, tokens)), input_at(node, 5)]
    mask = _sum(b, *masks) if masks != [None, None] else None
    return [_attended(node, b, parts, mask)]


def _columns(b: Builder, vector: ir.Value, begin: int, end: int) -> ir.Value:
    bounds = [b.const(np.array([number], np.int64), "bound") for number in (begin, end, 0)]
    return b.op("Slice", [vector, *bounds])


def _attended(
    node: ir.Node, b: Builder, rows: Sequence[ir.Value], mask: ir.Value | None
) -> ir.Value:
    """Attention of queries, keys and values [B, S, D], whose heads stand side by side.

    `mask` is added to the scores. The result is [B, S, D] too.
    """
    heads = int(attribute_of(node, "num_heads"))
    batch, queries, width = shape_of(rows[0])
    keys = shape_of(rows[1])[1]
    inputs = []
    for value in rows:
        *outer, columns = shape_of(value)
        apart = b.reshape(value, (*outer, heads, columns // heads))
        inputs.append(b.transpose(apart, (0, 2, 1, 3)))
    if mask is not None:
        whole = b.const(np.array([batch, 1, queries, keys], np.int64), "whole")
        inputs.append(b.op("Expand", [mask, whole]))
    scale = float(attribute_of(node, "scale", 0.0)) or (width // heads) ** -0.5
    causal = int(attribute_of(node, "unidirectional", 0))
    y = b.op("Attention", inputs, {"scale": scale, "is_causal": causal})
    return b.reshape(b.transpose(y, (0, 2, 1, 3)), (batch, queries, shape_of(rows[2])[2]))


def _rotary(node: ir.Node, b: Builder) -> list[ir.Value]:
    """Rotary embedding with a position for each token."""
    x, places, cos, sin = node.inputs
    if x is None or places is None or not all(map(is_static, (x, places, cos))):
        raise RefuseError("its shape is not known")
    rank = len(shape_of(x))
    tokens = shape_of(x)[1 if rank == 3 else 2]
    if shape_of(places) != (shape_of(x)[0], tokens) or attribute_of(node, "is_packed_batching", 0):
        raise RefuseError("its positions are an offset, or packed")
    kept = ("interleaved", "num_heads", "rotary_embedding_dim")
    attributes = {name: int(attribute_of(node, name, 0)) for name in kept}
    if rank == 3 and not attributes["num_heads"]:
        # A head is as wide as the angles of its two halves.
        attributes["num_heads"] = shape_of(x)[2] // (2 * shape_of(cos)[1])
    return [b.op("RotaryEmbedding", [x, cos, sin, places], attributes)]


def _mask(
    node: ir.Node, b: Builder, given: ir.Value | None, sizes: tuple[int, int]
) -> ir.Value | None:
    """What is added to the scores, [B, 1, 1, T].

    It is given as lengths [B], or as a mask [B, T] of what may be seen.
    """
    if given is None:
        return None
    batch, tokens = sizes
    shape = shape_of(given) if is_static(given) else ()
    if shape == (batch,):
        places = b.const(np.arange(tokens, dtype=np.int32).reshape(1, 1, 1, tokens), "places")
        seen = b.op("Less", [places, b.reshape(given, (batch, 1, 1, 1))])
    elif shape == (batch, tokens):
        flags = b.reshape(given, (batch, 1, 1, tokens))
        seen = b.op("Cast", [flags], {"to": ir.DataType.BOOL.value})
    else:
        raise RefuseError(f"its mask is {list(shape)}")
    hidden = float(attribute_of(node, "mask_filter_value", MASK_FILTER))
    return b.op("Where", [seen, b.scalar(0.0, "seen"), b.scalar(hidden, "hidden")])


Rule = Callable[[ir.Node, Builder], Sequence[ir.Value]]
RULES: dict[tuple[str, str], Rule] = {
    (DOMAIN, "SkipLayerNormalization"): _skip_norm,
    (DOMAIN, "SkipSimplifiedLayerNormalization"): _skip_norm,
    (DOMAIN, "BiasGelu"): _gelu,
    (DOMAIN, "FastGelu"): _gelu,
    (DOMAIN, "Gelu"): _gelu,
    (DOMAIN, "QuickGelu"): _quick_gelu,
    (DOMAIN, "FusedMatMul"): _fused_matmul,
    (DOMAIN, "FusedGemm"): _fused_gemm,
    (DOMAIN, "FusedConv"): _fused_conv,
    (DOMAIN, "Attention"): _attention,
    (DOMAIN, "MultiHeadAttention"): _multi_head,
    (DOMAIN, "RotaryEmbedding"): _rotary,
}
