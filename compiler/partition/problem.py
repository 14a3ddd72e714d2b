"""A graph as the problem that the planner solves: units with times and bytes, and the tensors
between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import onnx_ir as ir

from compiler import planner
from compiler.graph import element_count, is_static
from compiler.ops import operator_of
from compiler.partition.plan import Placements, planned_host
from compiler.partition.segments import streamed
from compiler.partition.task import Task
from compiler.targets import capacity
from compiler.targets.memory import packed_bytes

Units = list[list[ir.Node]]


def units_of(graph: ir.Graph, placements: Placements) -> Units:
    """Nodes in groups that are never cut: each with the clamps that are written as its scale."""
    unit_of: dict[ir.Node, list[ir.Node]] = {}
    units: Units = []
    for node in graph:
        source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        unit = unit_of.get(source) if source is not None else None
        is_scale = operator_of(node).absorbed(node)
        if (
            unit is None
            or not is_scale
            or _device(placements, node) != _device(placements, unit[0])
        ):
            unit = []
            units.append(unit)
        unit.append(node)
        unit_of[node] = unit
    return units


def _device(placements: Placements, node: ir.Node) -> str:
    return placements.of[node].device


def unit_numbers(units: Units) -> dict[ir.Node, int]:
    """The number of the unit that each node is in."""
    numbers: dict[ir.Node, int] = {}
    for index, unit in enumerate(units):
        numbers |= dict.fromkeys(unit, index)
    return numbers


def planner_problem(task: Task, units: Units, placements: Placements) -> planner.Problem:
    """The problem of `units`, which the planner calls nodes."""
    unit_of = unit_numbers(units)
    tensors = _tensors(task, unit_of)
    target = task.target
    edges: set[tuple[int, int]] = set()
    for tensor in tensors:
        if tensor.source is not None:
            edges.update((tensor.source, reader) for reader in tensor.readers)
    on_tpu: list[float] = []
    on_host: list[float] = []
    sizes: list[int] = []
    stream: list[float] = []
    capacities: list[int] = []
    _, gain = planned_host(task.options)
    for unit in units:
        costs = [placements.costs[node] for node in unit]
        placed_on_host = placements.on_host(unit[0])
        free = all(node in placements.free for node in unit)
        forbidden = planner.INFINITE
        parameters = list(chain.from_iterable(cost.parameters for cost in costs))
        # What no room makes stay belongs to the time of the unit itself.
        always = sum(p.stream for p in parameters if p.layer.is_streamed)
        on_tpu.append(forbidden if placed_on_host else sum(c.tpu for c in costs) + always)
        may_be_hosted = placed_on_host or free
        on_host.append(sum(c.host for c in costs) / gain if may_be_hosted else forbidden)
        sizes.append(sum(packed_bytes(p.layer, target) for p in parameters))
        stream.append(sum(p.stream for p in parameters if not p.layer.is_streamed))
        capacities.append(capacity(target, max(c.activations for c in costs)))
    return planner.Problem(
        tpu=on_tpu,
        host=on_host,
        edges=sorted(edges),
        tensors=tensors,
        sizes=sizes,
        stream=stream,
        capacities=capacities,
        tpus=task.options.tpus,
        invoke=target.invoke,
        objective=task.options.sought,
        streaming=_streaming(task, units, placements),
        replicas=task.options.sought == "throughput",
    )


def _streaming(
    task: Task, units: Units, placements: Placements
) -> Callable[[Sequence[int]], list[float]]:
    """The seconds to stream for each of the units that share an Edge TPU, whose tiles must take
    what stays."""
    costs = [[placements.costs[node] for node in unit] for unit in units]

    def seconds(members: Sequence[int]) -> list[float]:
        together = list(chain.from_iterable(costs[unit] for unit in members))
        kept, _, _ = streamed(together, task.target)
        found = []
        number = 0  # of a layer among those of all units
        for unit in members:
            parameters = list(chain.from_iterable(cost.parameters for cost in costs[unit]))
            sent = [p for i, p in enumerate(parameters, number) if i not in kept]
            number += len(parameters)
            # What is always streamed belongs to the time of the unit itself.
            found.append(sum(p.stream for p in sent if not p.layer.is_streamed))
        return found

    return seconds


def _tensors(task: Task, unit_of: Mapping[ir.Node, int]) -> list[planner.Tensor]:
    """Activations that may cross between units, with the seconds that they take each way."""
    tensors = []
    made = chain.from_iterable(node.outputs for node in task.graph)
    for value in [*task.graph.inputs, *made]:
        producer = value.producer()
        source = unit_of[producer] if producer is not None else None
        users = sorted({unit_of[user] for user in task.readers.of(value)} - {source})
        leaves = value in task.readers.outputs
        if users or leaves:
            # A tensor whose shape depends on data stays on the host, where it costs nothing to
            # pass.
            size = element_count(value) if is_static(value) else 0
            down, up = size / task.target.down, size / task.target.up
            tensors.append(planner.Tensor(source, tuple(users), leaves, down, up))
    return tensors


def stages_of_cuts(cut_units: Sequence[int], problem: planner.Problem, tpus: int) -> planner.Stages:
    """The user's cuts: a segment ends behind each of these units, whatever that costs."""
    last = problem.count
    bounds = [0, *sorted({unit + 1 for unit in cut_units} - {last}), last]
    parts = len(bounds) - 1
    sides = [seconds < planner.INFINITE for seconds in problem.tpu]
    stages: list[tuple[int, tuple[int, ...]]] = []
    for index in range(parts):
        # Fewer Edge TPUs than parts share them evenly, in order.
        device = index * tpus // parts if tpus < parts else index
        inside = range(bounds[index], bounds[index + 1])
        for on_tpu, members in planner.alternate(problem, inside, sides):
            if members:
                stages.append((device if on_tpu else planner.HOST, tuple(members)))
    return tuple(stages)
