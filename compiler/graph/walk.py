"""Who makes and who reads a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from compiler.graph.keys import key_of
from compiler.graph.values import is_constant


def activations_of(node: ir.Node) -> list[ir.Value]:
    """Inputs that are computed at run time."""
    return [v for v in node.inputs if v is not None and not is_constant(v)]


def activations_around(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """All activations that nodes read or make, each once."""
    return list(dict.fromkeys(v for node in nodes for v in [*activations_of(node), *node.outputs]))


def consumers_of(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once, in the order of first use."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value, None where there are several or the value leaves the graph."""
    users = consumers_of(value)
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def produced_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that made `value` if it is an operator of that type."""
    node = value.producer() if value is not None else None
    return node if node is not None and key_of(node) == (domain, op_type) else None


def all_activations(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every activation of a graph: its inputs, then node outputs in order."""
    yield from graph.inputs
    for node in graph:
        yield from (v for v in node.outputs if v.name)


def values_read(node: ir.Node) -> list[ir.Value]:
    """Every value of the graph that a node needs, those that its subgraphs capture included; each
    once."""
    found = dict.fromkeys(v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        graphs = {"GRAPH": [attribute.value], "GRAPHS": attribute.value}.get(
            attribute.type.name, []
        )
        for graph in graphs:
            local = set(graph.inputs) | set(graph.initializers.values())
            for inner in graph:
                found.update(dict.fromkeys(v for v in values_read(inner) if v not in local))
                local.update(inner.outputs)
            found.update(dict.fromkeys(v for v in graph.outputs if v not in local))
    return list(found)
