"""Operators that the Edge TPU does not have: onnxruntime runs them on the host. Each with its reason."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from compiler import ir as cir
from compiler.ops.common import Operator, RefuseError

# Source of every line: the operator table of coral.ai/docs/edgetpu/models-intro, which lists what is supported.
REASONS = {
    "Attention": "the Edge TPU multiplies by constant weights only (no BATCH_MATMUL)",
    "Cast": "the Edge TPU has no CAST",
    "Elu": "the Edge TPU has no ELU",
    "Exp": "the Edge TPU has no EXP",
    "GroupNormalization": "the Edge TPU has no division by a computed deviation",
    "InstanceNormalization": "the Edge TPU has no division by a computed deviation",
    "LayerNormalization": "mean and deviation of each row in int8 would lose too much; it stays exact in float",
    "Log": "the Edge TPU has no LOG",
    "LRN": "the Edge TPU has no LOCAL_RESPONSE_NORMALIZATION",
    "RMSNormalization": "the deviation of each row in int8 would lose too much; it stays exact in float",
    "RotaryEmbedding": "the Edge TPU has no GATHER for the angles",
    "Sqrt": "the Edge TPU has no SQRT",
    "TopK": "the Edge TPU has no TOPK_V2",
    "Where": "the Edge TPU has no SELECT",
}


def _refusing(reason: str) -> Callable[[ir.Node, cir.Builder], None]:
    def lower(node: ir.Node, b: cir.Builder) -> None:
        raise RefuseError(reason)

    return lower


OPERATORS = tuple(Operator(op_type, lower=_refusing(reason)) for op_type, reason in REASONS.items())
