"""The best plan by dynamic programming over the ideals of a graph: sets of nodes that hold all that
their nodes depend on.

Behind each stage of a plan, the nodes that have run are an ideal. So a plan is a chain of ideals,
and its stages are the differences. Networks are narrow: most have a few hundred ideals, and all
stages between two of them can be looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Solution,
    cached,
    cost,
    filled,
    levels,
    streaming,
)
from compiler.planner.programme import Course, Programme
from compiler.planner.replication import Replication

# Graphs with more ideals go to the solver: matrices of all pairs take 8 bytes each.
MOST_IDEALS = 2500
# Exact times of so many stages are asked for at once, and so often.
_ASKED_AT_ONCE = 300
_MOST_ROUNDS = 60
# Times are whole numbers of units, so that sums are exact and do not depend on the machine.
_UNITS = 2.0**45


def by_ideals(problem: Problem) -> Solution | None:
    """The best plan in which every TPU has one stage, by exact times to stream.

    With replicas several TPUs may have the same one.

    None where there is no such plan, where the graph has too many ideals, and where the time of the
    host would have to be known at each of them.
    """
    if problem.host_stages is not None:
        return None
    if problem.free and (problem.limit < INFINITE or problem.replicas):
        return None
    masks = _ideals(problem, MOST_IDEALS)
    if masks is None:
        return None
    return _Search(problem, _Table(problem, masks)).best()


def _ideals(problem: Problem, most: int) -> list[int] | None:
    """All ideals as bit masks, the smaller ones first; None where there are more than `most`.

    Of twins, one comes first: to exchange them changes nothing.
    """
    successors = [set(after) for after in problem.successors]
    for first, second in _twins(problem):
        successors[first].add(second)
    needs = [0] * problem.count
    for n, after in enumerate(successors):
        for other in after:
            needs[other] |= 1 << n
    roots = frozenset(n for n, need in enumerate(needs) if not need)
    found: list[int] = []
    layer: dict[int, frozenset[int]] = {0: roots}
    while layer:
        found += sorted(layer)
        if len(found) > most:
            return None
        following: dict[int, frozenset[int]] = {}
        for ideal, ready in layer.items():
            for n in ready:
                larger = ideal | 1 << n
                if larger not in following:
                    new = {m for m in successors[n] if not needs[m] & ~larger}
                    following[larger] = (ready - {n}) | new
        layer = following
    return found


def _twins(problem: Problem) -> list[tuple[int, int]]:
    """Pairs of nodes that may change places in any plan, such as tiles of a layer."""
    first: dict[tuple[object, ...], int] = {}
    pairs = []
    for n in range(problem.count):
        made = [problem.tensors[t] for t in problem.makes[n]]
        kind = (
            problem.tpu[n],
            problem.host[n],
            problem.sizes[n],
            problem.stream[n],
            problem.capacities[n],
            tuple(sorted(problem.reads[n])),
            tuple(sorted((t.readers, t.leaves, t.down, t.up) for t in made)),
        )
        if kind in first:
            pairs.append((first[kind], n))
        first[kind] = n
    return pairs


class _Search:
    """The search for the best plan, with stages whose time is known by bytes only at first.

    Where the problem has exact times to stream, they are asked for stages of the best plan, and of
    others that may become the best. This goes on until all times of the best plan are exact. So no
    other plan can be better, whatever its exact times are.
    """

    def __init__(self, problem: Problem, table: _Table) -> None:
        self.problem, self.table = problem, table
        limit = problem.limit * table.scale
        tpu, host = table.tpu_matrix(), table.host_matrix()
        self.programme: Programme | Replication
        if problem.replicas:
            self.programme = Replication(problem.tpus, tpu, host, limit)
        else:
            self.programme = Programme(levels(problem), tpu, host, limit)
        self.exact = np.full_like(self.programme.tpu, problem.streaming is None, dtype=bool)
        np.fill_diagonal(self.exact, True)

    def best(self) -> Solution | None:
        found: Solution | None = None
        for _ in range(_MOST_ROUNDS):
            course = self.programme.best(self.problem.objective)
            if course is None:
                break
            bound = course.value / self.table.scale
            on_tpus = [step for step in course.steps if step.device != HOST]
            open_steps = [step for step in on_tpus if not self.exact[step.begin, step.end]]
            for step in open_steps:
                self._ask(step.begin, step.end)
            plan = self._solution(course, bound)
            if found is None or plan.cost < found.cost:
                found = plan
            # Times were rounded to units.
            found = replace(found, bound=min(bound * (1 - 1e-9), found.cost))
            if not open_steps:
                break
            self._ask_promising(course)
        return found

    def _ask(self, begin: int, end: int) -> None:
        """Put the exact time of a TPU's stage where the one by bytes stands."""
        nodes = self.table.between(begin, end)
        late = streaming(self.problem, nodes) - cached(self.problem, nodes)[1]
        self.programme.tpu[begin, end] += np.rint(late * self.table.scale)
        self.exact[begin, end] = True

    def _ask_promising(self, course: Course) -> None:
        """Ask for the stages of the plans with the least sums."""
        least = self.programme.least_through(course.limit)
        least[self.exact] = np.inf
        flat = least.ravel()
        count = min(_ASKED_AT_ONCE, len(flat) - 1)
        for place in np.sort(np.argpartition(flat, count)[:count]):
            if flat[place] < INFINITE:
                begin, end = divmod(int(place), len(least))
                self._ask(begin, end)

    def _solution(self, course: Course, bound: float) -> Solution:
        rows = [self.table.between(step.begin, step.end) for step in course.steps]
        stages = filled([step.device for step in course.steps], rows)
        copies = {step.device: step.copies for step in course.steps if step.copies > 1}
        return Solution(stages, cost(self.problem, stages, copies), bound, copies)


class _Table:
    """The ideals of a problem in rows of arrays, and the times of all stages between them."""

    def __init__(self, problem: Problem, masks: Sequence[int]) -> None:
        self.problem = problem
        count = problem.count
        width = -(-count // 8)
        bits = np.frombuffer(b"".join(m.to_bytes(width, "little") for m in masks), np.uint8)
        rows = np.unpackbits(bits.reshape(len(masks), width), axis=1, bitorder="little")
        self.member = rows[:, :count].astype(bool)
        self.scale = self._scale()
        self._count_nodes()
        self._count_tensors()
        self._rank_parameters()

    def between(self, begin: int, end: int) -> list[int]:
        """The nodes of an ideal that are not in a smaller one."""
        return np.flatnonzero(self.member[end] & ~self.member[begin]).tolist()

    def _scale(self) -> float:
        """Units in a unit of the caller's time."""
        problem = self.problem
        times = [t for t in (*problem.tpu, *problem.host, *problem.stream) if t < INFINITE]
        times += [t.down + t.up for t in problem.tensors]
        return _UNITS / max(sum(times) + problem.invoke, 1e-30)

    def _units(self, times: Sequence[float]) -> np.ndarray:
        """Times in units; 0 for what is infinite."""
        found = np.array(times, float).reshape(-1)
        return np.rint(np.where(np.isfinite(found), found, 0.0) * self.scale)

    def _count_nodes(self) -> None:
        """By ideal: times and bytes of its nodes, and how many nodes each device may not run."""
        problem, member = self.problem, self.member.astype(float)
        on_tpu = self._units(problem.tpu)
        # What leaves the graph is brought back by the stage that makes it, whichever that is.
        for n, made in enumerate(problem.makes):
            leaving = [problem.tensors[t].up for t in made if problem.tensors[t].leaves]
            on_tpu[n] += self._units(leaving).sum()
        self.on_tpu = member @ on_tpu
        self.on_host = member @ self._units(problem.host)
        self.not_tpu = member @ np.isinf(np.array(problem.tpu, float))
        self.not_host = member @ np.isinf(np.array(problem.host, float))
        self.bytes = member @ np.array(problem.sizes, float)
        # Columns from the smallest room to the largest.
        self.rooms = np.unique(problem.capacities)
        of_room = np.array(problem.capacities)[:, None] == self.rooms
        self.of_room = member @ of_room

    def _count_tensors(self) -> None:
        """By ideal and tensor: whether it is made there, and how many of its readers are."""
        problem = self.problem
        inside = np.ones((len(self.member), len(problem.tensors)), bool)
        reads = np.zeros((problem.count, len(problem.tensors)))
        for index, tensor in enumerate(problem.tensors):
            if tensor.source is not None:
                inside[:, index] = self.member[:, tensor.source]
            reads[[*tensor.readers], index] = 1
        self.read = (self.member @ reads).astype(np.int32)
        self.unread = self.read < reads.sum(axis=0)
        self.live = inside & self.unread
        self.down = self._units([t.down for t in problem.tensors])
        ups = [
            0.0 if tensor.leaves or tensor.source is None else tensor.up
            for tensor in problem.tensors
        ]
        self.up = self._units(ups)
        self.all_up = self.live @ self.up

    def _rank_parameters(self) -> None:
        """Nodes with parameters, the smallest first, as `cached` keeps them."""
        problem = self.problem
        holders = [n for n in range(problem.count) if problem.sizes[n]]
        holders.sort(key=problem.rank.__getitem__)
        self.holds = self.member[:, holders]
        self.sizes = np.array([problem.sizes[n] for n in holders], np.int64)
        stream = [problem.stream[n] for n in holders]
        self.stream = self._units(stream)
        self.never_streams = np.isinf(np.array(stream, float))

    def host_matrix(self) -> np.ndarray:
        """The time of the host from each ideal to each that holds it."""
        allowed = self.not_host[None, :] == self.not_host[:, None]
        times = self.on_host[None, :] - self.on_host[:, None]
        return np.where(allowed & self._within(), times, np.inf)

    def _within(self) -> np.ndarray:
        """Whether each ideal is within each other one."""
        member = self.member.astype(np.float32)
        return np.asarray(member @ (1 - member).T == 0)

    def tpu_matrix(self) -> np.ndarray:
        """The time of a TPU from each ideal to each that holds it, as `loads` of a stage."""
        count = len(self.member)
        matrix = np.full((count, count), np.inf)
        allowed = self._within() & (self.not_tpu[None, :] == self.not_tpu[:, None])
        for begin in range(count):
            ends = np.flatnonzero(allowed[begin])
            matrix[begin, ends] = self._stage_times(begin, ends)
        np.fill_diagonal(matrix, 0.0)
        return matrix

    def _stage_times(self, begin: int, ends: np.ndarray) -> np.ndarray:
        crossing = np.flatnonzero(self.live[begin])
        down, up = self.down[crossing], self.up[crossing]
        is_read = self.read[np.ix_(ends, crossing)] > self.read[begin, crossing]
        # Of the tensors that leave at the end, those that were there before cost nothing.
        passed = self.live[np.ix_(ends, crossing)] @ up
        times = self.on_tpu[ends] - self.on_tpu[begin] + self._units([self.problem.invoke])
        times += is_read @ down + self.all_up[ends] - passed
        rooms = self._rooms(begin, ends)
        full = np.flatnonzero(self.bytes[ends] - self.bytes[begin] > rooms)
        times[full] += self._streaming(begin, ends[full], rooms[full])
        return np.asarray(times)

    def _rooms(self, begin: int, ends: np.ndarray) -> np.ndarray:
        """The smallest room of the nodes of each stage."""
        present = self.of_room[ends] > self.of_room[begin]
        return np.asarray(self.rooms[present.argmax(axis=1)])

    def _streaming(self, begin: int, ends: np.ndarray, rooms: np.ndarray) -> np.ndarray:
        """The time to stream what does not stay in each room; the smallest stay."""
        holds = self.holds[ends] & ~self.holds[begin]
        used = np.cumsum(holds * self.sizes, axis=1)
        sent = holds & (used > rooms[:, None])
        impossible = sent[:, self.never_streams].any(axis=1)
        return np.where(impossible, np.inf, sent @ self.stream)
