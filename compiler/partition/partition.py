"""Which node runs where: cuts the graph into segments, each for one Edge TPU invocation or for the host.

Contract of `partition`: every node is in exactly one segment; a segment reads only graph inputs, constants and what
earlier segments made (so every segment is convex and the list is an order to run them in); the parameters that are
said to stay cached fit their Edge TPU together (`targets.fits`), and those that do not are said to be streamed.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Literal

import onnx_ir as ir

from compiler import planner
from compiler.device.cost import Cost, Parameters, of_node
from compiler.device.legality import layers_of, refusal
from compiler.errors import OptionError
from compiler.graph import (
    DIALECT,
    activations_of,
    element_count,
    is_constant,
    is_static,
    key_of,
    origin_of,
    values_read,
)
from compiler.targets import Host, Layer, Target, capacity, fits
from compiler.targets.memory import packed_bytes

Device = Literal["tpu", "host"]
Place = Literal["tpu", "host", "auto"]

_NORMS = ("RMSNormalization", "LayerNormalization")
_LAYOUT = {("", "Reshape"), ("", "Transpose"), ("", "Identity")}


@dataclass(frozen=True)
class Wishes:
    """What a user asks of the partition.

    `place`: "tpu" gives an Edge TPU all that it takes, "auto" what is predicted to be faster there, "host" nothing.
    `pins` maps names of nodes (with * and ?) to a device; `cuts` are nodes behind which a segment ends. `kept` names
    nodes that accuracy keeps on the host. With `host_int8` the host multiplies normalised rows in int8 too, by the
    weights that an Edge TPU would have. `host_bytes` is how many bytes of weights a segment of the host holds, where a
    norm gives it a place to end. `seconds` is about how long an x86 core searches; work is counted, not time, so that
    the same model gives the same plan.
    """

    tpus: int = 1
    objective: planner.Objective = "latency"
    place: Place = "tpu"
    pins: Mapping[str, Device] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()
    host: str = "pi5"
    seconds: float = 3.0
    host_int8: bool = False
    kept: tuple[str, ...] = ()
    host_bytes: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where a node runs and the sentence that says why."""

    device: Device
    reason: str


@dataclass
class Segment:
    """Nodes that run together. `inputs` and `outputs` are the activations that cross its border.

    `tpu` numbers the Edge TPU that it is planned for, None is the host. `cached` and `streamed` are bytes of parameters
    there, `times` predicted seconds by what they go to.
    """

    index: int
    tpu: int | None = None
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    outputs: list[ir.Value] = field(default_factory=list)
    macs: int = 0
    parameter_bytes: int = 0
    cached: int = 0
    streamed: int = 0
    times: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        return "host" if self.tpu is None else "tpu"

    @property
    def seconds(self) -> float:
        return sum(self.times.values())

    @property
    def layers(self) -> list[Layer]:
        return [layer for node in self.nodes for layer in layers_of(node)]


@dataclass(frozen=True)
class Plan:
    """The segments in the order they run, and the placement of every node. `gap` bounds how far off the best it
    is, as a share; None where no solver has looked."""

    segments: list[Segment]
    placements: Mapping[ir.Node, Placement]
    costs: Mapping[ir.Node, Cost]
    wishes: Wishes
    gap: float | None = None

    @property
    def latency(self) -> float:
        """Predicted seconds of one inference."""
        return sum(s.seconds for s in self.segments)

    @property
    def loads(self) -> dict[int | None, float]:
        """Predicted seconds of an inference on each Edge TPU, and on the host (None)."""
        found: dict[int | None, float] = {}
        for segment in self.segments:
            found[segment.tpu] = found.get(segment.tpu, 0.0) + segment.seconds
        return found

    def reload(self, target: Target) -> float:
        """Seconds that an inference takes longer where segments that share an Edge TPU are compiled one by one.

        Without a common caching token they evict each other, so that all their parameters are sent at each run.
        """
        shared = [s for s in self.segments if s.tpu is not None and s.cached]
        often = {t for t in self.loads if sum(s.tpu == t for s in shared) > 1}
        return sum(s.cached for s in shared if s.tpu in often) / target.stream

    @property
    def objective(self) -> float:
        """What the wishes ask to be small."""
        return self.latency if self.wishes.objective == "latency" else self.interval

    @property
    def interval(self) -> float:
        """Predicted seconds between two results of the full pipeline."""
        return max(self.loads.values(), default=0.0)


def partition(model: ir.Model, target: Target, wishes: Wishes | None = None) -> Plan:
    """Cut a lowered model into segments for `target`. Raises OptionError for wishes that cannot be met."""
    task = _Task(model.graph, target, wishes or Wishes())
    units, problem = task.problem()
    found = task.user_cuts(units, problem) if task.wishes.cuts else planner.solve(problem, task.wishes.seconds)
    plan = task.assembled(units, found)
    if not task.wishes.cuts:
        plan = task.refined(units, problem, plan, found.cost)
        few = planner.needed(problem) + 1
        if task.wishes.objective == "latency" and few < task.wishes.tpus:
            # More TPUs than hold the parameters make the search larger, and seldom the latency smaller.
            less = replace(problem, tpus=few)
            other = planner.solve(less, task.wishes.seconds / 2)
            plan = min(plan, task.refined(units, less, task.assembled(units, other), other.cost), key=_objective)
    proven = found.bound is not None and plan.objective > 0
    gap = max(0.0, 1 - found.bound / plan.objective) if proven else None  # type: ignore[operator]
    return replace(plan, placements=task.final_placements(plan), gap=gap)


def _objective(plan: Plan) -> float:
    return plan.objective


class _Task:
    """A graph to cut: what its nodes cost, where they may go."""

    def __init__(self, graph: ir.Graph, target: Target, wishes: Wishes) -> None:
        self.graph, self.target, self.wishes = graph, target, wishes
        self.users, self.outputs = _users(graph), set(graph.outputs)
        self.placements = place(graph, target, wishes)
        host = Host.load(wishes.host)
        self.costs = {
            n: of_node(n, target, host, self.placements[n].device == "tpu", self.wishes.host_int8) for n in graph
        }
        self.pinned = _pin(graph, self.placements, wishes)
        self._shrink()
        free = wishes.place == "auto"
        self.free = {n for n in graph if free and self.placements[n].device == "tpu" and n not in self.pinned}
        self._give_idle()

    def _shrink(self) -> None:
        """Give to the host what stands at a border and would only make the transfer larger."""
        changed = True
        while changed:
            changed = False
            tail = self._tail()
            for node in self.graph:
                done = self.placements[node].device == "host" or self.costs[node].parameters or node in self.pinned
                reason = None if done else self._border(node, tail)
                if reason is not None:
                    self.placements[node] = Placement("host", reason)
                    changed = True

    def _tail(self) -> set[ir.Node]:
        """Nodes on the Edge TPU behind which no layer with parameters follows before the host."""
        tail: set[ir.Node] = set()
        for node in reversed(self.graph):
            readers = [u for v in node.outputs for u in self.users.get(v, ())]
            on_host = (self.placements[u].device == "host" or u in tail for u in readers)
            if not self.costs[node].parameters and all(on_host):
                tail.add(node)
        return tail

    def _border(self, node: ir.Node, tail: set[ir.Node]) -> str | None:
        sources = [v.producer() for v in activations_of(node)]
        from_host = [s is None or self.placements[s].device == "host" for s in sources]
        to_host = all(self.placements[u].device == "host" for v in node.outputs for u in self.users.get(v, ()))
        if key_of(node) in _LAYOUT and (all(from_host) or to_host):
            return "it only changes the layout at the border to the host"
        if node in tail and any(from_host):
            return "it joins values of the host for the host: int8 would cost a transfer and accuracy"
        return None

    def _give_idle(self) -> None:
        """Give to the host what stands between host nodes, multiplies nothing, and was not asked for."""
        while not self.free:
            units, problem = self.problem()
            sides = [time_ < math.inf for time_ in problem.tpu]
            turns = planner.alternate(problem, range(problem.count), sides)
            rows = [[n for i in members for n in units[i]] for side, members in turns if side]
            idle = [n for r in rows if not (any(self.costs[n].macs for n in r) or self.pinned & {*r}) for n in r]
            if not idle:
                return
            for node in idle:
                reason = "its segment would multiply nothing: the way to the Edge TPU and back costs more"
                self.placements[node] = Placement("host", reason)

    def final_placements(self, plan: Plan) -> dict[ir.Node, Placement]:
        """Where the planner was free, its reason too."""
        final = dict(self.placements)
        for segment in plan.segments:
            for node in segment.nodes:
                if final[node].device != segment.device:
                    here, there = (f"{1e3 * t:.3g} ms" for t in (self.costs[node].host, self.costs[node].tpu))
                    reason = f"predicted: {here} here, {there} on the Edge TPU, without parameters and transfers"
                    final[node] = Placement(segment.device, reason)
        return final

    # The problem that the planner solves

    def units(self) -> list[list[ir.Node]]:
        """Nodes, each with the clamps that are written as its scale."""
        unit_of: dict[ir.Node, list[ir.Node]] = {}
        units: list[list[ir.Node]] = []
        for node in self.graph:
            source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            unit = unit_of.get(source) if source is not None else None
            fused = node.op_type in ("Relu", "Clip") and not self.costs[node].tpu
            if unit is None or not fused or self.placements[node].device != self.placements[unit[0]].device:
                unit = []
                units.append(unit)
            unit.append(node)
            unit_of[node] = unit
        return units

    def problem(self) -> tuple[list[list[ir.Node]], planner.Problem]:
        """(units, problem) for the planner; a unit is what it calls a node."""
        units, target = self.units(), self.target
        unit_of = {n: i for i, unit in enumerate(units) for n in unit}
        tensors = self._tensors(unit_of)
        on_tpu, on_host = [], []
        for unit in units:
            device = self.placements[unit[0]].device
            free = all(n in self.free for n in unit)
            on_tpu.append(sum(self.costs[n].tpu for n in unit) if device == "tpu" else math.inf)
            on_host.append(sum(self.costs[n].host for n in unit) if device == "host" or free else math.inf)
        parameters = [[p for n in unit for p in self.costs[n].parameters] for unit in units]
        problem = planner.Problem(
            tpu=on_tpu,
            host=on_host,
            edges=sorted({(t.source, r) for t in tensors for r in t.readers if t.source is not None}),
            tensors=tensors,
            sizes=[sum(packed_bytes(p.layer, target) for p in own) for own in parameters],
            stream=[sum(p.stream for p in own) for own in parameters],
            rooms=[capacity(target, max(self.costs[n].activations for n in unit)) for unit in units],
            tpus=self.wishes.tpus,
            invoke=target.invoke,
            objective=self.wishes.objective,
        )
        return units, problem

    def _tensors(self, unit_of: Mapping[ir.Node, int]) -> list[planner.Tensor]:
        tensors = []
        for value in [*self.graph.inputs, *(v for node in self.graph for v in node.outputs)]:
            producer = value.producer()
            source = unit_of[producer] if producer is not None else None
            readers = sorted({unit_of[u] for u in self.users.get(value, ())} - {-1 if source is None else source})
            if readers or value in self.outputs:
                size = element_count(value) if is_static(value) else 0
                down, up = size / self.target.down, size / self.target.up
                tensors.append(planner.Tensor(source, tuple(readers), value in self.outputs, down, up))
        return tensors

    def user_cuts(self, units: Sequence[list[ir.Node]], problem: planner.Problem) -> planner.Plan:
        """The user's cuts: a segment ends behind each of these nodes, whatever that costs."""
        place_of = {origin_of(n): i for i, unit in enumerate(units) for n in unit}
        for name in self.wishes.cuts:
            if name not in place_of:
                raise OptionError(f"--cut {name}: no node has this name; `inspect --json` lists the nodes")
        bounds = [0, *sorted({place_of[name] + 1 for name in self.wishes.cuts} - {problem.count}), problem.count]
        stages: list[tuple[int, tuple[int, ...]]] = []
        for index, (begin, end) in enumerate(pairwise(bounds)):
            turns = planner.alternate(problem, range(begin, end), [t < math.inf for t in problem.tpu])
            device = index * self.wishes.tpus // (len(bounds) - 1) if self.wishes.tpus < len(bounds) - 1 else index
            stages += [(device if side else planner.HOST, tuple(nodes)) for side, nodes in turns if nodes]
        return planner.Plan(tuple(stages), planner.cost(problem, stages))

    def refined(self, units: Sequence[list[ir.Node]], problem: planner.Problem, plan: Plan, promised: float) -> Plan:
        """The planner counts bytes; where the tiles do not take all that it counted on, a plan that they take."""
        for tighter in (0.94, 0.85):
            if plan.objective <= promised * 1.001:
                break
            plan = self._repaired(units, problem, plan)
            less = replace(problem, rooms=[int(room * tighter) for room in problem.rooms])
            other = self.assembled(units, planner.solve(less, self.wishes.seconds / 4))
            plan = min(plan, other, key=_objective)
        return plan

    def _repaired(self, units: Sequence[list[ir.Node]], problem: planner.Problem, plan: Plan) -> Plan:
        """Move nodes across borders as long as that helps by what the tiles take."""
        budget = planner.Budget(self.wishes.seconds / 2)
        unit_of = {n: i for i, unit in enumerate(units) for n in unit}
        improved = True
        while improved:
            improved = False
            members = [(s.tpu, sorted({unit_of[n] for n in s.nodes})) for s in plan.segments]
            stages = tuple((planner.HOST if tpu is None else tpu, tuple(own)) for tpu, own in members)
            for candidate in planner.neighbours(problem, stages, budget):
                if budget.spent:
                    return plan
                budget.spend(40 * problem.count)
                other = self.assembled(units, planner.Plan(candidate, 0.0))
                if other.objective < plan.objective * (1 - 1e-6):
                    plan, improved = other, True
                    break
        return plan

    def assembled(self, units: Sequence[list[ir.Node]], found: planner.Plan) -> Plan:
        """The planner's stages as segments, with what is predicted of them."""
        segments: list[Segment] = []
        for device, members in found.stages:
            nodes = [n for i in sorted(members) for n in units[i]]
            if device == planner.HOST and segments and segments[-1].tpu is None and not self.wishes.cuts:
                segments[-1].nodes += nodes  # nothing lies between them
            else:
                segments.append(Segment(len(segments), None if device == planner.HOST else device, nodes))
        if self.wishes.host_bytes is not None:
            parts = [own for s in segments for own in (self._split(s.nodes) if s.tpu is None else [s.nodes])]
            devices = {n: s.tpu for s in segments for n in s.nodes}
            segments = [Segment(index, devices[own[0]], own) for index, own in enumerate(parts)]
        for segment in segments:
            _borders(segment, self.users, self.outputs)
        _predict(segments, self.costs, self.target, self.wishes.host_int8)
        return Plan(segments, {}, self.costs, self.wishes)

    def _split(self, nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
        """Nodes of the host in parts of up to `host_bytes` of weights; norms begin a part."""
        blocks: list[list[ir.Node]] = [[]]
        for node in nodes:
            if node.op_type in _NORMS and blocks[-1]:
                blocks.append([])
            blocks[-1].append(node)
        parts: list[list[ir.Node]] = []
        room = 0
        for block in blocks:
            size = _host_bytes(block, self.wishes.host_int8)
            if not parts or size > room:
                parts.append([])
                room = self.wishes.host_bytes or 0
            parts[-1] += block
            room -= size
        return parts


def halved(plan: Plan, graph: ir.Graph, target: Target, indices: Container[int]) -> Plan:
    """The plan with each of these segments in two, at half of its predicted time, where it has several operators."""
    segments: list[Segment] = []
    for segment in plan.segments:
        parts = _halves(segment.nodes, plan.costs) if segment.index in indices else [segment.nodes]
        segments += [Segment(len(segments) + i, segment.tpu, nodes) for i, nodes in enumerate(parts)]
    users, outputs = _users(graph), set(graph.outputs)
    for segment in segments:
        _borders(segment, users, outputs)
    _predict(segments, plan.costs, target, plan.wishes.host_int8)
    return replace(plan, segments=segments)


def _halves(nodes: list[ir.Node], costs: Mapping[ir.Node, Cost]) -> list[list[ir.Node]]:
    """Two parts whose costs differ least; a node that costs nothing is written as a part of the one before it."""
    total = sum(costs[n].tpu for n in nodes)
    places = [i for i in range(1, len(nodes)) if costs[nodes[i]].tpu]
    if not places:
        return [nodes]
    middle = min(places, key=lambda i: abs(2 * sum(costs[n].tpu for n in nodes[:i]) - total))
    return [nodes[:middle], nodes[middle:]]


# Placement of single nodes


def place(graph: ir.Graph, target: Target, wishes: Wishes) -> dict[ir.Node, Placement]:
    """Each node on its own: the Edge TPU where it is legal, else the host and why."""
    placements = {}
    for node in graph:
        reason = "--place host" if wishes.place == "host" else refusal(node, target)
        legal = Placement("tpu", "the Edge TPU has it")
        placements[node] = legal if reason is None else Placement("host", reason)
    return placements


def _pin(graph: ir.Graph, placements: dict[ir.Node, Placement], wishes: Wishes) -> set[ir.Node]:
    """Put nodes where the user wants them. Raises OptionError for unknown nodes and what the Edge TPU refuses."""
    kept = set(wishes.kept)
    pinned = {n for n in graph if origin_of(n) in kept and placements[n].device == "tpu"}
    for node in pinned:
        placements[node] = Placement("host", "--keep-float: it contributes most to the error for its arithmetic")
    for pattern, device in wishes.pins.items():
        nodes = [n for n in graph if fnmatchcase(origin_of(n), pattern)]
        if not nodes:
            raise OptionError(f"--pin {pattern}={device}: no node has this name; `inspect --json` lists the nodes")
        for node in nodes:
            if device == "tpu" and placements[node].device == "host":
                raise OptionError(f"--pin {pattern}=tpu: {origin_of(node)}: {placements[node].reason}")
            placements[node] = Placement(device, f"--pin {pattern}={device}")
            pinned.add(node)
    return pinned


def _users(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    users: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        for value in values_read(node):
            users.setdefault(value, []).append(node)
    return users


def _borders(segment: Segment, users: Mapping[ir.Value, list[ir.Node]], outputs: set[ir.Value]) -> None:
    inside = set(segment.nodes)
    read = dict.fromkeys(v for node in segment.nodes for v in values_read(node) if not is_constant(v))
    segment.inputs = [v for v in read if v.producer() not in inside]
    made = [v for node in segment.nodes for v in node.outputs]
    segment.outputs = [v for v in made if v in outputs or any(u not in inside for u in users.get(v, ()))]


# What is predicted of a plan


def streamed(costs: Sequence[Cost], target: Target) -> tuple[set[int], int, float]:
    """(indices of layers that stay cached, bytes and seconds of those that do not) of nodes that share an Edge TPU.

    The smallest stay, as in the planner, but here the tiles must take them too.
    """
    parameters = [p for cost in costs for p in cost.parameters]
    most = max((c.activations for c in costs), default=0)
    kept = sorted(range(len(parameters)), key=lambda i: parameters[i].bytes)
    used, room = sum(packed_bytes(p.layer, target) for p in parameters), capacity(target, most)
    late: list[Parameters] = []
    while kept and (used > room or not fits([parameters[i].layer for i in kept], target, most)):
        last = parameters[kept.pop()]
        used -= packed_bytes(last.layer, target)
        late.append(last)
    return set(kept), sum(p.bytes for p in late), sum(p.stream for p in late)


def _host_bytes(nodes: Sequence[ir.Node], int8: bool) -> int:
    """Bytes of the constants that nodes on the host read; weights of products are a byte each in int8."""
    sizes = {}
    for node in nodes:
        for value in values_read(node):
            if value.const_value is not None:
                product = int8 and node.domain == DIALECT and value is node.inputs[1]
                sizes[value] = value.const_value.size if product else value.const_value.nbytes
    return sum(sizes.values())


def _predict(segments: Sequence[Segment], costs: Mapping[ir.Node, Cost], target: Target, int8: bool) -> None:
    """Fill in what each segment is predicted to take."""
    shared: dict[int, list[ir.Node]] = {}
    for segment in segments:
        segment.macs = sum(costs[n].macs for n in segment.nodes)
        if segment.tpu is None:
            segment.parameter_bytes = _host_bytes(segment.nodes, int8)
            segment.times = {"compute": sum(costs[n].host for n in segment.nodes)}
            continue
        shared.setdefault(segment.tpu, []).extend(segment.nodes)
    kept: set[tuple[ir.Node, int]] = set()
    for nodes in shared.values():
        places = [(n, i) for n in nodes for i in range(len(costs[n].parameters))]
        kept |= {places[i] for i in streamed([costs[n] for n in nodes], target)[0]}
    for segment in (s for s in segments if s.tpu is not None):
        rows = [(n, i, p) for n in segment.nodes for i, p in enumerate(costs[n].parameters)]
        late = [p for n, i, p in rows if (n, i) not in kept]
        segment.parameter_bytes = sum(p.bytes for _, _, p in rows)
        segment.streamed = sum(p.bytes for p in late)
        segment.cached = segment.parameter_bytes - segment.streamed
        segment.times = {
            "invoke": target.invoke,
            "compute": sum(costs[n].tpu for n in segment.nodes),
            "in": sum(map(element_count, segment.inputs)) / target.down,
            "out": sum(map(element_count, segment.outputs)) / target.up,
            "stream": sum(p.stream for p in late),
        }
