"""Moves nodes between the stages of a plan while that helps."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import networkx as nx

from compiler.planner.budget import SMALL_GRAPH, Budget
from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Stages,
    cached,
    filled,
    levels,
    objective_of,
    stage_time,
)

# How often a small plan is shaken, and how many orders of two stages are tried when they are cut
# anew.
_SHAKES = 12
_ORDERS = 12

Score = tuple[float, float]


class Rows:
    """Stages under change, with the time of each and of the parameters that each device streams.

    `row_of` is the number of the stage that each node is in.
    """

    def __init__(self, problem: Problem, stages: Stages, budget: Budget) -> None:
        self.problem, self.budget = problem, budget
        self.devices = [device for device, _ in stages]
        self.rows = [set(nodes) for _, nodes in stages]
        self.row_of: dict[int, int] = {}
        for index, row in enumerate(self.rows):
            self.row_of |= dict.fromkeys(row, index)
        self.times = [self._time(i) for i in range(len(self.rows))]
        self.streaming = {device: self._streaming(device) for device in set(self.devices)}

    def _time(self, stage: int) -> float:
        row = self.rows[stage]
        self.budget.spend(20 + 4 * len(row))
        return stage_time(self.problem, self.devices[stage], [*row]) if row else 0.0

    def _streaming(self, device: int) -> float:
        if device == HOST:
            return 0.0
        nodes: list[int] = []
        for other, row in zip(self.devices, self.rows, strict=True):
            if other == device:
                nodes += row
        self.budget.spend(10 + len(nodes))
        return cached(self.problem, nodes)[1]

    def score(self) -> Score:
        """The objective first; of equal ones, the one whose loads are more even."""
        loads = dict(self.streaming)
        for device, seconds in zip(self.devices, self.times, strict=True):
            loads[device] += seconds
        unevenness = sum(load * load for load in loads.values())
        times = loads.values()
        return objective_of(self.problem, times, times), unevenness

    def allowed(self, n: int, stage: int) -> bool:
        times = self.problem.host if self.devices[stage] == HOST else self.problem.tpu
        return times[n] < INFINITE

    def move(self, n: int, new: int) -> dict[int, int] | None:
        """Put a node into stage `new` with all that must go along.

        What may not be on that stage's device goes one stage further. Returns where the nodes
        were, None where they cannot move.
        """
        step = -1 if new < self.row_of[n] else 1
        places: dict[int, int] = {}
        self.budget.spend(20)
        for member in self._must_move(n, new):
            place = self._place_near(member, new, step)
            if place is None or (member == n and place != new):
                return None
            places[member] = place
        before = self.put(places)
        if all(self._in_order(member) for member in places):
            return before
        self.put(before)
        return None

    def _must_move(self, n: int, new: int) -> set[int]:
        """n with its ancestors on the way to an earlier stage, else with its descendants."""
        earlier = new < self.row_of[n]
        near = self.problem.predecessors if earlier else self.problem.successors
        group, todo = {n}, [n]
        while todo:
            for other in near[todo.pop()]:
                here = self.row_of[other]
                in_the_way = here > new if earlier else here < new
                if in_the_way and other not in group:
                    group.add(other)
                    todo.append(other)
        return group

    def _place_near(self, n: int, stage: int, step: int) -> int | None:
        """`stage` or the one after it in the direction of `step`, where n is allowed."""
        for place in (stage, stage + step):
            if 0 <= place < len(self.rows) and self.allowed(n, place):
                return place
        return None

    def _in_order(self, n: int) -> bool:
        here = self.row_of[n]
        before, behind = self.problem.predecessors[n], self.problem.successors[n]
        follows = all(self.row_of[p] <= here for p in before)
        return follows and all(self.row_of[s] >= here for s in behind)

    def put(self, places: Mapping[int, int]) -> dict[int, int]:
        """Put nodes into stages, whatever that does to the order; returns where they were."""
        before = {n: self.row_of[n] for n in places}
        touched = {*before.values(), *places.values()}
        for n, new in places.items():
            self.rows[self.row_of[n]].discard(n)
            self.rows[new].add(n)
            self.row_of[n] = new
        for stage in touched:
            self.times[stage] = self._time(stage)
        for device in {self.devices[stage] for stage in touched}:
            self.streaming[device] = self._streaming(device)
        return before

    @property
    def stages(self) -> Stages:
        return filled(self.devices, self.rows)


def improve(problem: Problem, stages: Stages, rng: random.Random, budget: Budget) -> Stages:
    """Take every move that helps; small graphs are shaken and improved again."""
    rows = Rows(problem, _with_empty_stages(problem, stages), budget)
    best = _descend(rows, {})
    while not budget.spent and (better := _recut(rows, rng)) < best:
        best = min(better, _descend(rows, {}))
    best_stages = rows.stages
    for _ in range(_SHAKES if problem.count <= SMALL_GRAPH else 0):
        if budget.spent:
            break
        undo = _shake(rows, rng)
        score = _descend(rows, undo)
        if score < best:
            best, best_stages = score, rows.stages
        else:
            rows.put(undo)
    return best_stages


def _shake(rows: Rows, rng: random.Random) -> dict[int, int]:
    """Move one to three nodes by chance; returns where the nodes were."""
    undo: dict[int, int] = {}
    for _ in range(rng.randint(1, 3)):
        n = rng.randrange(rows.problem.count)
        new = rng.randrange(len(rows.rows))
        moved = rows.move(n, new) if new != rows.row_of[n] else None
        # Of a node that moved twice, the first place counts.
        undo = {**(moved or {}), **undo}
    return undo


def neighbours(problem: Problem, stages: Stages, budget: Budget) -> Iterator[Stages]:
    """Plans in which one node at a boundary, with what must go along, stands on the other side."""
    rows = Rows(problem, stages, budget)
    for n in range(problem.count):
        around = (*problem.predecessors[n], *problem.successors[n])
        near = {rows.row_of[m] for m in around}
        for new in sorted(near - {rows.row_of[n]}):
            before = rows.move(n, new)
            if before is not None:
                yield rows.stages
                rows.put(before)


def _recut(rows: Rows, rng: random.Random) -> Score:
    """Cut each pair of neighbouring stages anew, in several orders of what they hold."""
    best = rows.score()
    count = len(rows.rows)
    pairs = [(i, i + 1) for i in range(count - 1)]
    pairs += [(i, i + 2) for i in range(count - 2) if not rows.rows[i + 1]]
    for first, second in pairs:
        both = rows.rows[first] | rows.rows[second]
        if len(both) <= SMALL_GRAPH and not rows.budget.spent:
            best = _recut_pair(rows, first, second, best, rng)
    return best


def _recut_pair(rows: Rows, first: int, second: int, best: Score, rng: random.Random) -> Score:
    """Move all nodes to the second stage, and back to the first one by one in several orders.

    The best division that is passed on the way stays; returns its score, or `best`.
    """
    successors = rows.problem.successors
    both = rows.rows[first] | rows.rows[second]
    graph = nx.DiGraph()
    for u in both:
        graph.add_edges_from((u, v) for v in successors[u] if v in both)
    graph.add_nodes_from(both)
    only_first = {n for n in both if not rows.allowed(n, second)}
    found = {n: rows.row_of[n] for n in both}
    for _ in range(_ORDERS):
        rank = {n: rng.random() for n in both}
        rows.put(dict.fromkeys(both, second))
        for n in nx.lexicographical_topological_sort(graph, key=rank.__getitem__):
            if not rows.allowed(n, first):
                break
            rows.put({n: first})
            if any(rows.row_of[m] != first for m in only_first):
                continue
            score = rows.score()
            if score < best:
                best, found = score, {m: rows.row_of[m] for m in both}
    rows.put(found)
    return best


def _with_empty_stages(problem: Problem, stages: Stages) -> Stages:
    """The stages with the empty ones of each level between them, so that nodes can move there.

    A plan in which a TPU has several stages is given back as it is.
    """
    devices = levels(problem)
    rows: list[list[int]] = [[] for _ in devices]
    level = 0
    for device, nodes in stages:
        while level < len(devices) and (devices[level] == HOST) != (device == HOST):
            level += 1
        if level == len(devices):
            return stages
        rows[level] += nodes
        level += 1
    return tuple((device, tuple(row)) for device, row in zip(devices, rows, strict=True))


def _descend(rows: Rows, undo: dict[int, int]) -> Score:
    """Take every move that helps until none does; notes in `undo` where nodes were at first."""
    best = rows.score()
    changed = True
    while changed and not rows.budget.spent:
        changed = False
        for n in range(rows.problem.count):
            score = _best_move(rows, n, best, undo)
            if score < best:
                best, changed = score, True
            if rows.budget.spent:
                break
    return best


def _best_move(rows: Rows, n: int, best: Score, undo: dict[int, int]) -> Score:
    """Move a node by up to two stages, each move kept if it helps; returns the score reached."""
    here = rows.row_of[n]
    for new in range(max(0, here - 2), min(len(rows.rows), here + 3)):
        if new == rows.row_of[n]:
            continue
        before = rows.move(n, new)
        if before is None:
            continue
        score = rows.score()
        if score >= best:
            rows.put(before)
            continue
        best = score
        for member, row in before.items():
            undo.setdefault(member, row)
    return best
