"""Names that the whole compiler shares: the dialect, opsets, metadata, what nodes are called."""

from __future__ import annotations

import onnx_ir as ir

# The domain of the operators that the Edge TPU has and ONNX lacks.
DIALECT = "edgetpu"
# The opset that passes write, and the first whose operators have the same form.
OPSET = 23
RAISED = 21
IR_VERSION = 11

# Keys of a node's metadata: the node of the source model that it comes from, why a lowering left it
# in ONNX, why a pass keeps it on the host although the Edge TPU has it.
ORIGIN = "edgetpu.origin"
LOWERING_REASON = "edgetpu.reason"
HOST_REASON = "edgetpu.host"
# On the Mul that undoes what the weights of a normalised product are divided by.
BALANCED = "edgetpu.balanced"
# A key of a model's metadata: the file computes in float16.
WIDENED = "edgetpu.widened"

Shape = tuple[int, ...]


def is_current(model: ir.Model) -> bool:
    """Whether a model has all operators that passes write; not every opset can be raised."""
    return model.graph.opset_imports.get("", OPSET) >= OPSET


def is_raised(model: ir.Model) -> bool:
    """Whether the operators of a model have the form and the meaning that passes and rules know."""
    return model.graph.opset_imports.get("", OPSET) >= RAISED


def key_of(node: ir.Node) -> tuple[str, str]:
    """(domain, operator type) of a node, '' for ONNX's own domain."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return domain, node.op_type


def operator_name(node: ir.Node) -> str:
    """Operator name as people write it: 'Conv', 'edgetpu.Conv2D'."""
    domain, op_type = key_of(node)
    return f"{domain}.{op_type}" if domain else op_type


def origin_of(node: ir.Node) -> str:
    """Name of the node of the source model that a node comes from."""
    return node.metadata_props.get(ORIGIN) or node.name or (node.outputs[0].name or "")
