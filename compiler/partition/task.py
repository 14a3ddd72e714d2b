"""The graph to cut, and what every step of the partition asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import onnx_ir as ir

from compiler.graph import is_constant, values_read
from compiler.partition.options import PartitionOptions
from compiler.targets import Target


class Readers:
    """Who reads which value of a graph, subgraphs included, and which values leave it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.outputs = set(graph.outputs)
        self._of: dict[ir.Value, list[ir.Node]] = {}
        for node in graph:
            for value in values_read(node):
                self._of.setdefault(value, []).append(node)

    def of(self, value: ir.Value) -> Sequence[ir.Node]:
        return self._of.get(value, ())

    def of_node(self, node: ir.Node) -> list[ir.Node]:
        """Who reads any output of a node."""
        return list(chain.from_iterable(map(self.of, node.outputs)))


@dataclass(frozen=True)
class Task:
    """A lowered graph, the target that it is cut for, and the user's options."""

    graph: ir.Graph
    target: Target
    options: PartitionOptions

    @cached_property
    def readers(self) -> Readers:
        return Readers(self.graph)


def boundary(nodes: Sequence[ir.Node], readers: Readers) -> tuple[list[ir.Value], list[ir.Value]]:
    """The activations that nodes read from outside, and those that they make and outside reads."""
    inside = set(nodes)
    read: dict[ir.Value, None] = {}
    for node in nodes:
        read |= dict.fromkeys(v for v in values_read(node) if not is_constant(v))
    inputs = [v for v in read if v.producer() not in inside]
    outputs = []
    for value in chain.from_iterable(node.outputs for node in nodes):
        leaves = value in readers.outputs
        if leaves or any(reader not in inside for reader in readers.of(value)):
            outputs.append(value)
    return inputs, outputs
