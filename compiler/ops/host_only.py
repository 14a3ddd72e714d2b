"""Operators that the Edge TPU does not have: onnxruntime runs them on the host. Each with its
reason."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from compiler.graph import Builder
from compiler.ops.common import Operator, RefuseError
from compiler.ops.rules import Builtin

# Source of every line: the operator table of coral.ai/docs/edgetpu/models-intro, which lists what
# is supported.
REASONS = {
    "Attention": "the Edge TPU multiplies by constant weights only (no BATCH_MATMUL)",
    "Cast": "the Edge TPU has no CAST",
    "DepthToSpace": "the Edge TPU has no DEPTH_TO_SPACE",
    "Elu": "the Edge TPU has no ELU",
    "Erf": "the Edge TPU has no ERF",
    "Exp": "the Edge TPU has no EXP",
    "GroupNormalization": "the Edge TPU has no division by a computed deviation",
    "InstanceNormalization": "the Edge TPU has no division by a computed deviation",
    "LayerNormalization": "mean and deviation of each row in int8 would lose too much; it stays exact in float",
    "Log": "the Edge TPU has no LOG",
    "LogSoftmax": "the Edge TPU has no LOG_SOFTMAX",
    "LRN": "the Edge TPU has no LOCAL_RESPONSE_NORMALIZATION",
    "RMSNormalization": "the deviation of each row in int8 would lose too much; it stays exact in float",
    "RotaryEmbedding": "it turns pairs of values for the attention on the host",
    "Sqrt": "the Edge TPU has no SQRT",
    "TopK": "the Edge TPU has no TOPK_V2",
    "Where": "the Edge TPU has no SELECT",
}


def _refusing(reason: str) -> Callable[[ir.Node, Builder], None]:
    def lower(node: ir.Node, b: Builder) -> None:
        raise RefuseError(reason)

    return lower


# On the Edge TPU's list, but not written by this compiler.
BUILTINS = tuple(
    Builtin(name, version)
    for name, version in (
        ("EXPAND_DIMS", 1),
        ("L2_NORMALIZATION", 2),
        ("PACK", 2),
        ("RSQRT", 2),
        ("SLICE", 2),
        ("SQUARED_DIFFERENCE", 2),
        ("SQUEEZE", 1),
        ("TILE", 1),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", 1),
    )
)

OPERATORS = (
    *(Operator(op_type, lower=_refusing(reason)) for op_type, reason in REASONS.items()),
    Operator("GroupQueryAttention", "com.microsoft", lower=_refusing(REASONS["Attention"])),
)
