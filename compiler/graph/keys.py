"""Names that the whole compiler shares: the dialect, the opset, keys of metadata, and what nodes
are called."""

from __future__ import annotations

import onnx_ir as ir

DIALECT = "edgetpu"
OPSET = 23
IR_VERSION = 11
ORIGIN = "edgetpu.origin"
LOWERING_REASON = "edgetpu.reason"  # why a lowering left a node in ONNX
HOST_REASON = "edgetpu.host"  # why a pass keeps a node on the host although the TPU has it
BALANCED = "edgetpu.balanced"  # on the Mul that undoes what the weights of a normalised product are divided by

Shape = tuple[int, ...]


def is_current(model: ir.Model) -> bool:
    """Whether a model has the operators that passes write; the importer cannot raise every opset."""
    return model.graph.opset_imports.get("", OPSET) >= OPSET


def key_of(node: ir.Node) -> tuple[str, str]:
    """(domain, operator type) of a node, '' for ONNX's own domain."""
    return ("" if node.domain == "ai.onnx" else node.domain, node.op_type)


def operator_name(node: ir.Node) -> str:
    """Operator name as people write it: 'Conv', 'edgetpu.Conv2D'."""
    domain, op_type = key_of(node)
    return f"{domain}.{op_type}" if domain else op_type


def origin_of(node: ir.Node) -> str:
    """Name of the node of the source model that a node comes from."""
    return node.metadata_props.get(ORIGIN) or node.name or (node.outputs[0].name or "")
