"""From the planner's stages to segments: boundaries, host parts, halves, predictions."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import onnx_ir as ir

from compiler import planner
from compiler.device.cost import Cost
from compiler.graph import element_count, values_read
from compiler.ops import operator_of
from compiler.partition.plan import Plan, Segment, planned_host
from compiler.partition.task import Readers, Task, boundary
from compiler.targets import Target, cached


def assemble(
    stages: planner.Stages,
    units: Sequence[Sequence[ir.Node]],
    costs: Mapping[ir.Node, Cost],
    task: Task,
    copies: Mapping[int, int] | None = None,
) -> Plan:
    """The planner's stages as segments, with what is predicted of them.

    `copies` are the planner's: how many Edge TPUs hold what each device has, if not one.
    """
    segments: list[Segment] = []
    numbers = _numbers([device for device, _ in stages if device != planner.HOST], copies or {})
    for device, members in stages:
        nodes = list(chain.from_iterable(units[unit] for unit in sorted(members)))
        own = numbers.get(device, [])
        tpu = own[0] if own else None
        follows_host = tpu is None and bool(segments) and segments[-1].tpu is None
        # Two host stages in a row have nothing between them, unless the user cut there.
        if follows_host and not task.options.cuts:
            segments[-1].nodes += nodes
        else:
            segments.append(Segment(len(segments), tpu, nodes, replicas=tuple(own[1:])))
    if task.options.host_bytes is not None:
        segments = _divide_host(segments, task.options.host_bytes, task.options.host_int8)
    _set_boundaries(segments, task.readers)
    predict(segments, costs, task.target, task.options.host_int8)
    slots, _ = planned_host(task.options)
    return Plan(segments, {}, costs, task.options, host_slots=slots)


def _numbers(devices: Sequence[int], copies: Mapping[int, int]) -> dict[int, list[int]]:
    """The Edge TPUs of each device of the planner.

    First each gets one, then each that has copies a second one, and so on: where there are fewer
    Edge TPUs than planned, what is left of the copies is still spread.
    """
    first = sorted(set(devices))
    numbers: dict[int, list[int]] = {device: [] for device in first}
    following = 0
    for turn in range(max((copies.get(device, 1) for device in first), default=0)):
        for device in first:
            if turn < copies.get(device, 1):
                numbers[device].append(following)
                following += 1
    return numbers


def _divide_host(segments: Sequence[Segment], most: int, int8: bool) -> list[Segment]:
    """Host segments in parts of up to `most` bytes of weights."""
    divided: list[Segment] = []
    for segment in segments:
        whole = segment.tpu is not None
        parts = [segment.nodes] if whole else split_by_bytes(segment.nodes, most, int8)
        for nodes in parts:
            divided.append(replace(segment, index=len(divided), nodes=nodes))
    return divided


def split_by_bytes(nodes: Sequence[ir.Node], most: int, int8: bool) -> list[list[ir.Node]]:
    """Nodes of the host in parts of up to `most` bytes of weights.

    Norms begin a part, as only one tensor crosses there. A block between two norms that is larger
    than `most` is a part of its own.
    """
    blocks: list[list[ir.Node]] = [[]]
    for node in nodes:
        if operator_of(node).normalises_rows and blocks[-1]:
            blocks.append([])
        blocks[-1].append(node)
    parts: list[list[ir.Node]] = []
    room = 0
    for block in blocks:
        size = host_bytes(block, int8)
        if not parts or size > room:
            parts.append([])
            room = most
        parts[-1] += block
        room -= size
    return parts


def halved(plan: Plan, graph: ir.Graph, target: Target, indices: Container[int]) -> Plan:
    """The plan with each of the segments `indices` cut in two at half of its predicted time.

    A segment of a single operator stays whole.
    """
    segments: list[Segment] = []
    for segment in plan.segments:
        chosen = segment.index in indices
        parts = _halves(segment.nodes, plan.costs) if chosen else [segment.nodes]
        for nodes in parts:
            segments.append(replace(segment, index=len(segments), nodes=nodes))
    _set_boundaries(segments, Readers(graph))
    predict(segments, plan.costs, target, plan.options.host_int8)
    return replace(plan, segments=segments)


def refilled(
    plan: Plan, graph: ir.Graph, target: Target, segment_of: Mapping[ir.Node, int]
) -> Plan:
    """The plan for a graph that was rewritten since: each of its nodes is in the segment whose
    index stands for it in `segment_of`."""
    filled: dict[int, list[ir.Node]] = {}
    for node in graph:
        filled.setdefault(segment_of[node], []).append(node)
    segments: list[Segment] = []
    for index in sorted(filled):
        segment = plan.segments[index]
        segments.append(replace(segment, index=len(segments), nodes=filled[index]))
    _set_boundaries(segments, Readers(graph))
    predict(segments, plan.costs, target, plan.options.host_int8)
    return replace(plan, segments=segments)


def _halves(nodes: list[ir.Node], costs: Mapping[ir.Node, Cost]) -> list[list[ir.Node]]:
    """Two parts whose costs differ least; a node that costs nothing is written with the one before
    it."""
    seconds = [costs[node].tpu for node in nodes]
    places = [i for i in range(1, len(nodes)) if seconds[i]]
    if not places:
        return [nodes]
    total = sum(seconds)
    middle = min(places, key=lambda place: abs(2 * sum(seconds[:place]) - total))
    return [nodes[:middle], nodes[middle:]]


def _set_boundaries(segments: Sequence[Segment], readers: Readers) -> None:
    for segment in segments:
        segment.inputs, segment.outputs = boundary(segment.nodes, readers)


def host_bytes(nodes: Sequence[ir.Node], int8: bool) -> int:
    """Bytes of the constants that nodes on the host read; with `int8`, weights of products are a
    byte each."""
    sizes: dict[ir.Value, int] = {}
    for node in nodes:
        for value in values_read(node):
            if value.const_value is None:
                continue
            is_weight = int8 and operator_of(node).is_linear and value is node.inputs[1]
            sizes[value] = value.const_value.size if is_weight else value.const_value.nbytes
    return sum(sizes.values())


def streamed(costs: Sequence[Cost], target: Target) -> tuple[set[int], int, float]:
    """What stays cached of the layers of nodes that share an Edge TPU.

    Returns the indices of the layers that stay, and the bytes and seconds of those that do not.
    """
    parameters = list(chain.from_iterable(cost.parameters for cost in costs))
    activations = max((c.activations for c in costs), default=0)
    kept = cached([p.layer for p in parameters], target, activations)
    sent = [p for i, p in enumerate(parameters) if i not in kept]
    return kept, sum(p.bytes for p in sent), sum(p.stream for p in sent)


def predict(
    segments: Sequence[Segment], costs: Mapping[ir.Node, Cost], target: Target, int8: bool
) -> None:
    """Fill in what each segment is predicted to take."""
    for segment in segments:
        segment.macs = sum(costs[node].macs for node in segment.nodes)
        if segment.tpu is None:
            segment.parameter_bytes = host_bytes(segment.nodes, int8)
            segment.times = {"compute": sum(costs[node].host for node in segment.nodes)}
    on_tpu = [s for s in segments if s.tpu is not None]
    for tpu in dict.fromkeys(s.tpu for s in on_tpu):
        _predict_tpu([s for s in on_tpu if s.tpu == tpu], costs, target)


def _predict_tpu(
    segments: Sequence[Segment], costs: Mapping[ir.Node, Cost], target: Target
) -> None:
    """Fill in the segments of one Edge TPU, which share its SRAM."""
    nodes = list(chain.from_iterable(segment.nodes for segment in segments))
    kept, _, _ = streamed([costs[node] for node in nodes], target)
    number = 0  # of a layer among those of all segments
    for segment in segments:
        parameters = list(chain.from_iterable(costs[node].parameters for node in segment.nodes))
        sent = [p for i, p in enumerate(parameters, number) if i not in kept]
        number += len(parameters)
        segment.parameter_bytes = sum(p.bytes for p in parameters)
        segment.streamed = sum(p.bytes for p in sent)
        segment.cached = segment.parameter_bytes - segment.streamed
        segment.times = {
            "invoke": target.invoke,
            "compute": sum(costs[node].tpu for node in segment.nodes),
            "in": sum(map(element_count, segment.inputs)) / target.down,
            "out": sum(map(element_count, segment.outputs)) / target.up,
            "stream": sum(p.stream for p in sent),
        }
