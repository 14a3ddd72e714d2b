"""Cuts orders of the graph, then moves nodes between stages. Fast, and proves nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from compiler.planner.budget import SMALL_GRAPH, Budget
from compiler.planner.cutting import cut_jointly, cut_turns
from compiler.planner.improving import improve
from compiler.planner.orders import alternate, orders, orders_of_plan
from compiler.planner.problem import HOST, INFINITE, Problem, Solution, Stages, cost, loads
from compiler.planner.sides import sides

# Of so many plans that are best so far, each round improves all.
_IMPROVED = 3
_ROUNDS = 3


def heuristic(
    problem: Problem, seconds: float = 8.0, seed: int = 0, starts: Iterable[Stages] = ()
) -> Solution:
    """The best of several orders and sides, each cut by dynamic programming, and of the plans
    `starts`, then improved."""
    if not problem.count:
        return Solution((), 0.0)
    budget = Budget(seconds)
    rng = random.Random(seed)
    choices = sides(problem)
    found = _Found(problem)
    found.add_all(starts)
    for order in orders(problem, rng):
        found.add_all(_plans_of_order(problem, order, choices, budget))
        if budget.spent:
            break
    assert found.plans, "no plan has so few host stages"
    for _ in range(_ROUNDS if problem.count <= SMALL_GRAPH else 1):
        for stages in found.best(_IMPROVED):
            found.add(improve(problem, stages, rng, budget))
        # What came of the best plans gives new orders to cut.
        for order in orders_of_plan(problem, found.best(1)[0], rng):
            found.add_all(_plans_of_order(problem, order, choices, budget))
        if budget.spent:
            break
    stages = found.best(1)[0]
    return Solution(stages, found.plans[stages][0])


class _Found:
    """Plans with what they cost: (objective, sum of loads), so that of the same pace the one with
    the lower latency is better."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.plans: dict[Stages, tuple[float, float]] = {}

    def add(self, stages: Stages) -> None:
        most = self.problem.host_stages
        if most is not None and sum(device == HOST for device, _ in stages) > most:
            return
        total = sum(loads(self.problem, stages).values())
        self.plans[stages] = (cost(self.problem, stages), total)

    def add_all(self, plans: Iterable[Stages]) -> None:
        for stages in plans:
            self.add(stages)

    def best(self, count: int) -> list[Stages]:
        return sorted(self.plans, key=self.plans.__getitem__)[:count]


def _plans_of_order(
    problem: Problem, order: Sequence[int], choices: Sequence[list[bool]], budget: Budget
) -> Iterator[Stages]:
    for side in choices:
        yield cut_turns(problem, alternate(problem, order, side), budget)
    if any(seconds < INFINITE for seconds in problem.host):
        joint = cut_jointly(problem, order, budget)
        if joint is not None:
            yield joint
