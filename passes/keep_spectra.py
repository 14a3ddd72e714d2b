"""Keep on the host what leads from the inputs to a logarithm or a root, as in spectra of sound.

    Log(MatMul(Conv(samples)^2, mel))      Sqrt(Conv(samples, sines)^2 + Conv(samples, cosines)^2)

Powers of sound reach over many orders of magnitude and logarithms tell the small ones apart; int8 makes zeros of them.
"""

from __future__ import annotations

import onnx_ir as ir

from compiler import ir as cir
from compiler.targets import Target

REASON = "it leads to a logarithm or a root, which need small values that int8 rounds to zero"
_LINEAR = ("Conv", "MatMul", "Gemm", "STFT", "DFT")
# What has a threshold, or a state: a network begins here, not a spectrum.
_NETWORK = (
    *("Attention", "Celu", "Elu", "Erf", "Gelu", "GRU", "HardSigmoid", "HardSwish", "If", "LeakyRelu", "Loop", "LSTM"),
    *("MaxPool", "Mish", "PRelu", "Relu", "RNN", "Scan", "Selu", "Sigmoid", "Softmax", "Softplus", "Swish", "Tanh"),
)


def run(model: ir.Model, target: Target) -> None:
    for node in model.graph:
        if node.op_type in ("Log", "Sqrt"):
            found: set[ir.Node] = set()
            if _leads(node.inputs[0], found) and any(n.op_type in _LINEAR for n in found):
                for inner in found:
                    inner.metadata_props[cir.HOST] = REASON


def _leads(value: ir.Value | None, found: set[ir.Node]) -> bool:
    """Whether no network leads from the inputs to `value`; collects the nodes that do."""
    if value is None or cir.is_const(value) or value.is_graph_input():
        return True
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or node.op_type in _NETWORK:
        return False
    if node in found:
        return True
    found.add(node)
    return all(_leads(v, found) for v in node.inputs)
