"""Scales and zero points of activations, under what TFLite's specification asks of the operators
around them."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
import onnx_ir as ir

from compiler.graph import DIALECT, Builder, Names, activations_of, is_constant, key_of
from compiler.ops import Scales, lookup
from compiler.quant import Quant, from_range
from compiler.quantize.calibrate import Ranges


def constraints(nodes: Iterable[ir.Node]) -> list[tuple[ir.Node, Scales]]:
    """What the operators ask. A clamp that is absorbed by its input's scale is so only where that
    scale is free."""
    found: dict[ir.Node, Scales] = {}
    for node in nodes:
        operator = lookup(node)
        assert operator is not None
        found[node] = operator.scales(node)
    bound = {
        v
        for scales in found.values()
        if scales.range_of is None
        for v in (*scales.same, *scales.fixed)
    }
    return [(node, _settled(node, scales, bound)) for node, scales in found.items()]


def _settled(node: ir.Node, scales: Scales, bound: set[ir.Value]) -> Scales:
    if scales.range_of is None or not any(
        v in bound for v in scales.same if v is not scales.range_of
    ):
        return scales
    return Scales() if key_of(node) == ("", "Relu") else Scales(scales.same)


def separate(model: ir.Model, nodes: Iterable[ir.Node]) -> None:
    """Insert Requantize where operators that share a scale would tie together scales that are fixed
    and differ."""
    asked = constraints(nodes)
    groups = _groups(asked)
    fixed = [(v, q) for _, scales in asked for v, q in scales.fixed.items()]
    names = Names(model.graph)
    for node, scales in asked:
        if not scales.same or node.op_type == "FakeQuantize":
            continue
        inputs = activations_of(node)
        found = {q for v, q in fixed if groups[v] == groups[scales.same[0]]}
        if not found or (len(found) == 1 and len(inputs) == 1):
            continue
        b = Builder(model, names, node)
        for index, value in enumerate(node.inputs):
            if value is not None and not is_constant(value):
                node.replace_input_with(index, b.op("Requantize", [value], domain=DIALECT))


def _groups(asked: Iterable[tuple[ir.Node, Scales]]) -> dict[ir.Value, int]:
    graph: nx.Graph = nx.Graph()
    for _, scales in asked:
        graph.add_nodes_from([*scales.same, *scales.fixed])
        graph.add_edges_from((scales.same[0], v) for v in scales.same[1:])
    return {v: i for i, members in enumerate(nx.connected_components(graph)) for v in members}


class Groups:
    """Which activations of `nodes` share a scale, and what is prescribed for it."""

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        asked = constraints(nodes)
        self._index = _groups(asked)
        # What a clamp cuts off does not count.
        self._silent = {
            v for _, s in asked if s.range_of is not None for v in s.same if v is not s.range_of
        }
        self.fixed = {self._index[v]: Quant(*q) for _, s in asked for v, q in s.fixed.items()}

    def of(self, value: ir.Value) -> int | ir.Value:
        """What stands for the activations that share the scale of `value`."""
        return self._index.get(value, value)

    def observed(self, values: Iterable[ir.Value]) -> list[ir.Value]:
        """Those whose own range counts."""
        return [v for v in values if v not in self._silent]


def assign(
    nodes: Iterable[ir.Node], values: Iterable[ir.Value], ranges: Ranges
) -> dict[str, Quant]:
    """A scale for each of `values`, which are all activations of the TPU nodes `nodes`."""
    groups, values = Groups(nodes), list(values)
    shared: dict[int | ir.Value, tuple[float, float]] = {}
    for value in groups.observed(values):
        low, high = ranges[str(value.name)]
        before = shared.get(groups.of(value), (low, high))
        shared[groups.of(value)] = (min(before[0], low), max(before[1], high))
    found = {}
    for value in values:
        group = groups.of(value)
        fixed = groups.fixed.get(group) if isinstance(group, int) else None
        found[str(value.name)] = fixed or from_range(*shared[group])
    return found
