"""Names of nodes: unique ones, and the name in the user's file that each node comes from."""

from __future__ import annotations

import onnx_ir as ir

from compiler.graph import ORIGIN


def name_nodes(graph: ir.Graph) -> None:
    """Give each node a unique name, and record it as the node's origin unless it has one."""
    seen: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        while name in seen:
            name = f"{name}_{index}"
        seen.add(name)
        node.name = name
        node.metadata_props.setdefault(ORIGIN, name)
