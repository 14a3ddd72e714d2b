"""Scales and zero points of activations, under what TFLite's specification asks of the operators
around them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from compiler.graph import DIALECT, Builder, Names, activations_of, is_constant
from compiler.ops import Scales, operator_of
from compiler.quant import Quant, from_range
from compiler.quantize.calibrate import Ranges

Asked = list[tuple[ir.Node, Scales]]


def constraints(nodes: Iterable[ir.Node]) -> Asked:
    """What the operators ask of the scales around each node.

    A clamp is absorbed by its input's scale only where nothing else binds that scale.
    """
    asked = [(node, operator_of(node).scales(node)) for node in nodes]
    bound: set[ir.Value] = set()
    for _, scales in asked:
        if scales.range_of is None:
            bound.update(scales.same, scales.fixed)
    return [(node, _settled(scales, bound)) for node, scales in asked]


def _settled(scales: Scales, bound: set[ir.Value]) -> Scales:
    """The constraints of a node, given the activations whose scales other operators bind."""
    if scales.otherwise is None:
        return scales
    return scales.otherwise if bound.intersection(_clamped(scales)) else scales


def _clamped(scales: Scales) -> list[ir.Value]:
    """What an absorbed clamp reads, whose own range does not count."""
    return [value for value in scales.same if value is not scales.range_of]


def separate(model: ir.Model, nodes: Iterable[ir.Node]) -> None:
    """Insert Requantize where operators that share a scale would tie together scales that are fixed
    and differ."""
    asked = constraints(nodes)
    group_of = _groups(asked)
    # The scales that are prescribed to each group.
    prescribed: dict[int, set[tuple[float, int]]] = {}
    for _, scales in asked:
        for value, quant in scales.fixed.items():
            prescribed.setdefault(group_of[value], set()).add(quant)
    names = Names(model.graph)
    # Nodes were asked before the first Requantize came between them.
    for node, scales in asked:
        # A node that shares a scale and prescribes it, as FakeQuantize does, says what holds.
        if not scales.same or scales.fixed:
            continue
        found = prescribed.get(group_of[scales.same[0]], set())
        is_alone = len(found) == 1 and len(activations_of(node)) == 1
        if found and not is_alone:
            _requantize_inputs(node, Builder(model, names, node))


def _requantize_inputs(node: ir.Node, builder: Builder) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and not is_constant(value):
            node.replace_input_with(index, builder.op("Requantize", [value], domain=DIALECT))


def _groups(asked: Asked) -> dict[ir.Value, int]:
    """Activations that must share a scale have the same number; free ones have none."""
    graph: nx.Graph = nx.Graph()
    for _, scales in asked:
        graph.add_nodes_from([*scales.same, *scales.fixed])
        graph.add_edges_from((scales.same[0], value) for value in scales.same[1:])
    group_of: dict[ir.Value, int] = {}
    for number, members in enumerate(nx.connected_components(graph)):
        group_of |= dict.fromkeys(members, number)
    return group_of


@dataclass(frozen=True)
class Groups:
    """Which activations share a scale, what is prescribed for it, whose range does not count."""

    index: Mapping[ir.Value, int]
    fixed: Mapping[int | ir.Value, Quant]
    silent: frozenset[ir.Value]

    def of(self, value: ir.Value) -> int | ir.Value:
        """What stands for the activations that share the scale of `value`."""
        return self.index.get(value, value)

    def observed(self, values: Iterable[ir.Value]) -> list[ir.Value]:
        """Those whose own range counts; what an absorbed clamp cuts off does not."""
        return [value for value in values if value not in self.silent]


def groups_of(nodes: Iterable[ir.Node]) -> Groups:
    """The groups of the activations around TPU nodes."""
    asked = constraints(nodes)
    index = _groups(asked)
    fixed: dict[int | ir.Value, Quant] = {}
    silent: set[ir.Value] = set()
    for _, scales in asked:
        if scales.range_of is not None:
            silent.update(_clamped(scales))
        for value, quant in scales.fixed.items():
            fixed[index[value]] = Quant(*quant)
    return Groups(index, fixed, frozenset(silent))


def assign(
    nodes: Iterable[ir.Node],
    values: Iterable[ir.Value],
    ranges: Ranges,
    carried: Iterable[tuple[ir.Value, ir.Value]] = (),
) -> dict[str, Quant]:
    """A scale for each of `values`, which are all activations of the TPU nodes `nodes`.

    Pairs in `carried` hold one state behind and in front of a step: they share a scale.
    """
    values = list(values)
    groups = groups_of(nodes)
    shared: dict[int | ir.Value, tuple[float, float]] = {}
    for value in groups.observed(values):
        group = groups.of(value)
        low, high = ranges[str(value.name)]
        lowest, highest = shared.get(group, (low, high))
        shared[group] = (min(lowest, low), max(highest, high))
    chosen: dict[int | ir.Value, Quant] = {}
    for group, (low, high) in shared.items():
        chosen[group] = groups.fixed.get(group) or from_range(low, high)
    _share(carried, groups, shared, chosen)
    return {str(value.name): chosen[groups.of(value)] for value in values}


def _share(
    carried: Iterable[tuple[ir.Value, ir.Value]],
    groups: Groups,
    shared: Mapping[int | ir.Value, tuple[float, float]],
    chosen: dict[int | ir.Value, Quant],
) -> None:
    """Give each state one scale behind and in front of a step, so that its int8 is carried as it
    is.

    Scales that are prescribed stay, and what else holds the state takes them over.
    """
    links: nx.Graph = nx.Graph()
    links.add_edges_from((groups.of(after), groups.of(before)) for after, before in carried)
    for members in nx.connected_components(links):
        prescribed = [group for group in members if group in groups.fixed]
        if prescribed:
            quant = chosen[prescribed[0]]
        else:
            ranges = [shared[group] for group in members]
            quant = from_range(min(low for low, _ in ranges), max(high for _, high in ranges))
        for group in members:
            if group not in prescribed:
                chosen[group] = quant
