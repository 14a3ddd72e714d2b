"""Where to cut, as a mathematical problem: a directed graph, a host, and some Edge TPUs.

A plan gives every node a *stage*; stages run in order, each on one device, and no edge goes
backwards, so every stage is convex. A TPU's load is what its stages take: computing, invocations,
tensors in and out, parameters that do not stay cached. The host's load is what its stages take.
Latency is the sum of the loads; a pipeline's pace is set by the largest. The unit of time is the
caller's.

`exact` hands the problem to OR-tools' CP-SAT over all orders of the graph and proves how far from
the optimum it is. `heuristic` cuts several orders by dynamic programming and then moves nodes
between stages.
"""

from __future__ import annotations

from dataclasses import replace

from compiler.planner.budget import Budget
from compiler.planner.exact import exact
from compiler.planner.heuristic import heuristic
from compiler.planner.improving import neighbours
from compiler.planner.orders import alternate
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
    needed,
    simple_bound,
)

# Graphs of more nodes go to the heuristic alone.
EXACT_NODES = 700

__all__ = [
    "HOST",
    "INFINITE",
    "Budget",
    "Objective",
    "Problem",
    "Solution",
    "Stages",
    "Tensor",
    "alternate",
    "cached",
    "cost",
    "exact",
    "heuristic",
    "needed",
    "neighbours",
    "solve",
]


def solve(problem: Problem, seconds: float = 5.0) -> Solution:
    """The heuristic's plan, and the exact one where the graph allows; about twice `seconds` of an
    x86 core at most.

    Work is counted, not time: a problem has the same plan each time.
    """
    if all(seconds == INFINITE for seconds in problem.tpu):
        return _on_host(problem)
    large = problem.count > EXACT_NODES
    found = heuristic(problem, seconds if large else seconds / 3)
    if not problem.count or large or seconds <= 0:
        return found
    proven = exact(problem, seconds, found)
    if proven is None:
        return found
    best = min(proven, found, key=lambda plan: plan.cost)
    return replace(best, bound=min(max(proven.bound or 0.0, simple_bound(problem)), best.cost))


def _on_host(problem: Problem) -> Solution:
    """The only plan where no node may go to a TPU."""
    nodes = tuple(range(problem.count))
    stages: Stages = ((HOST, nodes),) if nodes else ()
    seconds = cost(problem, stages)
    return Solution(stages, seconds, seconds)
