"""Cuts one order of the graph into ranges for the devices, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np

from compiler.planner.budget import Budget
from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Stages,
    cached,
    levels,
    stage_time,
)
from compiler.planner.programme import Programme

# Places where the dynamic programme may cut; more of them cost time quadratically.
_MOST_PLACES = 160
# Ranges that take so many times their fair share are not looked at in a pipeline.
_HEAVY = 4

# (turn, node) pairs: nodes of one turn between two of the host are one stage of a TPU.
Sequenced = Sequence[tuple[int, int]]
Value = tuple[float, float]


@dataclass
class _GrowingStage:
    """The time of a stage to which nodes are added in order; as `stage_time` of all its nodes.

    `read` are the tensors that it reads from outside, `unread` counts the readers outside of those
    that it makes.
    """

    read: set[int] = field(default_factory=set)
    unread: dict[int, int] = field(default_factory=dict)
    time: float = 0.0

    def add(self, problem: Problem, n: int) -> None:
        self.time += problem.tpu[n]
        for t in problem.reads[n]:
            tensor = problem.tensors[t]
            if t in self.unread:
                self.unread[t] -= 1
                # The last reader is inside: the tensor need not go back.
                if not self.unread[t] and not tensor.leaves:
                    self.time -= tensor.up
            elif t not in self.read:
                self.read.add(t)
                self.time += tensor.down
        for t in problem.makes[n]:
            tensor = problem.tensors[t]
            self.unread[t] = len(tensor.readers)
            if tensor.leaves or tensor.readers:
                self.time += tensor.up


def cut_turns(problem: Problem, turns: Sequence[tuple[bool, list[int]]], budget: Budget) -> Stages:
    """Give each TPU a contiguous range of the TPU nodes of the turns."""
    sequence: list[tuple[int, int]] = []
    on_host: list[int] = []
    for turn, (on_tpu, nodes) in enumerate(turns):
        if on_tpu:
            sequence += [(turn, n) for n in nodes]
        else:
            on_host += nodes
    host = sum(problem.host[n] for n in on_host)
    cuts = _best_cuts(problem, sequence, host, budget)
    stages: list[tuple[int, tuple[int, ...]]] = []
    begin = 0
    for on_tpu, nodes in turns:
        if not on_tpu:
            stages.append((HOST, tuple(nodes)))
            continue
        first = 0
        for device, last in enumerate(cuts):
            low, high = max(first - begin, 0), max(last - begin, 0)
            if nodes[low:high]:
                stages.append((device, tuple(nodes[low:high])))
            first = last
        begin += len(nodes)
    return tuple(stages)


def _best_cuts(
    problem: Problem, sequence: Sequenced, host: float, budget: Budget
) -> tuple[int, ...]:
    """The end of each TPU's range; of the same objective, the ranges with the least sum."""
    places = _places(problem, sequence)
    starts = places[:-1] if problem.tpus > 1 else places[:1]
    ranges = _range_times(problem, sequence, places, starts, budget)
    latency = problem.objective == "latency"
    combine: Callable[[float, float], float] = (lambda a, b: a + b) if latency else max
    # From the end of the ranges so far to (value, ends), with as many TPUs as rounds were made.
    best: dict[int, tuple[Value, tuple[int, ...]]] = {0: ((0.0 if latency else host, 0.0), ())}
    done: tuple[Value, tuple[int, ...]] | None = None
    for _ in range(problem.tpus):
        following: dict[int, tuple[Value, tuple[int, ...]]] = {}
        for start, ((so_far, total), ends) in best.items():
            for end, seconds in ranges.get(start, {}).items():
                if seconds > problem.limit:
                    continue
                value = (combine(so_far, seconds), total + seconds)
                if end not in following or value < following[end][0]:
                    following[end] = (value, (*ends, end))
        best = following
        whole = best.get(len(sequence))
        if whole is not None and (done is None or whole[0] < done[0]):
            done = whole
    if done is not None:
        return done[1]
    return (len(sequence),) if sequence else ()


def cut_jointly(problem: Problem, order: Sequence[int], budget: Budget) -> Stages | None:
    """Placement and cuts of one order together: ranges for the host and the TPUs in turn; None
    where no ranges are allowed."""
    sequence = [(0, n) for n in order]
    places = _places(problem, sequence)
    tpu = _tpu_matrix(problem, sequence, places, budget)
    host = _host_matrix(problem, order, places)
    devices = levels(problem)
    course = Programme(devices, tpu, host, problem.limit).best(problem.objective)
    if course is None:
        return None
    return tuple(
        (step.device, tuple(order[places[step.begin] : places[step.end]])) for step in course.steps
    )


def _tpu_matrix(
    problem: Problem, sequence: Sequenced, places: Sequence[int], budget: Budget
) -> np.ndarray:
    """The time of a TPU's range from each place to each later one."""
    index = {place: i for i, place in enumerate(places)}
    matrix = np.full((len(places), len(places)), np.inf)
    ranges = _range_times(problem, sequence, places, places[:-1], budget)
    for start, row in ranges.items():
        for end, seconds in row.items():
            matrix[index[start], index[end]] = seconds
    np.fill_diagonal(matrix, 0.0)
    return matrix


def _host_matrix(problem: Problem, order: Sequence[int], places: Sequence[int]) -> np.ndarray:
    """The time of the host from each place to each later one."""
    seconds = [problem.host[n] if problem.host[n] < INFINITE else 0.0 for n in order]
    forbidden = [problem.host[n] == INFINITE for n in order]
    sums = np.cumsum([0.0, *seconds])[places]
    barred = np.cumsum([0, *forbidden])[places]
    allowed = (barred[None, :] == barred[:, None]) & (sums[None, :] >= sums[:, None])
    return np.where(np.triu(allowed), sums[None, :] - sums[:, None], np.inf)


def _places(problem: Problem, sequence: Sequenced) -> list[int]:
    """Positions in the sequence where a cut may stand: those with the least traffic, spread out."""
    count = len(sequence)
    if count <= _MOST_PLACES:
        return [*range(count + 1)]
    position = {n: i for i, (_, n) in enumerate(sequence)}
    # Seconds of the tensors that live across each position, by their sum of changes.
    traffic = [0.0] * (count + 1)
    for tensor in problem.tensors:
        if tensor.source not in position:
            continue
        seconds = tensor.down + tensor.up
        last = max((position.get(r, count) for r in tensor.readers), default=count)
        traffic[position[tensor.source] + 1] += seconds
        if last < count:
            traffic[last + 1] -= seconds
    for i in range(count):
        traffic[i + 1] += traffic[i]
    width = count / _MOST_PLACES
    chosen = {0, count}
    for i in range(_MOST_PLACES):
        group = range(round(i * width), round((i + 1) * width))
        if group:
            chosen.add(min(group, key=traffic.__getitem__))
    return sorted(chosen)


def _range_times(
    problem: Problem,
    sequence: Sequenced,
    places: Sequence[int],
    starts: Sequence[int],
    budget: Budget,
) -> dict[int, Mapping[int, float]]:
    """Seconds of a TPU that holds sequence[start:end], by start and end; ends are `places`."""
    search = _RangeSearch(problem, sequence, set(places), budget)
    return {start: search.times_from(start) for start in starts}


class _RangeSearch:
    """Ranges of one sequence, as far as the budget goes."""

    def __init__(
        self, problem: Problem, sequence: Sequenced, ends: set[int], budget: Budget
    ) -> None:
        self.problem, self.sequence, self.ends, self.budget = problem, sequence, ends, budget
        self.most = INFINITE
        if problem.objective == "throughput":
            self.most = _HEAVY * self._whole_time() / problem.tpus

    def _whole_time(self) -> float:
        """Seconds of one TPU that holds all of the sequence."""
        on_tpu = [(turn, n) for turn, n in self.sequence if self.problem.tpu[n] < INFINITE]
        seconds = 0.0
        for _, group in groupby(on_tpu, key=itemgetter(0)):
            seconds += stage_time(self.problem, 0, [n for _, n in group])
        streaming = cached(self.problem, [n for _, n in on_tpu])[1]
        return seconds + streaming

    def times_from(self, start: int) -> dict[int, float]:
        """Seconds of the ranges that begin at `start`, by their end; the first start is free."""
        row: dict[int, float] = {}
        if start and self.budget.spent:
            return row
        problem = self.problem
        before, turn, stage = 0.0, -1, _GrowingStage()
        held: list[int] = []
        for index in range(start, len(self.sequence)):
            next_turn, n = self.sequence[index]
            if next_turn != turn:
                before, turn = before + stage.time, next_turn
                stage = _GrowingStage(time=problem.invoke)
            stage.add(problem, n)
            held.append(n)
            self.budget.spend(1)
            if problem.tpu[n] == INFINITE:
                break
            if index + 1 in self.ends:
                self.budget.spend(5 + len(held))
                row[index + 1] = before + stage.time + cached(problem, held)[1]
                if row[index + 1] > self.most and start:
                    break
        return row
