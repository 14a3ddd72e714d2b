"""Finds who makes and who reads a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from compiler.graph.keys import key_of
from compiler.graph.values import bodies, is_constant


def producer_of(value: ir.Value | None) -> ir.Node | None:
    """The node that made a value, None for an absent one, a constant or an input of the graph."""
    return None if value is None else value.producer()


def produced_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that made `value` if it is an operator of that type."""
    node = producer_of(value)
    if node is None or key_of(node) != (domain, op_type):
        return None
    return node


def activations_of(node: ir.Node) -> list[ir.Value]:
    """Inputs that are computed at run time."""
    return [value for value in node.inputs if value is not None and not is_constant(value)]


def activations_around(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """All activations that nodes read or make, each once, in order of first use."""
    found: dict[ir.Value, None] = {}
    for node in nodes:
        found.update(dict.fromkeys(activations_of(node)))
        found.update(dict.fromkeys(node.outputs))
    return list(found)


def quantized_around(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """The activations around nodes on the Edge TPU that get a scale: all but pixels, which come in
    8 bits."""
    return [value for value in activations_around(nodes) if value.dtype == ir.DataType.FLOAT]


def all_activations(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every activation of a graph: its inputs, then node outputs in order."""
    yield from graph.inputs
    for node in graph:
        for value in node.outputs:
            # An output that nobody asked for has no name.
            if value.name:
                yield value


def consumers_of(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once, in the order of first use."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def only_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value; None for several, and for an output of the graph."""
    readers = consumers_of(value)
    if len(readers) != 1 or value.is_graph_output():
        return None
    return readers[0]


def float32_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of a graph without those that compute on float16, bfloat16 or double.

    Passes write constants in float32, which such nodes could not take.
    """
    return [node for node in graph if not _computes_on_other_floats(node)]


def _computes_on_other_floats(node: ir.Node) -> bool:
    values = [value for value in [*node.inputs, *node.outputs] if value is not None]
    types = {value.dtype for value in values if value.dtype is not None}
    return any(dtype.is_floating_point() and dtype != ir.DataType.FLOAT for dtype in types)


def values_read(node: ir.Node) -> list[ir.Value]:
    """Every value that a node needs, each once, with those that its subgraphs capture."""
    found = dict.fromkeys(value for value in node.inputs if value is not None)
    for graph in bodies(node):
        found.update(dict.fromkeys(_captured(graph)))
    return list(found)


def _captured(graph: ir.Graph) -> list[ir.Value]:
    """The values that a branch or the body of a loop reads from outside."""
    local = set(graph.inputs) | set(graph.initializers.values())
    found = []
    for node in graph:
        found += [value for value in values_read(node) if value not in local]
        local.update(node.outputs)
    found += [value for value in graph.outputs if value not in local]
    return found
