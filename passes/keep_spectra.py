"""Keep on the host what leads from the inputs to a logarithm or a root, as in spectra of sound.

    Log(MatMul(Conv(samples)^2, mel))    Sqrt(Conv(samples, sines)^2 + Conv(samples, cosines)^2)
        ->  the same, with all in front of Log or Sqrt kept on the host

Powers of sound span many orders of magnitude, and logarithms tell the small ones apart; int8 makes
zeros of them. The walk back ends at an operator that has a threshold or a state: there a network
begins, and the root or logarithm is no spectrum's. Some layer must be among the nodes, else this
is arithmetic that the host runs anyway.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from compiler.graph import HOST_REASON, is_constant
from passes.context import PassContext

REASON = "it leads to a logarithm or a root, which need small values that int8 rounds to zero"
LAYERS = ("Conv", "MatMul", "Gemm", "STFT", "DFT")
# Operators with a threshold, a state or a normalisation: only networks have them.
NETWORK = frozenset({
    "Attention", "Celu", "Elu", "Erf", "GRU", "Gelu", "HardSigmoid", "HardSwish", "If", "LSTM",
    "LeakyRelu", "Loop", "MaxPool", "Mish", "PRelu", "RNN", "Relu", "Scan", "Selu", "Sigmoid",
    "Softmax", "Softplus", "Swish", "Tanh",
})  # fmt: skip
# The root of a mean square belongs to a normalisation.
MEANS = frozenset({"ReduceMean", "GlobalAveragePool"})


def run(model: ir.Model, context: PassContext) -> None:
    for node in model.graph:
        if node.op_type not in ("Log", "Sqrt"):
            continue
        stops = NETWORK if node.op_type == "Log" else NETWORK | MEANS
        before = _leading_to(node, stops)
        if not any(inner.op_type in LAYERS for inner in before):
            continue
        for inner in before:
            inner.metadata_props[HOST_REASON] = REASON
        context.matched(node)


def _leading_to(node: ir.Node, stops: Collection[str]) -> set[ir.Node]:
    """All nodes between the inputs and `node`; none where one of them is among `stops`."""
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
