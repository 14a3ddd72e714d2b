"""The best plan by constraint programming: OR-tools' CP-SAT over all orders of the graph, with a
proven bound."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import networkx as nx
from ortools.sat.python import cp_model

from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Solution,
    Stages,
    cost,
    filled,
    levels,
    simple_bound,
)

Terms = list[tuple[int, Any]]
"""(weight, variable) pairs."""


def exact(problem: Problem, seconds: float, hint: Solution | None = None) -> Solution | None:
    """The best plan in which every TPU has one stage, and how good any such plan can be; None where
    there is none."""
    formulation = _Formulation(problem)
    if hint is not None:
        formulation.start_from(hint)
    solver = solver_of(seconds)
    if solver.solve(formulation.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    scale, least, reached = formulation.scale, solver.best_objective_bound, solver.objective_value
    stages = formulation.stages(solver)
    # Rounding moves each term by half a unit at most.
    slack = min(0.5 * formulation.terms, 1e-4 * reached)
    return Solution(stages, cost(problem, stages), max(0.0, (least - slack) / scale))


def solver_of(seconds: float) -> cp_model.CpSolver:
    """One search whose work is counted: the same problem gives the same plan, whatever else the
    machine does."""
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = seconds
    solver.parameters.num_workers = 1
    # Else it takes Ctrl-C for itself and leaves it without a handler: the process then ends
    # uncleaned.
    solver.parameters.catch_sigint_signal = False
    # Of the counted work, probing took the most on graphs of a hundred nodes and more, and gave the
    # least.
    solver.parameters.cp_model_probing_level = 0
    return solver


class _Formulation:
    """Levels in a row, host and TPUs in turn.

    `behind[n][k]` says that node n stands behind level k, `at[n][k]` that it stands at it.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.devices = levels(problem)
        self.model = cp_model.CpModel()
        finite = [min(t, h) for t, h in zip(problem.tpu, problem.host, strict=True)]
        finite += [t.down + t.up for t in problem.tensors] + [
            s for s in problem.stream if s < INFINITE
        ]
        self.scale = 10**7 / max(sum(finite) + problem.invoke, 1e-30)
        nodes, count = range(problem.count), len(self.devices)
        self.behind = [self._variables(count - 1) for _ in nodes]
        self.at = [list(map(partial(self._at, n), range(count))) for n in nodes]
        for row in self.behind:
            for near, far in pairwise(row):
                self.model.add_implication(far, near)
        for u, v in (
            nx.transitive_reduction(nx.DiGraph([*problem.edges])).edges if problem.edges else ()
        ):
            for k in range(count - 1):
                self.model.add_implication(self.behind[u][k], self.behind[v][k])
        loads: dict[int, Terms] = {device: [] for device in self.devices}
        for k, device in enumerate(self.devices):
            loads[device] += self._level(k, device)
        self.terms = sum(map(len, loads.values()))
        if problem.host_stages is not None:
            self._bound_host(problem.host_stages)
        self.sums = [total(terms) for terms in loads.values()]
        self.goal: Any = sum(self.sums)
        if problem.limit < INFINITE:
            for value in self.sums:
                self.model.add(value <= self._units(problem.limit))
        if problem.objective == "throughput":
            self.goal = self.model.new_int_var(0, 10**8, "")
            for value in self.sums:
                self.model.add(value <= self.goal)
        self.model.add(
            self.goal >= int(simple_bound(problem) * self.scale * (1 - 1e-6)) - self.terms
        )
        self.model.minimize(self.goal)

    def _variables(self, count: int) -> list[Any]:
        return [self.model.new_bool_var("") for _ in range(count)]

    def _units(self, time: float) -> int:
        return round(time * self.scale)

    def _stands_behind(self, n: int, level: int) -> Any:
        """Node n stands at this level or a later one."""
        return (
            True
            if level <= 0
            else False
            if level >= len(self.devices)
            else self.behind[n][level - 1]
        )

    def _at(self, n: int, level: int) -> Any:
        here, further = self._stands_behind(n, level), self._stands_behind(n, level + 1)
        if further is False:
            return here
        if here is True:
            return ~further
        at = self.model.new_bool_var("")
        self.model.add(at == here - further)
        return at

    def _level(self, k: int, device: int) -> Terms:
        """What the load of level k is made of."""
        problem, terms = self.problem, []
        times = problem.host if device == HOST else problem.tpu
        for n, time in enumerate(times):
            if time == INFINITE:
                self.model.add(self.at[n][k] == 0)
            else:
                terms.append((self._units(time), self.at[n][k]))
        if device == HOST:
            return terms
        used = self.model.new_bool_var("")
        for row in self.at:
            self.model.add_implication(row[k], used)
        terms.append((self._units(problem.invoke), used))
        return terms + self._transfers(k) + self._streaming(k)

    def _transfers(self, k: int) -> Terms:
        """Tensors that come to level k and leave it."""
        terms: Terms = []
        for tensor in self.problem.tensors:
            source, down, up = tensor.source, self._units(tensor.down), self._units(tensor.up)
            if down:
                comes = self.model.new_bool_var("")
                terms.append((down, comes))
                for r in tensor.readers:
                    before = [] if source is None else [self._stands_behind(source, k)]
                    self.model.add_bool_or([comes, ~self.at[r][k], *before])
            if source is None or not up:
                continue
            goes = self.at[source][k] if tensor.leaves else self.model.new_bool_var("")
            terms.append((up, goes))
            for r in () if tensor.leaves else tensor.readers:
                self.model.add_bool_or([goes, ~self.at[source][k], ~self._stands_behind(r, k + 1)])
        return terms

    def _streaming(self, k: int) -> Terms:
        """Parameters that level k does not keep: the smallest stay, as many as fit."""
        problem, terms = self.problem, []
        holders = sorted(
            (n for n in range(problem.count) if problem.sizes[n]), key=problem.rank.__getitem__
        )
        unit = max(1, max(problem.capacities, default=0) >> 24)
        room = self.model.new_int_var(0, max(problem.capacities, default=0) // unit, "")
        for n, own in enumerate(problem.capacities):
            if own < max(problem.capacities):
                self.model.add(room <= own // unit).only_enforce_if(self.at[n][k])
        below: list[Any] = []
        whole, opened = 0, None
        for n in holders:
            whole += problem.sizes[n]
            below.append(-(-problem.sizes[n] // unit) * self.at[n][k])
            if problem.stream[n] == INFINITE or whole <= min(problem.capacities):
                continue
            stays = self.model.new_bool_var("")
            if opened is not None:
                self.model.add_implication(stays, opened)
            opened = stays
            self.model.add(sum(below) <= room).only_enforce_if(stays)
            misses = self.model.new_bool_var("")
            self.model.add_bool_or([misses, stays, ~self.at[n][k]])
            terms.append((self._units(problem.stream[n]), misses))
        must = [
            -(-problem.sizes[n] // unit) * self.at[n][k]
            for n in holders
            if problem.stream[n] == INFINITE
        ]
        self.model.add(sum(must) <= room)
        return terms

    def _bound_host(self, most: int) -> None:
        used = []
        for k in (k for k, device in enumerate(self.devices) if device == HOST):
            used.append(self.model.new_bool_var(""))
            for row in self.at:
                self.model.add_implication(row[k], used[-1])
        self.model.add(sum(used) <= most)

    def start_from(self, plan: Solution) -> None:
        """Hint at a plan, where the levels can express it."""
        level: dict[int, int] = {}
        start = 0
        for device, nodes in plan.stages:
            places = [k for k in range(start, len(self.devices)) if self.devices[k] == device]
            if not places:
                return
            start = places[0]
            level |= dict.fromkeys(nodes, start)
        for n, row in enumerate(self.behind):
            for k, variable in enumerate(row):
                self.model.add_hint(variable, level[n] > k)

    def stages(self, solver: cp_model.CpSolver) -> Stages:
        rows: list[list[int]] = [[] for _ in self.devices]
        for n, row in enumerate(self.behind):
            rows[sum(map(solver.boolean_value, row))].append(n)
        return filled(self.devices, rows)


def total(terms: Terms) -> Any:
    return sum(weight * variable for weight, variable in terms)
