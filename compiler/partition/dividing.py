"""Which layers several Edge TPUs should run at once, by what a plan without shards spends on them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from compiler.graph import activations_of, element_count
from compiler.ops.common import FLOAT_BYTES
from compiler.partition.plan import Plan, Segment
from compiler.partition.shards import can_divide
from compiler.targets import Host, Target


@dataclass(frozen=True)
class Division:
    """Layers, by their places in the graph, and the shards that each is divided into."""

    places: tuple[int, ...]
    parts: int
    gain: float


def divisions(graph: ir.Graph, plan: Plan, target: Target) -> list[Division]:
    """For each number of Edge TPUs the layers that should gain by it; what gains most first.

    The plan of the divided graph decides: these are estimates.
    """
    place_of = {node: place for place, node in enumerate(graph)}
    host = Host.load(plan.options.host)
    found: dict[tuple[int, ...], Division] = {}
    for parts in range(2, plan.options.tpus + 1):
        gains: dict[int, float] = {}
        for segment in plan.segments:
            if segment.tpu is not None:
                for node in filter(can_divide, segment.nodes):
                    gain = _Estimate(plan, target, host, segment).gain(node, parts)
                    if gain > 0:
                        gains[place_of[node]] = gain
        if gains:
            places = tuple(sorted(gains))
            division = Division(places, parts, sum(gains.values()))
            if places not in found or found[places].gain < division.gain:
                found[places] = division
    return sorted(found.values(), key=lambda division: (-division.gain, division.parts))


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
