"""Cuts orders of the graph by dynamic programming, then moves nodes between stages. Fast, and
proves nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count as numbers
from itertools import groupby
from operator import itemgetter

import networkx as nx
import numpy as np

from compiler.planner.budget import Budget
from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Solution,
    Stages,
    cached,
    cost,
    filled,
    levels,
    loads,
    stage_time,
)

# Places where the dynamic programme may cut; more of them cost time quadratically.
_CUTS = 160
# Graphs of up to so many nodes are searched more widely: random orders, the best few plans shaken
# so many times.
_SMALL = 120
_IMPROVED = 3
_SHAKES = 12
_ORDERS = 12
_AGAIN = 6
_ROUNDS = 3


def heuristic(problem: Problem, seconds: float = 8.0, seed: int = 0) -> Solution:
    """The best of several orders and sides, each cut by dynamic programming, then improved part by
    part."""
    if not problem.count:
        return Solution((), 0.0)
    budget = Budget(seconds)
    rng = random.Random(seed)
    sides = _sides(problem)
    found: dict[Stages, tuple[float, float]] = {}

    def keep(stages: Stages) -> None:
        """Of plans with the same pace, the one with the lower latency."""
        if (
            problem.host_stages is not None
            and sum(d == HOST for d, _ in stages) > problem.host_stages
        ):
            return
        found[stages] = (cost(problem, stages), sum(loads(problem, stages).values()))

    for order in _orders(problem, rng):
        for stages in _from_order(problem, order, sides, budget):
            keep(stages)
        if budget.spent:
            break
    assert found, "no plan has so few host stages"
    for _ in range(_ROUNDS if problem.count <= _SMALL else 1):
        # The best plans are improved, and what comes of them gives new orders to cut.
        best = sorted(found, key=found.__getitem__)[:_IMPROVED]
        for stages in best:
            keep(_improve(problem, stages, rng, budget))
        for order in _orders_of(problem, min(found, key=found.__getitem__), rng):
            for stages in _from_order(problem, order, sides, budget):
                keep(stages)
        if budget.spent:
            break
    stages = min(found, key=found.__getitem__)
    return Solution(stages, found[stages][0])


def _orders_of(problem: Problem, stages: Stages, rng: random.Random) -> Iterator[list[int]]:
    """Topological orders that a plan's stages could have been cut from."""
    level = {n: i for i, (_, nodes) in enumerate(stages) for n in nodes}
    for _ in range(_AGAIN if problem.count <= _SMALL else 1):
        rank = {n: (level[n], rng.random()) for n in level}
        yield [*nx.lexicographical_topological_sort(problem.graph, key=rank.__getitem__)]


def _from_order(
    problem: Problem, order: Sequence[int], sides: Sequence[list[bool]], budget: Budget
) -> Iterator[Stages]:
    for side in sides:
        yield _cut(problem, alternate(problem, order, side), budget)
    if any(time_ < INFINITE for time_ in problem.host):
        joint = _joint(problem, order, budget)
        if joint is not None:
            yield joint


def _sides(problem: Problem) -> list[list[bool]]:
    """Whether each node goes to a TPU: minimum cuts, the least sum of times and transfers.

    Invocations and the bytes that fit are not seen by a cut; parameters that surely do not fit
    count as streamed. In a pipeline TPUs share what is theirs, so their time counts for less; how
    much less is tried.
    """
    free = [
        n for n in range(problem.count) if problem.tpu[n] < INFINITE and problem.host[n] < INFINITE
    ]
    plain = [t < INFINITE for t in problem.tpu]
    if not free:
        return [plain]
    weights = (
        [1.0] if problem.objective == "latency" else [2.0**i / problem.tpus for i in range(-4, 5)]
    )
    spread = replace(problem, capacities=[room * problem.tpus for room in problem.capacities])
    kept = cached(spread, [n for n, goes in enumerate(plain) if goes])[0]
    streamed = [
        0.0 if n in kept or not size else problem.stream[n] for n, size in enumerate(problem.sizes)
    ]
    cuts = [_side(problem, streamed, weight) for weight in weights]
    return [plain, *(side for i, side in enumerate(cuts) if side not in [plain, *cuts[:i]])]


def _side(problem: Problem, streamed: Sequence[float], weight: float) -> list[bool]:
    graph = nx.DiGraph()
    # Numbers for all nodes: sets of them have the same order in every process.
    names = numbers(problem.count)
    on_tpu, on_host = next(names), next(names)
    for n in range(problem.count):
        for a, b, time_ in (
            (on_tpu, n, problem.host[n]),
            (n, on_host, weight * (problem.tpu[n] + streamed[n])),
        ):
            graph.add_edge(a, b, **({} if time_ == INFINITE else {"capacity": time_}))
    for tensor in problem.tensors:
        down, up = next(names), next(names)
        for reader in tensor.readers:
            graph.add_edge(reader, down)
            graph.add_edge(up, reader)
        graph.add_edge(
            down, on_host if tensor.source is None else tensor.source, capacity=weight * tensor.down
        )
        if tensor.source is not None:
            graph.add_edge(tensor.source, up, capacity=weight * tensor.up)
            if tensor.leaves:
                graph.add_edge(up, on_host)
    _, (tpu, _) = nx.minimum_cut(graph, on_tpu, on_host)
    return [n in tpu for n in range(problem.count)]


def _orders(problem: Problem, rng: random.Random) -> list[list[int]]:
    """Topological orders: the caller's, by depth, one branch after the other, and some by chance."""
    backwards = nx.dfs_postorder_nodes(problem.graph.reverse(copy=False))
    ranks: list[dict[int, float]] = [{n: i for i, n in enumerate(backwards)}]
    if problem.count <= _SMALL:
        ranks += [{n: rng.random() for n in range(problem.count)} for _ in range(6)]
    given = list(range(problem.count))
    found = [given, sorted(given, key=lambda n: (problem.depth[n], n))]
    found += [
        [*nx.lexicographical_topological_sort(problem.graph, key=rank.__getitem__)]
        for rank in ranks
    ]
    return [order for i, order in enumerate(found) if order not in found[:i]]


def alternate(
    problem: Problem, order: Sequence[int], sides: Sequence[bool]
) -> list[tuple[bool, list[int]]]:
    """As few turns between host and TPUs as the order allows: one side runs as long as something is
    ready for it."""
    inside = set(order)
    waiting = {n: len(inside & {*problem.predecessors[n]}) for n in order}
    position = {n: i for i, n in enumerate(order)}
    ready: dict[bool, list[int]] = {True: [], False: []}  # heaps of positions
    for n in order:
        if not waiting[n]:
            heappush(ready[sides[n]], position[n])
    turns: list[tuple[bool, list[int]]] = []
    side = not ready[False]
    while ready[True] or ready[False]:
        if not ready[side]:
            side = not side
        nodes: list[int] = []
        while ready[side]:
            nodes.append(order[heappop(ready[side])])
            for user in inside & {*problem.successors[nodes[-1]]}:
                waiting[user] -= 1
                if not waiting[user]:
                    heappush(ready[sides[user]], position[user])
        turns.append((side, nodes))
        side = not side
    return turns


@dataclass
class _Piece:
    """The part of a turn that a device holds so far: tensors read from outside, readers outside of
    those made."""

    read: set[int] = field(default_factory=set)
    left: dict[int, int] = field(default_factory=dict)
    time: float = 0.0

    def add(self, problem: Problem, n: int) -> None:
        self.time += problem.tpu[n]
        for t in problem.reads[n]:
            tensor = problem.tensors[t]
            if t in self.left:
                self.left[t] -= 1
                if not self.left[t] and not tensor.leaves:
                    self.time -= tensor.up
            elif t not in self.read:
                self.read.add(t)
                self.time += tensor.down
        for t in problem.makes[n]:
            tensor = problem.tensors[t]
            self.left[t] = len(tensor.readers)
            if tensor.leaves or tensor.readers:
                self.time += tensor.up


def _cut(problem: Problem, turns: Sequence[tuple[bool, list[int]]], budget: Budget) -> Stages:
    """Give each TPU a contiguous range of the TPU nodes of the turns, by dynamic programming."""
    sequence = [(turn, n) for turn, (side, nodes) in enumerate(turns) if side for n in nodes]
    places = _places(problem, sequence)
    host = sum(problem.host[n] for side, nodes in turns if not side for n in nodes)
    best: dict[int, tuple[tuple[float, float], tuple[int, ...]]] = {
        0: ((0.0 if problem.objective == "latency" else host, 0.0), ())
    }
    ranges = _ranges(
        problem, sequence, places, places[:-1] if problem.tpus > 1 else places[:1], budget
    )
    combine = (lambda a, b: a + b) if problem.objective == "latency" else max
    done: tuple[tuple[float, float], tuple[int, ...]] | None = None
    for _ in range(problem.tpus):
        following: dict[int, tuple[tuple[float, float], tuple[int, ...]]] = {}
        for start, ((so_far, total), cuts) in best.items():
            for end, time_ in ranges.get(start, {}).items():
                value = (combine(so_far, time_), total + time_)
                if end not in following or value < following[end][0]:
                    following[end] = (value, (*cuts, end))
        best = following
        last = best.get(len(sequence))
        if last is not None and (done is None or last[0] < done[0]):
            done = last
    cuts = done[1] if done is not None else (len(sequence),) if sequence else ()
    stages: list[tuple[int, tuple[int, ...]]] = []
    at = 0
    for side, nodes in turns:
        if not side:
            stages.append((HOST, tuple(nodes)))
            continue
        for device in range(len(cuts)):
            part = [
                n
                for i, n in enumerate(nodes, at)
                if (cuts[device - 1] if device else 0) <= i < cuts[device]
            ]
            if part:
                stages.append((device, tuple(part)))
        at += len(nodes)
    return tuple(stages)


def _joint(problem: Problem, order: Sequence[int], budget: Budget) -> Stages | None:
    """Placement and cuts of one order together: ranges for the host and the TPUs in turn; None
    where none will do.

    For a pipeline the pace is searched: with every TPU held to it, the host should take no longer.
    """
    devices = levels(problem)
    sequence = [(0, n) for n in order]
    places = _places(problem, sequence)
    index = {place: i for i, place in enumerate(places)}
    tpu = np.full((len(places), len(places)), np.inf)
    for start, row in _ranges(problem, sequence, places, places[:-1], budget).items():
        for end, time_ in row.items():
            tpu[index[start], index[end]] = time_
    np.fill_diagonal(tpu, 0.0)
    sums = np.cumsum(
        [0.0, *(problem.host[n] if problem.host[n] < INFINITE else 0.0 for n in order)]
    )[places]
    never = np.cumsum([0, *(problem.host[n] == INFINITE for n in order)])[places]
    allowed = (never[None, :] == never[:, None]) & (sums[None, :] >= sums[:, None])
    host = np.where(np.triu(allowed), sums[None, :] - sums[:, None], np.inf)

    def least(pace: float) -> tuple[float, list[int]]:
        """(least time of what is counted, end of each level's range) with no TPU's range above
        `pace`."""
        held = tpu if pace == INFINITE else np.where(tpu <= pace, 0.0, np.inf)
        reached = np.full(len(places), np.inf)
        reached[0] = 0.0
        back = []
        for device in devices:
            steps = reached[:, None] + (host if device == HOST else held)
            back.append(steps.argmin(axis=0))
            reached = steps.min(axis=0)
        ends, at = [], len(places) - 1
        for came in reversed(back):
            ends.append(int(at))
            at = came[at]
        return float(reached[-1]), ends[::-1]

    best, ends = least(INFINITE)
    if best == INFINITE:
        return None
    if problem.objective == "throughput":
        finite = np.unique(tpu[np.isfinite(tpu)])
        low, high = 0, len(finite) - 1
        while low < high:
            middle = (low + high) // 2
            if least(finite[middle])[0] <= finite[middle]:
                high = middle
            else:
                low = middle + 1
        # Just below the pace at which the host keeps up, the host itself may set a better one.
        pace = min(
            (finite[i] for i in {low, max(low - 1, 0)}), key=lambda pace: max(pace, least(pace)[0])
        )
        best, ends = least(pace)
        if best == INFINITE:
            return None
    stages, at = [], 0
    for device, end in zip(devices, ends, strict=True):
        if end > at:
            stages.append((device, tuple(order[places[at] : places[end]])))
        at = end
    return tuple(stages)


def _places(problem: Problem, sequence: Sequence[tuple[int, int]]) -> list[int]:
    """Positions in the sequence where a cut may stand: those with the least traffic across, well
    spread."""
    count = len(sequence)
    if count <= _CUTS:
        return [*range(count + 1)]
    position = {n: i for i, (_, n) in enumerate(sequence)}
    traffic = [0.0] * (count + 1)
    for tensor in problem.tensors:
        if tensor.source in position:
            last = max((position.get(r, count) for r in tensor.readers), default=count)
            traffic[position[tensor.source] + 1] += tensor.down + tensor.up
            if last < count:
                traffic[last + 1] -= tensor.down + tensor.up
    for i in range(count):
        traffic[i + 1] += traffic[i]
    width = count / _CUTS
    groups = [range(round(i * width), round((i + 1) * width)) for i in range(_CUTS)]
    return sorted({0, count, *(min(group, key=traffic.__getitem__) for group in groups if group)})


def _ranges(
    problem: Problem,
    sequence: Sequence[tuple[int, int]],
    places: Sequence[int],
    starts: Sequence[int],
    budget: Budget,
) -> dict[int, dict[int, float]]:
    """Time of a TPU that holds sequence[start:end], for the places."""
    allowed = set(places)
    found: dict[int, dict[int, float]] = {}
    on_tpu = [(turn, n) for turn, n in sequence if problem.tpu[n] < INFINITE]
    turns = [[n for _, n in group] for _, group in groupby(on_tpu, key=itemgetter(0))]
    whole = (
        sum(stage_time(problem, 0, nodes) for nodes in turns)
        + cached(problem, [n for _, n in on_tpu])[1]
    )
    for start in starts:
        row = found[start] = {}
        if start and budget.spent:
            continue
        before, turn, piece, held = 0.0, -1, _Piece(), list[int]()
        for index in range(start, len(sequence)):
            t, n = sequence[index]
            if t != turn:
                before, turn, piece = before + piece.time, t, _Piece(time=problem.invoke)
            piece.add(problem, n)
            held.append(n)
            budget.spend(1)
            if problem.tpu[n] == INFINITE:
                break
            if index + 1 in allowed:
                budget.spend(5 + len(held))
                row[index + 1] = before + piece.time + cached(problem, held)[1]
                heavy = (
                    problem.objective == "throughput" and row[index + 1] > 4 * whole / problem.tpus
                )
                if heavy and start:
                    break
    return found


class _Rows:
    """Stages under change, with the time of each and of the parameters that each device streams."""

    def __init__(self, problem: Problem, stages: Stages, budget: Budget) -> None:
        self.problem, self.budget = problem, budget
        self.devices = [device for device, _ in stages]
        self.rows = [set(nodes) for _, nodes in stages]
        self.level = {n: i for i, row in enumerate(self.rows) for n in row}
        self.times = [self._time(i) for i in range(len(self.rows))]
        self.late = {d: self._late(d) for d in set(self.devices)}

    def _time(self, stage: int) -> float:
        row = self.rows[stage]
        self.budget.spend(20 + 4 * len(row))
        return stage_time(self.problem, self.devices[stage], [*row]) if row else 0.0

    def _late(self, device: int) -> float:
        if device == HOST:
            return 0.0
        nodes = [
            n for d, row in zip(self.devices, self.rows, strict=True) if d == device for n in row
        ]
        self.budget.spend(10 + len(nodes))
        return cached(self.problem, nodes)[1]

    def score(self) -> tuple[float, float]:
        """The objective first; of equal ones, the one whose loads are more even."""
        sums = dict(self.late)
        for device, time_ in zip(self.devices, self.times, strict=True):
            sums[device] += time_
        even = sum(t * t for t in sums.values())
        return (
            sum(sums.values())
            if self.problem.objective == "latency"
            else max(sums.values(), default=0.0)
        ), even

    def group(self, n: int, new: int) -> set[int]:
        """n with all that must move along: its ancestors on the way to an earlier stage, else its
        descendants."""
        earlier = new < self.level[n]
        near = self.problem.predecessors if earlier else self.problem.successors
        group, todo = {n}, [n]
        while todo:
            for other in near[todo.pop()]:
                here = self.level[other]
                if other not in group and (here > new if earlier else here < new):
                    group.add(other)
                    todo.append(other)
        return group

    def allowed(self, n: int, stage: int) -> bool:
        times = self.problem.host if self.devices[stage] == HOST else self.problem.tpu
        return times[n] < INFINITE

    def move(self, n: int, new: int) -> dict[int, int] | None:
        """Put a node into stage `new` with all that must go along; gives where they were, None
        where it cannot be.

        What may not be on that stage's device goes one stage further.
        """
        step = -1 if new < self.level[n] else 1
        places: dict[int, int] = {}
        self.budget.spend(20)
        for m in self.group(n, new):
            place = next(
                (s for s in (new, new + step) if 0 <= s < len(self.rows) and self.allowed(m, s)),
                None,
            )
            if place is None or (m == n and place != new):
                return None
            places[m] = place
        before = self.put(places)
        if all(self._in_order(m) for m in places):
            return before
        self.put(before)
        return None

    def _in_order(self, n: int) -> bool:
        level, here = self.level, self.level[n]
        before, behind = self.problem.predecessors[n], self.problem.successors[n]
        return all(level[p] <= here for p in before) and all(level[s] >= here for s in behind)

    def put(self, places: Mapping[int, int]) -> dict[int, int]:
        before = {n: self.level[n] for n in places}
        touched = {*before.values(), *places.values()}
        for n, new in places.items():
            self.rows[self.level[n]].discard(n)
            self.rows[new].add(n)
            self.level[n] = new
        for stage in touched:
            self.times[stage] = self._time(stage)
        for device in {self.devices[stage] for stage in touched}:
            self.late[device] = self._late(device)
        return before

    @property
    def stages(self) -> Stages:
        return filled(self.devices, self.rows)


def _improve(problem: Problem, stages: Stages, rng: random.Random, budget: Budget) -> Stages:
    """Move nodes, with what must go along, to another stage while that helps; shake and try again
    on small graphs."""
    rows = _Rows(problem, _opened(problem, stages), budget)
    best = _descend(rows)
    while not budget.spent and (better := _recut(rows, rng)) < best:
        best = min(better, _descend(rows))
    best_stages = rows.stages
    for _ in range(_SHAKES if problem.count <= _SMALL else 0):
        if budget.spent:
            break
        undo: dict[int, int] = {}
        for _ in range(rng.randint(1, 3)):
            n = rng.randrange(problem.count)
            new = rng.randrange(len(rows.rows))
            undo = {**((new != rows.level[n] and rows.move(n, new)) or {}), **undo}
        score = _descend(rows, undo)
        if score < best:
            best, best_stages = score, rows.stages
        else:
            rows.put(undo)
    return best_stages


def neighbours(problem: Problem, stages: Stages, budget: Budget) -> Iterator[Stages]:
    """Plans in which one node at a border, with what must go along, stands on the other side."""
    rows = _Rows(problem, stages, budget)
    for n in range(problem.count):
        near = {rows.level[m] for m in (*problem.predecessors[n], *problem.successors[n])}
        for new in sorted(near - {rows.level[n]}):
            before = rows.move(n, new)
            if before is not None:
                yield rows.stages
                rows.put(before)


def _recut(rows: _Rows, rng: random.Random) -> tuple[float, float]:
    """Cut each pair of neighbouring stages anew, in several orders of what they hold; gives the
    score reached."""
    problem = rows.problem
    best = rows.score()
    pairs = [(i, i + 1) for i in range(len(rows.rows) - 1)]
    pairs += [(i, i + 2) for i in range(len(rows.rows) - 2) if not rows.rows[i + 1]]
    for first, second in pairs:
        both = rows.rows[first] | rows.rows[second]
        if len(both) > _SMALL or rows.budget.spent:
            continue
        found = {n: rows.level[n] for n in both}
        graph = nx.DiGraph([(u, v) for u in both for v in problem.successors[u] if v in both])
        graph.add_nodes_from(both)
        fixed = {n for n in both if not rows.allowed(n, second)}
        for _ in range(_ORDERS):
            rank = {n: rng.random() for n in both}
            rows.put(dict.fromkeys(both, second))
            for n in nx.lexicographical_topological_sort(graph, key=rank.__getitem__):
                if not rows.allowed(n, first):
                    break
                rows.put({n: first})
                if all(rows.level[m] == first for m in fixed):
                    score = rows.score()
                    if score < best:
                        best, found = score, {m: rows.level[m] for m in both}
        rows.put(found)
    return best


def _opened(problem: Problem, stages: Stages) -> Stages:
    """Where every TPU has one stage at most, the empty stages between too, so that nodes can move
    there."""
    devices = levels(problem)
    rows: list[list[int]] = [[] for _ in devices]
    at = 0
    for device, nodes in stages:
        while at < len(devices) and (devices[at] == HOST) != (device == HOST):
            at += 1
        if at == len(devices):
            return stages
        rows[at] += nodes
        at += 1
    return tuple((device, tuple(row)) for device, row in zip(devices, rows, strict=True))


def _descend(rows: _Rows, undo: dict[int, int] | None = None) -> tuple[float, float]:
    """Take every move that helps until none does; adds to `undo` where nodes were."""
    problem = rows.problem
    best = rows.score()
    changed = True
    while changed and not rows.budget.spent:
        changed = False
        for n in range(problem.count):
            for new in range(max(0, rows.level[n] - 2), min(len(rows.rows), rows.level[n] + 3)):
                if new == rows.level[n]:
                    continue
                before = rows.move(n, new)
                if before is None:
                    continue
                score = rows.score()
                if score < best:
                    best, changed = score, True
                    if undo is not None:
                        for m, level in before.items():
                            undo.setdefault(m, level)
                else:
                    rows.put(before)
            if rows.budget.spent:
                break
    return best
