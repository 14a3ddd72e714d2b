"""The plan with the least makespan by constraint programming: OR-tools' CP-SAT over stages on each
device and the times at which they run, with a proven bound."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ortools.sat.python import cp_model

from compiler.planner.exact import Terms, solver_of, total
from compiler.planner.parallel import finish, in_order
from compiler.planner.problem import HOST, INFINITE, Problem, Solution, Stages

# The sum of all times is so many units.
_UNITS = 10**7
# Stages that each device may have.
STAGES = 3


def by_timetable(problem: Problem, seconds: float, hint: Stages, most: int = STAGES) -> Solution:
    """The best plan in which every device has up to `most` stages, and what no such plan can end
    before. At least as good as the hint.

    Where `streaming` tells the exact times, the solver may keep any parameters that fit by bytes,
    and what it finds is timed by them.
    """
    reached = finish(problem, hint)
    formulation = _Formulation(problem, most)
    formulation.start_from(hint)
    solver = solver_of(seconds)
    if solver.solve(formulation.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Solution(hint, reached)
    stages = formulation.stages(solver)
    # Rounding moves each term by half a unit at most.
    least = max(0.0, solver.best_objective_bound - 0.5 * formulation.terms) / formulation.scale
    found = finish(problem, stages)
    if found < reached:
        return Solution(stages, found, min(least, found))
    return Solution(hint, reached, min(least, reached))


class _Formulation:
    """Places for stages, some on each device, one after the other.

    `at[n][k]` says that node n stands at place k.
    """

    def __init__(self, problem: Problem, most: int) -> None:
        self.problem = problem
        devices = [*range(problem.tpus)]
        if any(time < INFINITE for time in problem.host):
            devices.append(HOST)
        self.places = [device for device in devices for _ in range(most)]
        self.model = cp_model.CpModel()
        self.scale = _UNITS / max(self._sum_of_times(), 1e-30)
        self.horizon = 2 * _UNITS * (most + 1)
        self.terms = 0
        nodes = range(problem.count)
        self.at = [[self._bool() for _ in self.places] for _ in nodes]
        for row in self.at:
            self.model.add_exactly_one(row)
        kept = {device: self._kept(device) for device in devices if device != HOST}
        ends: list[Any] = []
        starts: list[Any] = []
        for place, device in enumerate(self.places):
            terms = self._duration(place, device, kept.get(device, {}))
            self.terms += len(terms)
            start = self._time()
            starts.append(start)
            ends.append(start + total(terms))
        for place, (device, following) in enumerate(pairwise(self.places)):
            if device == following:
                self.model.add(starts[place + 1] >= ends[place])
        self._keep_order(starts, ends)
        last = self._time()
        for end in ends:
            self.model.add(last >= end)
        self.model.minimize(last)

    def _sum_of_times(self) -> float:
        problem = self.problem
        finite = [min(t, h) for t, h in zip(problem.tpu, problem.host, strict=True)]
        finite += [tensor.down + tensor.up for tensor in problem.tensors]
        finite += [late for late in problem.stream if late < INFINITE]
        return sum(finite) + problem.invoke

    def _bool(self) -> Any:
        return self.model.new_bool_var("")

    def _time(self) -> Any:
        return self.model.new_int_var(0, self.horizon, "")

    def _units(self, time: float) -> int:
        return round(time * self.scale)

    def _duration(self, place: int, device: int, kept: dict[int, Any]) -> Terms:
        """What the time of a place is made of."""
        problem, terms = self.problem, []
        times = problem.host if device == HOST else problem.tpu
        for n, time in enumerate(times):
            if time == INFINITE:
                self.model.add(self.at[n][place] == 0)
            else:
                terms.append((self._units(time), self.at[n][place]))
        if device == HOST:
            return terms
        used = self._bool()
        for row in self.at:
            self.model.add_implication(row[place], used)
        terms.append((self._units(problem.invoke), used))
        for n, stays in kept.items():
            misses = self._bool()
            self.model.add_bool_or([misses, stays, ~self.at[n][place]])
            terms.append((self._units(problem.stream[n]), misses))
        return terms + self._transfers(place)

    def _transfers(self, place: int) -> Terms:
        """Tensors that come to a place and leave it."""
        terms: Terms = []
        for tensor in self.problem.tensors:
            source, down, up = tensor.source, self._units(tensor.down), self._units(tensor.up)
            made = [] if source is None else [self.at[source][place]]
            if down:
                comes = self._bool()
                terms.append((down, comes))
                for reader in tensor.readers:
                    self.model.add_bool_or([comes, ~self.at[reader][place], *made])
            if source is None or not up:
                continue
            goes = self.at[source][place] if tensor.leaves else self._bool()
            terms.append((up, goes))
            for reader in () if tensor.leaves else tensor.readers:
                self.model.add_bool_or([goes, ~made[0], self.at[reader][place]])
        return terms

    def _kept(self, device: int) -> dict[int, Any]:
        """Whether parameters stay cached on a TPU, of nodes whose own may not: the smallest stay,
        as many as fit, or any where exact times tell which."""
        problem = self.problem
        places = [place for place, own in enumerate(self.places) if own == device]
        here = [sum(row[place] for place in places) for row in self.at]
        largest = max(problem.capacities, default=0)
        unit = max(1, largest >> 24)
        room = self.model.new_int_var(0, largest // unit, "")
        for n, own in enumerate(problem.capacities):
            if own < largest:
                for place in places:
                    self.model.add(room <= own // unit).only_enforce_if(self.at[n][place])
        holders = [n for n in range(problem.count) if problem.sizes[n]]
        sizes = {n: -(-problem.sizes[n] // unit) for n in holders}
        must = [sizes[n] * here[n] for n in holders if problem.stream[n] == INFINITE]
        may = [n for n in holders if problem.stream[n] < INFINITE]
        stays = {n: self._bool() for n in may}
        if problem.streaming is not None:
            for n in may:
                self.model.add(stays[n] <= here[n])
            self.model.add(sum(must) + sum(sizes[n] * stays[n] for n in may) <= room)
            return stays
        self.model.add(sum(must) <= room)
        below: list[Any] = []
        opened = None
        for n in sorted(holders, key=problem.rank.__getitem__):
            below.append(sizes[n] * here[n])
            if n not in stays:
                continue
            if opened is not None:
                self.model.add_implication(stays[n], opened)
            opened = stays[n]
            self.model.add(sum(below) <= room).only_enforce_if(opened)
        return stays

    def _keep_order(self, starts: Sequence[Any], ends: Sequence[Any]) -> None:
        """What reads another node's tensor stands at its place, or begins when that one has
        ended."""
        begins = [self._time() for _ in self.at]
        finishes = [self._time() for _ in self.at]
        for n, row in enumerate(self.at):
            for place, is_here in enumerate(row):
                self.model.add(begins[n] <= starts[place]).only_enforce_if(is_here)
                self.model.add(finishes[n] >= ends[place]).only_enforce_if(is_here)
        for u, v in self.problem.edges:
            apart = self._bool()
            for first, second in zip(self.at[u], self.at[v], strict=True):
                self.model.add_bool_or([apart, ~first, second])
            self.model.add(begins[v] >= finishes[u]).only_enforce_if(apart)

    def start_from(self, plan: Stages) -> None:
        """Hint at a plan, where there are places enough for it."""
        taken: set[int] = set()
        place_of: dict[int, int] = {}
        for device, nodes in plan:
            own = [k for k, other in enumerate(self.places) if other == device and k not in taken]
            if not own:
                return
            taken.add(own[0])
            place_of |= dict.fromkeys(nodes, own[0])
        for n, row in enumerate(self.at):
            for place, variable in enumerate(row):
                self.model.add_hint(variable, place_of.get(n) == place)

    def stages(self, solver: cp_model.CpSolver) -> Stages:
        members: list[list[int]] = [[] for _ in self.places]
        for n, row in enumerate(self.at):
            place = next(k for k, variable in enumerate(row) if solver.boolean_value(variable))
            members[place].append(n)
        found = zip(self.places, members, strict=True)
        stages = tuple((device, tuple(nodes)) for device, nodes in found if nodes)
        return in_order(self.problem, stages)
