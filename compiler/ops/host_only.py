"""Operators that the Edge TPU does not have, each with its reason: onnxruntime runs them on the
host."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_ir as ir

from compiler.graph import (
    Builder,
    attribute_of,
    constant_of,
    element_count,
    input_at,
    is_static,
    shape_of,
)
from compiler.ops.common import FLOAT_BYTES, Moves, Operator, RefuseError, static_tensors
from compiler.ops.rules import Builtin, OpInfo, Rule, example
from compiler.targets import Target

# Source of every line: the operator table of coral.ai/docs/edgetpu/models-intro, which lists what
# is supported.
_NO_MATRICES = "the Edge TPU multiplies by constant weights only (no BATCH_MATMUL)"
_NO_DIVISION = "the Edge TPU has no division by a computed deviation"
# A score below this is taken to say that nothing is there.
_LEAST_THRESHOLD = 0.01
_ROWS_IN_FLOAT = "in int8 would lose too much; it stays exact in float"


def attention_macs(node: ir.Node) -> int:
    """Q K^T and the product of its softmax with V: keys are [..., length, size of a head]."""
    length = shape_of(node.inputs[1])[-2]
    return 2 * math.prod(shape_of(node.outputs[0])) * length


def cached_attention_macs(node: ir.Node) -> int:
    """As of Attention, over half of the cache's places [batch, heads, places, size]: so many are
    filled, on average."""
    places = shape_of(node.inputs[3])[2]
    return math.prod(shape_of(node.outputs[0])) * places


def cached_attention_bytes(node: ir.Node) -> int:
    """The cache is written in place, and read as far as it is filled: half, on average."""
    cache = 0
    others = 0
    for value in static_tensors(node):
        is_cache = len(shape_of(value)) == 4
        if not is_cache:
            others += element_count(value)
        elif value.is_graph_input():
            cache += element_count(value)
    return FLOAT_BYTES // 2 * cache + FLOAT_BYTES * others


def blocked_product_macs(node: ir.Node) -> int:
    """Of MatMulNBits: K inputs and N outputs of each row."""
    x = node.inputs[0]
    assert x is not None
    outputs = int(attribute_of(node, "N"))
    return element_count(x) * outputs


def blocked_product_bytes(node: ir.Node) -> int:
    """Of MatMulNBits: codes of several bits are packed into bytes, scales are floats."""
    total = 0
    for value in static_tensors(node):
        is_packed = value.dtype == ir.DataType.UINT8
        total += element_count(value) * (1 if is_packed else FLOAT_BYTES)
    return total


def recurrent_macs(node: ir.Node) -> int:
    """Of LSTM, GRU and RNN: the weights of an input [steps, batch, size] and of the state, at each
    step for each sequence. Both are [directions, gates * hidden, size]."""
    x, of_input, of_state = node.inputs[:3]
    if not is_static(of_state):
        return 0
    steps_and_batch = math.prod(shape_of(x)[:2])
    return steps_and_batch * (math.prod(shape_of(of_input)) + math.prod(shape_of(of_state)))


def suppressed_scores(node: ir.Node) -> int:
    """Of NonMaxSuppression: the scores [batch, classes, boxes] that it sorts and compares.

    Those below its threshold are only read. A threshold of zero, or so little that it is none, as
    SSD networks have it, lets all pass; others are assumed to leave a tenth.
    """
    scores = input_at(node, 1)
    if not is_static(scores):
        return 0
    threshold = constant_of(input_at(node, 4))
    passes_all = threshold is None or float(threshold.flat[0]) < _LEAST_THRESHOLD
    return math.prod(shape_of(scores)) // (1 if passes_all else 10)


def _refused(operator: Operator) -> Operator:
    """The declaration, with a lowering that gives its reason."""
    reason = operator.host_reason
    if reason is None:
        return operator

    def lower(node: ir.Node, builder: Builder) -> None:
        raise RefuseError(reason)

    return replace(operator, lower=lower)


def _packed_axis(op: OpInfo, target: Target) -> str | None:
    axis = op.options.get("axis", 0)
    return f"it packs along axis {axis}" if axis == 0 else None


def _squeezed(op: OpInfo, target: Target) -> str | None:
    x, y = op.inputs[0], op.outputs[0]
    assert x is not None
    removed = len(x.shape) - len(y.shape)
    is_leading = x.shape[removed:] == y.shape and set(x.shape[:removed]) <= {1}
    return None if is_leading else f"it makes {list(y.shape)} of {list(x.shape)}"


def _pack(axis: int, *packed: int) -> OpInfo:
    return example("PACK", (8, 4), (8, 4), packed, axis=axis)


_PACK_RULES = (
    Rule(
        "it does not pack along the batch dimension",
        _packed_axis,
        "documented",
        accepts=_pack(1, 8, 2, 4),
        refuses=_pack(0, 2, 8, 4),
    ),
)
_SQUEEZE_RULES = (
    Rule(
        "it removes leading dimensions only",
        _squeezed,
        "documented",
        accepts=example("SQUEEZE", (1, 5, 10), (5, 10)),
        refuses=example("SQUEEZE", (5, 1, 10), (5, 10)),
    ),
)

# On the Edge TPU's list, but not written by this compiler.
BUILTINS = (
    Builtin("EXPAND_DIMS", 1),
    Builtin("L2_NORMALIZATION", 2),
    Builtin("PACK", 2, _PACK_RULES),
    Builtin("RSQRT", 2),
    Builtin("SLICE", 2),
    Builtin("SQUARED_DIFFERENCE", 2),
    Builtin("SQUEEZE", 1, _SQUEEZE_RULES),
    Builtin("TILE", 1),
    Builtin("UNIDIRECTIONAL_SEQUENCE_LSTM", 1),
)

_DECLARED = (
    Operator("Attention", host_reason=_NO_MATRICES, macs=attention_macs),
    Operator("Cast", host_reason="the Edge TPU has no CAST", moves=Moves.ELEMENTS),
    Operator("DepthToSpace", host_reason="the Edge TPU has no DEPTH_TO_SPACE"),
    Operator("Elu", host_reason="the Edge TPU has no ELU"),
    Operator("Erf", host_reason="the Edge TPU has no ERF"),
    Operator("Exp", host_reason="the Edge TPU has no EXP"),
    Operator("GroupNormalization", host_reason=_NO_DIVISION),
    Operator("InstanceNormalization", host_reason=_NO_DIVISION),
    Operator(
        "LayerNormalization",
        host_reason=f"mean and deviation of each row {_ROWS_IN_FLOAT}",
        normalises_rows=True,
    ),
    Operator("Log", host_reason="the Edge TPU has no LOG"),
    Operator("LogSoftmax", host_reason="the Edge TPU has no LOG_SOFTMAX"),
    Operator("GRU", macs=recurrent_macs, sequential=True),
    Operator("LSTM", macs=recurrent_macs, sequential=True),
    Operator("RNN", macs=recurrent_macs, sequential=True),
    Operator("NonMaxSuppression", host_scalars=suppressed_scores),
    Operator("LRN", host_reason="the Edge TPU has no LOCAL_RESPONSE_NORMALIZATION"),
    Operator(
        "RMSNormalization",
        host_reason=f"the deviation of each row {_ROWS_IN_FLOAT}",
        normalises_rows=True,
    ),
    Operator(
        "RotaryEmbedding",
        host_reason="it turns pairs of values for the attention on the host",
    ),
    Operator("Sqrt", host_reason="the Edge TPU has no SQRT"),
    Operator("TopK", host_reason="the Edge TPU has no TOPK_V2"),
    Operator("Where", host_reason="the Edge TPU has no SELECT"),
    Operator(
        "GroupQueryAttention",
        "com.microsoft",
        host_reason=_NO_MATRICES,
        macs=cached_attention_macs,
        host_bytes=cached_attention_bytes,
    ),
    Operator(
        "MatMulNBits",
        "com.microsoft",
        host_reason="its weights have a scale for each block of inputs",
        macs=blocked_product_macs,
        host_bytes=blocked_product_bytes,
    ),
    Operator(
        "SkipSimplifiedLayerNormalization",
        "com.microsoft",
        host_reason=f"the deviation of each row {_ROWS_IN_FLOAT}",
        normalises_rows=True,
    ),
    Operator("IsNaN", reads_nan=True),
    # Trees have branches for values that are missing.
    Operator("Imputer", "ai.onnx.ml", reads_nan=True),
    Operator("TreeEnsemble", "ai.onnx.ml", reads_nan=True),
    Operator("TreeEnsembleClassifier", "ai.onnx.ml", reads_nan=True),
    Operator("TreeEnsembleRegressor", "ai.onnx.ml", reads_nan=True),
)

OPERATORS = tuple(map(_refused, _DECLARED))
