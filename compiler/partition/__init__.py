"""Which node runs where: cuts a lowered graph into segments, each for one Edge TPU or for the host.

Contract of `partition`: every node is in exactly one segment; a segment reads only graph inputs,
constants and what earlier segments made, so every segment is convex and the list is an order to run
them in; the parameters that are said to stay cached fit their Edge TPU together (`targets.fits`),
and those that do not are said to be streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compiler import planner
from compiler.errors import OptionError
from compiler.graph import element_count
from compiler.graph.lineage import names_of
from compiler.partition.dividing import divisions
from compiler.partition.load import best_under_load, repeated
from compiler.partition.options import DeviceKind, PartitionOptions, PlacePolicy
from compiler.partition.placement import joining, no_node, place_nodes
from compiler.partition.plan import Placement, Placements, Plan, Segment
from compiler.partition.problem import (
    Units,
    planner_problem,
    stages_of_cuts,
    unit_numbers,
    units_of,
)
from compiler.partition.program import Program
from compiler.partition.segments import assemble, halved, streamed
from compiler.partition.shards import PLANNED, divide
from compiler.partition.task import Task, boundary
from compiler.targets import Target

# Shares of the room for parameters that the planner may count on, one after the other, where the
# tiles of the SRAM hold less than it planned with.
TIGHTER_ROOMS = (0.94, 0.85)
# A plan that is so much worse than its bound, or than the planner promised, is planned again.
PROMISE_SLACK = 1.001
# Of the plans for a pipeline whose pace is nearly the best, other figures decide.
NEAR_PACE = 1.01
# Graphs of up to so many nodes, times Edge TPUs, go to the solver of timetables.
MOST_PLACES = 120
# A plan with more segments that run at once must be so much faster.
NEAR_LATENCY = 1.01
# A plan that is so near to its bound, as a share of it, is not searched for again.
PROVEN = 1 - 1e-6
# So many ways to divide layers among Edge TPUs are planned.
TRIED_DIVISIONS = 3

__all__ = [
    "DeviceKind",
    "PartitionOptions",
    "PlacePolicy",
    "Placement",
    "Plan",
    "Program",
    "Segment",
    "halved",
    "partition",
    "partition_for_all",
    "streamed",
]


def partition(model: ir.Model, target: Target, options: PartitionOptions | None = None) -> Plan:
    """Cut a lowered model into segments for `target`. Raises OptionError for options that cannot be
    met."""
    options = options or PartitionOptions()
    search = _search_of(Task(model.graph, target, options))
    if options.cuts:
        stages = stages_of_cuts(search.units_named(options.cuts), search.problem, options.tpus)
        plan, bound = search.assembled(stages), None
    else:
        plan, bound = search.planned()
        if options.sought == "latency" and options.tpus > 1:
            plan, bound = search.at_once(search.stages_of(plan))
    return search.finished(plan, bound)


def partition_for_all(
    model: ir.Model, target: Target, options: PartitionOptions
) -> tuple[ir.Model, Plan]:
    """As `partition`; where the latency of several Edge TPUs counts, layers are divided among them
    if that is predicted to be faster. Returns the model as it was cut, too."""
    if options.rate is not None:
        return _under_load(model, target, options, options.rate)
    plan = partition(model, target, options)
    # Programs of a language model share their weights, which must be the same in all of them.
    shares_weights = options.host_int8
    if options.sought != "latency" or options.tpus == 1 or options.cuts or shares_weights:
        return model, plan
    best = model, plan
    for division in divisions(model.graph, plan, target)[:TRIED_DIVISIONS]:
        copy = model.clone()
        nodes = list(copy.graph)
        planned = _segment_numbers(model, plan)
        for node, number in zip(nodes, planned, strict=True):
            node.meta[PLANNED] = number
        divide(copy, [nodes[i] for i in division.places], division.parts, target.block_outputs)
        search = _search_of(Task(copy.graph, target, options))
        other = search.finished(*search.at_once(search.stages_planned(plan)))
        if _faster(best[1], other) is other:
            best = copy, other
    return best


def _under_load(
    model: ir.Model, target: Target, options: PartitionOptions, rate: float
) -> tuple[ir.Model, Plan]:
    """The plan with which 95% of the requests are answered soonest: one for all Edge TPUs, for
    latency or for throughput, or one for fewer that is there several times."""
    found = []
    sizes = {options.tpus // copies for copies in range(1, options.tpus + 1)}
    for tpus in sorted(sizes, reverse=True):
        alone = replace(options, objective="latency", rate=None, tpus=tpus)
        cut, plan = partition_for_all(model, target, alone)
        found.append((cut, repeated(plan, options.tpus // tpus)))
    full = replace(options, objective="throughput", rate=None)
    found.append((model, partition(model, target, full)))
    cut, plan = best_under_load(found, rate)
    # How far another plan could be better is not known.
    return cut, replace(plan, options=options, gap=None)


def _segment_numbers(model: ir.Model, plan: Plan) -> list[int]:
    """The segment of each node of a graph, in the graph's order."""
    number_of: dict[ir.Node, int] = {}
    for segment in plan.segments:
        number_of |= dict.fromkeys(segment.nodes, segment.index)
    return [number_of[node] for node in model.graph]


def _search_of(task: Task) -> _Search:
    placements = place_nodes(task)
    units = units_of(task.graph, placements)
    return _Search(task, placements, units, planner_problem(task, units, placements))


def _final_placements(task: Task, placements: Placements, plan: Plan) -> dict[ir.Node, Placement]:
    """The placements, with the prediction as the reason where the planner chose another device."""
    final = dict(placements.of)
    for segment in plan.segments:
        moved = [node for node in segment.nodes if final[node].device != segment.device]
        if moved:
            placement = Placement(segment.device, _predicted_reason(task, placements, moved))
            final |= dict.fromkeys(moved, placement)
    return final


def _predicted_reason(task: Task, placements: Placements, nodes: list[ir.Node]) -> str:
    """What nodes that an Edge TPU takes would cost there, and why the host has them."""
    costs = [placements.costs[node] for node in nodes]
    here = 1e3 * sum(cost.host for cost in costs)
    there = 1e3 * sum(cost.tpu for cost in costs)
    inputs, outputs = boundary(nodes, task.readers)
    target = task.target
    way = target.invoke + sum(map(element_count, inputs)) / target.down
    way += sum(map(element_count, outputs)) / target.up
    what = f"{len(nodes)} operators take" if len(nodes) > 1 else "it takes"
    reason = (
        f"predicted: {what} {here:.3g} ms here; {there:.3g} ms on the Edge TPU, and "
        f"{1e3 * way:.3g} ms to get there and back"
    )
    stream = 1e3 * sum(layer.stream for cost in costs for layer in cost.parameters)
    return f"{reason}; {stream:.3g} ms more where parameters are streamed" if stream else reason


@dataclass(frozen=True)
class _Search:
    """A problem with what its plans are assembled from."""

    task: Task
    placements: Placements
    units: Units
    problem: planner.Problem

    def assembled(self, stages: planner.Stages, copies: Mapping[int, int] | None = None) -> Plan:
        return assemble(stages, self.units, self.placements.costs, self.task, copies)

    def units_named(self, names: Sequence[str]) -> list[int]:
        """The units of the nodes that the user cuts behind."""
        unit_of: dict[str, int] = {}
        for index, unit in enumerate(self.units):
            for node in unit:
                unit_of |= dict.fromkeys(names_of(node), index)
        for name in names:
            if name not in unit_of:
                raise OptionError(f"{name}: {no_node(self.task.graph, name)}", "cuts")
        return [unit_of[name] for name in names]

    def planned(self) -> tuple[Plan, float | None]:
        """The best plan found, and what no plan can be better than where a solver has looked."""
        plan, bound = self._best(self.problem, self.task.options.seconds)
        if self.problem.objective == "throughput":
            plan = self._thrifty(plan)
        return plan, bound

    def finished(self, plan: Plan, bound: float | None) -> Plan:
        """A plan with what is told of it beside its segments."""
        gap = None
        if bound is not None and plan.objective > 0:
            gap = max(0.0, 1 - bound / plan.objective)
        placements = _final_placements(self.task, self.placements, plan)
        return replace(plan, placements=placements, gap=gap)

    def at_once(self, start: planner.Stages) -> tuple[Plan, float]:
        """A plan whose segments run at once where they do not need each other, if one is faster
        than the one to begin from, and what no plan can be faster than.

        The host may join what several Edge TPUs made.
        """
        joins = joining(self.task, self.placements)
        placements = replace(self.placements, free=self.placements.free | joins)
        problem = planner_problem(self.task, self.units, placements)
        seconds = self.task.options.seconds / 2
        found = planner.parallel(problem, start, seconds)
        best = _faster(self.assembled(start), self.assembled(found.stages))
        bound = planner.makespan_bound(problem, best.latency)
        places = problem.count * problem.tpus
        if bound < best.latency / NEAR_LATENCY and places <= MOST_PLACES:
            exact = planner.by_timetable(problem, seconds / 3, self.stages_of(best))
            best = _faster(best, self.assembled(exact.stages))
            bound = max(bound, exact.bound or 0.0)
        return best, bound

    def stages_planned(self, plan: Plan) -> planner.Stages:
        """The stages of a plan for the same graph before layers were divided; what the host has to
        do in between divides stages."""
        members: dict[int, list[int]] = {segment.index: [] for segment in plan.segments}
        for number, unit in enumerate(self.units):
            members[unit[0].meta[PLANNED]].append(number)
        sides = [seconds < planner.INFINITE for seconds in self.problem.tpu]
        stages: list[tuple[int, tuple[int, ...]]] = []
        for segment in plan.segments:
            for on_tpu, nodes in planner.alternate(self.problem, members[segment.index], sides):
                if nodes:
                    tpu = segment.tpu if segment.tpu is not None else 0
                    stages.append((tpu if on_tpu else planner.HOST, tuple(nodes)))
        return tuple(stages)

    def _thrifty(self, fastest: Plan) -> Plan:
        """Of the plans whose pace is within 1% of the fastest one's, the one with the least
        latency, then the least streaming, then the fewest TPUs."""
        limit = NEAR_PACE * fastest.interval
        problem = replace(self.problem, objective="latency", limit=limit)
        plan, _ = self._best(problem, self.task.options.seconds / 2, self.stages_of(fastest))
        return min(plan, fastest, key=lambda plan: (_score(problem, plan), *_expense(plan)))

    def _best(
        self, problem: planner.Problem, seconds: float, start: planner.Stages | None = None
    ) -> tuple[Plan, float | None]:
        """A plan of the problem and its bound; `start` is a plan to begin from."""
        found = planner.solve(problem, seconds, start)
        plan = self._refined(problem, found, start)
        enough = planner.needed(problem) + 1
        is_open = found.bound is None or found.bound < found.cost * PROVEN
        if problem.objective == "latency" and is_open and enough < problem.tpus:
            # More TPUs than hold the parameters make the search larger, and seldom the latency
            # smaller.
            fewer = replace(problem, tpus=enough)
            other = planner.solve(fewer, seconds / 2)
            plan = _better(problem, plan, self._refined(fewer, other, None))
        return plan, found.bound

    def _refined(
        self, problem: planner.Problem, found: planner.Solution, start: planner.Stages | None
    ) -> Plan:
        """A plan that the tiles take.

        The planner counts bytes. Where the tiles do not take all that it counted on, nodes at
        boundaries move, and it plans again with less room.
        """
        plan = self.assembled(found.stages, found.copies)
        if found.bound is not None and _score(problem, plan) <= found.bound * PROMISE_SLACK:
            return plan
        by_bytes = replace(problem, streaming=None)
        promised = planner.cost(by_bytes, found.stages, found.copies)
        for share in TIGHTER_ROOMS:
            plan = self._repaired(problem, plan)
            if _score(problem, plan) <= promised * PROMISE_SLACK:
                break
            tighter = replace(
                by_bytes, capacities=[int(room * share) for room in problem.capacities]
            )
            other = planner.solve(tighter, self.task.options.seconds / 4, start)
            plan = _better(problem, plan, self.assembled(other.stages, other.copies))
        return plan

    def _repaired(self, problem: planner.Problem, plan: Plan) -> Plan:
        """Move nodes across boundaries as long as that helps by what the tiles take."""
        budget = planner.Budget(self.task.options.seconds / 2)
        better: Plan | None = plan
        while better is not None:
            plan = better
            better = self._better_neighbour(problem, plan, budget)
        return plan

    def _better_neighbour(
        self, problem: planner.Problem, plan: Plan, budget: planner.Budget
    ) -> Plan | None:
        enough = _score(problem, plan) * (1 - 1e-6)
        copies = {s.tpu: 1 + len(s.replicas) for s in plan.segments if s.tpu is not None}
        for stages in planner.neighbours(problem, self.stages_of(plan), budget):
            if budget.spent:
                return None
            # Assembling takes about so much longer than a step of the planner.
            budget.spend(40 * problem.count)
            candidate = self.assembled(stages, copies)
            if _score(problem, candidate) < enough:
                return candidate
        return None

    def stages_of(self, plan: Plan) -> planner.Stages:
        unit_of = unit_numbers(self.units)
        stages = []
        for segment in plan.segments:
            members = sorted({unit_of[node] for node in segment.nodes})
            device = planner.HOST if segment.tpu is None else segment.tpu
            stages.append((device, tuple(members)))
        return tuple(stages)


def _score(problem: planner.Problem, plan: Plan) -> float:
    """What the planner's problem asks to be small, of an assembled plan."""
    loads = plan.loads
    if None in loads:
        # As in the problem.
        loads[None] = plan.shares[None]
    return planner.objective_of(problem, loads.values(), plan.shares.values())


def _better(problem: planner.Problem, plan: Plan, other: Plan) -> Plan:
    return min(plan, other, key=lambda plan: _score(problem, plan))


def _faster(plan: Plan, other: Plan) -> Plan:
    """The other plan where it is worth its segments."""
    return other if other.latency * NEAR_LATENCY < plan.latency else plan


def _expense(plan: Plan) -> tuple[int, int]:
    """Bytes that are streamed at each inference, and TPUs."""
    used: set[int] = set()
    for segment in plan.segments:
        if segment.tpu is not None:
            used |= {segment.tpu, *segment.replicas}
    return sum(segment.streamed for segment in plan.segments), len(used)
