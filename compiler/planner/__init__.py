"""Where to cut, as a mathematical problem: a directed graph, a host, and some Edge TPUs.

A plan gives every node a *stage*; stages run in order, each on one device, and no edge goes
backwards, so every stage is convex. A TPU's load is what its stages take: computing, invocations,
tensors in and out, parameters that do not stay cached. The host's load is what its stages take.
Where stages follow each other, latency is the sum of the loads; a pipeline's pace is set by the
largest. The unit of time is the caller's.

`by_ideals` finds the best plan of narrow graphs, which most networks are. For others, `exact` hands
the problem to OR-tools' CP-SAT over all orders of the graph and proves how far from the optimum it
is. `heuristic` cuts several orders by dynamic programming and then moves nodes between stages.

Stages that do not need each other run at once: `parallel` makes the last one of a request end
earlier than such plans do, and `by_timetable` ends earliest in small graphs.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.planner.bounds import makespan_bound
from compiler.planner.budget import Budget
from compiler.planner.exact import exact
from compiler.planner.heuristic import heuristic
from compiler.planner.ideals import by_ideals
from compiler.planner.improving import neighbours
from compiler.planner.merging import by_merging
from compiler.planner.orders import alternate
from compiler.planner.parallel import finish, parallel
from compiler.planner.problem import (
    HOST,
    INFINITE,
    Objective,
    Problem,
    Solution,
    Stages,
    Tensor,
    cached,
    cost,
    loads,
    needed,
    objective_of,
    simple_bound,
)
from compiler.planner.queueing import arrivals, latencies, percentile
from compiler.planner.schedule import Interval, Tasks, makespan, schedule
from compiler.planner.timetable import by_timetable

# Graphs of more nodes go to the heuristic alone.
EXACT_NODES = 700

__all__ = [
    "HOST",
    "INFINITE",
    "Budget",
    "Interval",
    "Objective",
    "Problem",
    "Solution",
    "Stages",
    "Tasks",
    "Tensor",
    "alternate",
    "arrivals",
    "by_ideals",
    "by_timetable",
    "cached",
    "cost",
    "exact",
    "finish",
    "heuristic",
    "latencies",
    "loads",
    "makespan",
    "makespan_bound",
    "needed",
    "neighbours",
    "objective_of",
    "parallel",
    "percentile",
    "schedule",
    "solve",
]


def solve(
    problem: Problem, seconds: float = 5.0, start: Stages | None = None, prove: bool = True
) -> Solution:
    """The best plan that is found, with a bound where the graph allows; about twice `seconds` of an
    x86 core at most.

    `start` is a plan to begin from. Without `prove`, the best plan of the merged graph is enough,
    as it is where the problem has a limit. Work is counted, not time: a problem has the same plan
    each time.
    """
    if not problem.count or all(seconds == INFINITE for seconds in problem.tpu):
        return _on_host(problem)
    if problem.tpus == 1:
        problem = replace(problem, replicas=False)
    proven = by_ideals(problem)
    if proven is not None and _one_stage_each(problem):
        return proven
    merged = by_merging(problem) if proven is None else None
    if problem.replicas:
        plans = [plan for plan in (proven, merged) if plan is not None]
        best = min([_copied(problem, seconds, start), *plans], key=lambda plan: plan.cost)
        return replace(best, bound=min(simple_bound(problem), best.cost))
    large = problem.count > EXACT_NODES
    starts = [start] if start is not None else []
    if merged is not None:
        starts.append(merged.stages)
    found = heuristic(problem, seconds if large else seconds / 3, starts=starts)
    settled = merged is not None and (not prove or problem.limit < INFINITE)
    if proven is None and not settled and not large and seconds > 0:
        proven = exact(problem, seconds, found)
    if proven is None:
        return found
    best = min(proven, found, key=lambda plan: plan.cost)
    return replace(best, bound=min(max(proven.bound or 0.0, simple_bound(problem)), best.cost))


def _copied(problem: Problem, seconds: float, start: Stages | None) -> Solution:
    """The best of whole pipelines that are there several times, each on as many TPUs.

    The host has to keep up with all of them.
    """
    copies_of = {problem.tpus // copies: copies for copies in range(1, problem.tpus + 1)}
    host = sum(t for t, tpu in zip(problem.host, problem.tpu, strict=True) if tpu == INFINITE)
    best: Solution | None = None
    for tpus, copies in sorted(copies_of.items(), reverse=True):
        limit = problem.limit * copies
        whole = replace(problem, tpus=tpus, replicas=False, limit=limit)
        fits = start is not None and all(device < tpus for device, _ in start)
        found = solve(whole, seconds / len(copies_of), start if fits else None, prove=False)
        several = {device: copies for device, _ in found.stages if device != HOST}
        reached = cost(problem, found.stages, several)
        if best is None or reached < best.cost:
            best = Solution(found.stages, reached, copies=several)
        if problem.objective == "throughput" and best.cost <= host:
            break
    assert best is not None
    return best


def _one_stage_each(problem: Problem) -> bool:
    """Whether no TPU can gain by more than one stage: the host has nothing to do in between."""
    sides = [seconds < INFINITE for seconds in problem.tpu]
    turns = alternate(problem, range(problem.count), sides)
    return not problem.free and sum(on_tpu for on_tpu, nodes in turns if nodes) <= 1


def _on_host(problem: Problem) -> Solution:
    """The only plan where there is no node that may go to a TPU."""
    nodes = tuple(range(problem.count))
    stages: Stages = ((HOST, nodes),) if nodes else ()
    seconds = cost(problem, stages)
    return Solution(stages, seconds, seconds)
