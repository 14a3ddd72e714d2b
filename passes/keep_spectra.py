"""Keep on the host what leads from the inputs to a logarithm or a root, as in spectra of sound.

    Log(MatMul(Conv(samples)^2, mel))      Sqrt(Conv(samples, sines)^2 + Conv(samples, cosines)^2)

Powers of sound reach over many orders of magnitude and logarithms tell the small ones apart; int8
makes zeros of them.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from compiler.graph import HOST_REASON, is_constant
from passes.context import PassContext

REASON = "it leads to a logarithm or a root, which need small values that int8 rounds to zero"
_LINEAR = ("Conv", "MatMul", "Gemm", "STFT", "DFT")
# What has a threshold, or a state: a network begins here, not a spectrum.
_NETWORK = (
    *(
        "Attention",
        "Celu",
        "Elu",
        "Erf",
        "Gelu",
        "GRU",
        "HardSigmoid",
        "HardSwish",
        "If",
        "LeakyRelu",
        "Loop",
        "LSTM",
    ),
    *(
        "MaxPool",
        "Mish",
        "PRelu",
        "Relu",
        "RNN",
        "Scan",
        "Selu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Swish",
        "Tanh",
    ),
)
# The root of a mean square belongs to a normalisation.
_MEANS = ("ReduceMean", "GlobalAveragePool")


def run(model: ir.Model, context: PassContext) -> None:
    for node in model.graph:
        if node.op_type in ("Log", "Sqrt"):
            before = _before(node, _NETWORK if node.op_type == "Log" else (*_NETWORK, *_MEANS))
            if any(inner.op_type in _LINEAR for inner in before):
                for inner in before:
                    inner.metadata_props[HOST_REASON] = REASON


def _before(node: ir.Node, stops: Collection[str]) -> set[ir.Node]:
    """All nodes that lead from the inputs to `node`; none where one of them stops that."""
    found: set[ir.Node] = set()
    left = list(node.inputs)
    while left:
        value = left.pop()
        if value is None or is_constant(value) or value.is_graph_input():
            continue
        made = value.producer()
        if made is None or made.domain not in ("", "ai.onnx") or made.op_type in stops:
            return set()
        if made not in found:
            found.add(made)
            left += made.inputs
    return found
