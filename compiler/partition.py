"""Which node runs where: cuts the graph into segments, each for one Edge TPU invocation or for the host.

Contract of `partition`: every node is in exactly one segment; a segment reads only graph inputs, constants and what
earlier segments made (so every segment is convex and the list is an order to run them in); all parameters of a TPU
segment fit the target together (`targets.fits`), except that a single layer that cannot be tiled may exceed it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from compiler import ir as cir
from compiler.legality import refusal
from compiler.ops import lookup
from compiler.targets import Layer, Target, fits, stored_bytes

Device = Literal["tpu", "host"]

_LAYOUT = {("", "Reshape"), ("", "Transpose"), ("", "Identity")}


@dataclass(frozen=True)
class Placement:
    """Where a node runs and the sentence that says why."""

    device: Device
    reason: str


@dataclass
class Segment:
    """Nodes that run together. `inputs` and `outputs` are the activations that cross its border."""

    index: int
    device: Device
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        return [layer for node in self.nodes for layer in layers_of(node)]

    @property
    def macs(self) -> int:
        return sum(macs_of(node) for node in self.nodes)

    def parameter_bytes(self, target: Target) -> int:
        """Bytes of parameters as the device stores them; on the host, of float weights."""
        if self.device == "tpu":
            return sum(stored_bytes(layer, target) for layer in self.layers)
        constants = {v for node in self.nodes for v in cir.reads(node) if cir.is_const(v)}
        return sum(v.const_value.nbytes for v in constants if v.const_value is not None)


@dataclass(frozen=True)
class Plan:
    """The segments in the order they run, and the placement of every node."""

    segments: list[Segment]
    placements: Mapping[ir.Node, Placement]


def layers_of(node: ir.Node) -> tuple[Layer, ...]:
    operator = lookup(node)
    return tuple(operator.layers(node)) if operator is not None and operator.emit is not None else ()


def macs_of(node: ir.Node) -> int:
    operator = lookup(node)
    return operator.macs(node) if operator is not None and operator.emit is not None else 0


def partition(model: ir.Model, target: Target) -> Plan:
    """Cut a lowered model into segments for `target`."""
    graph = model.graph
    placements = place(graph, target)
    while True:
        _shrink(graph, placements)
        segments = _cut(graph, placements, target)
        idle = [s for s in segments if s.device == "tpu" and s.macs == 0]
        for segment in idle:
            for node in segment.nodes:
                reason = "its segment would multiply nothing: the way to the Edge TPU and back costs more"
                placements[node] = Placement("host", reason)
        if not idle:
            return Plan(segments, placements)


def place(graph: ir.Graph, target: Target) -> dict[ir.Node, Placement]:
    """Each node on its own: the Edge TPU where it is legal, else the host and why."""
    placements = {}
    for node in graph:
        reason = refusal(node, target)
        legal = Placement("tpu", "the Edge TPU has it")
        placements[node] = legal if reason is None else Placement("host", reason)
    return placements


def _shrink(graph: ir.Graph, placements: dict[ir.Node, Placement]) -> None:
    """Give to the host what stands at a border and would only make the transfer larger."""
    users = _users(graph)
    changed = True
    while changed:
        changed = False
        tail = _tail(graph, users, placements)
        for node in graph:
            if placements[node].device == "host" or layers_of(node):
                continue
            reason = _border(node, users, tail, placements)
            if reason is not None:
                placements[node] = Placement("host", reason)
                changed = True


def _tail(
    graph: ir.Graph, users: Mapping[ir.Value, list[ir.Node]], placements: Mapping[ir.Node, Placement]
) -> set[ir.Node]:
    """Nodes on the Edge TPU behind which no layer with parameters follows before the host."""
    tail: set[ir.Node] = set()
    for node in reversed(graph):
        readers = [u for v in node.outputs for u in users.get(v, ())]
        if not layers_of(node) and all(placements[u].device == "host" or u in tail for u in readers):
            tail.add(node)
    return tail


def _border(
    node: ir.Node,
    users: Mapping[ir.Value, list[ir.Node]],
    tail: set[ir.Node],
    placements: Mapping[ir.Node, Placement],
) -> str | None:
    sources = [v.producer() for v in cir.activations(node)]
    from_host = [s is None or placements[s].device == "host" for s in sources]
    to_host = all(placements[u].device == "host" for v in node.outputs for u in users.get(v, ()))
    if cir.key(node) in _LAYOUT and (all(from_host) or to_host):
        return "it only changes the layout at the border to the host"
    if node in tail and any(from_host):
        return "it joins values of the host for the host: int8 would cost a transfer and accuracy"
    return None


def _users(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    users: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in cir.reads(node):
            users.setdefault(value, []).append(node)
    return users


def _cut(graph: ir.Graph, placements: Mapping[ir.Node, Placement], target: Target) -> list[Segment]:
    """Run on one device as long as something is ready for it and fits, then change."""
    users = _users(graph)
    position = {node: i for i, node in enumerate(graph)}
    waiting = {node: len({v.producer() for v in cir.reads(node)} - {None}) for node in graph}
    ready = sorted((n for n, count in waiting.items() if count == 0), key=position.__getitem__)
    segments: list[Segment] = []
    while ready:
        device = _next_device(ready, segments, placements)
        segment = Segment(len(segments), device)
        segments.append(segment)
        while True:
            node = next((n for n in ready if placements[n].device == device and _room(segment, n, target)), None)
            if node is None:
                break
            segment.nodes.append(node)
            ready.remove(node)
            for user in dict.fromkeys(u for v in node.outputs for u in users.get(v, ())):
                waiting[user] -= 1
                if waiting[user] == 0:
                    ready.append(user)
            ready.sort(key=position.__getitem__)
    for segment in segments:
        _borders(segment, users, set(graph.outputs))
    return segments


def _next_device(ready: list[ir.Node], segments: list[Segment], placements: Mapping[ir.Node, Placement]) -> Device:
    """The host when it has something to do and did not just run, else the Edge TPU."""
    devices = {placements[n].device for n in ready}
    last = segments[-1].device if segments else "tpu"
    return "host" if "host" in devices and last == "tpu" else "tpu" if "tpu" in devices else "host"


def _room(segment: Segment, node: ir.Node, target: Target) -> bool:
    layers = layers_of(node)
    if segment.device == "host" or not layers or not segment.layers:
        return True
    return fits([*segment.layers, *layers], target)


def _borders(segment: Segment, users: Mapping[ir.Value, list[ir.Node]], outputs: set[ir.Value]) -> None:
    inside = set(segment.nodes)
    read = dict.fromkeys(v for node in segment.nodes for v in cir.reads(node) if not cir.is_const(v))
    segment.inputs = [v for v in read if v.producer() not in inside]
    made = [v for node in segment.nodes for v in node.outputs]
    segment.outputs = [v for v in made if v in outputs or any(u not in inside for u in users.get(v, ()))]
