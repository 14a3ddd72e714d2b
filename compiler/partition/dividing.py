"""Which layers several Edge TPUs should run at once, by what a plan spends on them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import onnx_ir as ir

from compiler.graph import activations_of, element_count
from compiler.ops.common import FLOAT_BYTES
from compiler.partition.plan import Plan, Segment
from compiler.partition.shards import can_divide, layer_of, tail_of
from compiler.targets import Host, Target


@dataclass(frozen=True)
class Division:
    """Layers, by their places in the graph, and the shards that each is divided into."""

    places: tuple[int, ...]
    parts: int


def divisions(graph: ir.Graph, plan: Plan, target: Target) -> list[Division]:
    """Ways to divide layers that may make an inference faster; their plans decide.

    Pairs of layers whose shards go through both, layers that should gain by themselves, and both.
    """
    place_of = {node: place for place, node in enumerate(graph)}
    pairs = {place_of[node] for node in _pairs(graph, plan, target)}
    alone, parts = _gaining(plan, target)
    single = {place_of[node] for node in alone} - pairs
    found = []
    for places in (pairs | single, pairs, single):
        division = Division(tuple(sorted(places)), parts if single else plan.options.tpus)
        if places and division not in found:
            found.append(division)
    return found


def _gaining(plan: Plan, target: Target) -> tuple[list[ir.Node], int]:
    """The layers that should gain by themselves, and the shards with which they gain most."""
    host = Host.load(plan.options.host)
    best: list[ir.Node] = []
    best_gain, best_parts = 0.0, 0
    for parts in range(2, plan.options.tpus + 1):
        nodes = []
        whole = 0.0
        for segment in plan.segments:
            if segment.tpu is not None:
                estimate = _Estimate(plan, target, host, segment)
                gains = {n: estimate.gain(n, parts) for n in segment.nodes if can_divide(n)}
                nodes += [node for node, gain in gains.items() if gain > 0]
                whole += sum(gain for gain in gains.values() if gain > 0)
        if whole > best_gain:
            best, best_gain, best_parts = nodes, whole, parts
    return best, best_parts


def _pairs(graph: ir.Graph, plan: Plan, target: Target) -> list[ir.Node]:
    """The nodes of pairs of layers of which the second reads what only numbers by themselves are
    made of in between, and whose parameters take long to stream."""
    on_tpu: set[ir.Node] = set()
    for segment in plan.segments:
        if segment.tpu is not None:
            on_tpu.update(segment.nodes)
    left = {node: None for node in graph if node in on_tpu and can_divide(node)}
    found: list[ir.Node] = []
    while left:
        layer = layer_of(next(iter(left)))
        for tile in layer.tiles:
            left.pop(tile, None)
        tail = tail_of(layer, left)
        members = [*layer.tiles, *tail.second]
        parameters = chain.from_iterable(plan.costs[node].parameters for node in members)
        is_long = sum(p.stream for p in parameters) > 2 * target.invoke
        if tail.second and is_long and on_tpu.issuperset(tail.nodes):
            found += members
            for tile in tail.second:
                del left[tile]
    return found


@dataclass(frozen=True)
class _Estimate:
    """What shards of a layer of a segment would save."""

    plan: Plan
    target: Target
    host: Host
    segment: Segment

    def gain(self, node: ir.Node, parts: int) -> float:
        cost = self.plan.costs[node]
        streamed = sum(parameters.stream for parameters in cost.parameters) * self._share_streamed()
        saved = (cost.tpu + streamed) * (1 - 1 / parts)
        (x, *_), y = activations_of(node), node.outputs[0]
        # The host joins what shards make.
        spent = self.host.operator + 2 * FLOAT_BYTES * element_count(y) / self.host.bytes
        up = element_count(y) / self.target.up
        with_parameters = [n for n in self.segment.nodes if self.plan.costs[n].parameters]
        if len(with_parameters) == 1:
            saved += up * (1 - 1 / parts)
        else:
            # The segment ends in front of the layer, and another begins behind it.
            spent += 2 * self.target.invoke + up / parts + element_count(y) / self.target.down
            spent += element_count(x) * (1 / self.target.up + 1 / self.target.down)
        return saved - spent

    def _share_streamed(self) -> float:
        """The share of the segment's streaming, if nothing were cached, that it really does."""
        whole = 0.0
        for node in self.segment.nodes:
            whole += sum(parameters.stream for parameters in self.plan.costs[node].parameters)
        return self.segment.times.get("stream", 0.0) / whole if whole else 0.0
