"""What no schedule of a request can end before, whatever runs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import networkx as nx
import numpy as np

from compiler.planner.problem import (
    HOST,
    INFINITE,
    Problem,
    Tensor,
    levels,
    simple_bound,
    streaming,
    surely_streamed,
)
from compiler.planner.programme import Programme
from compiler.planner.sections import ancestors

# Comparing all pairs of nodes of larger graphs would take longer than planning them.
_MOST_NODES = 2500
# Exact times to stream are asked for so often.
_MOST_ROUNDS = 100


def makespan_bound(problem: Problem, reached: float) -> float:
    """What no makespan is less than; `reached` is that of a plan.

    The nodes on one way through the graph run one after the other. A stage that holds the nodes of
    the way on both sides of a region of branches holds the region too, as no stage may need what
    itself must come before. So the best stages for the way alone are a bound, if each TPU has one;
    and so is the work that all devices share.
    """
    least = _shared_work(problem)
    if problem.count <= _MOST_NODES:
        way = _Way(problem)
        least = max(least, simple_bound(restricted(problem, way.nodes)))
        if _host_is_outside(problem):
            least = max(least, _best_stages(problem, way, reached))
    return min(least, reached)


def _shared_work(problem: Problem) -> float:
    """What each device takes at least if all share evenly what they may run."""
    tpu = surely_streamed(problem)
    host = free = 0.0
    for on_tpu, on_host in zip(problem.tpu, problem.host, strict=True):
        if on_host == INFINITE:
            tpu += on_tpu
        elif on_tpu == INFINITE:
            host += on_host
        else:
            free += min(on_tpu, on_host)
    return max(host, tpu / problem.tpus, (tpu + host + free) / (problem.tpus + 1))


def _host_is_outside(problem: Problem) -> bool:
    """Whether no TPU needs what only the host can make of what a TPU made."""
    behind_tpu = [False] * problem.count
    behind_host = [False] * problem.count
    for n, before in enumerate(problem.predecessors):
        on_tpu_only = problem.host[n] == INFINITE
        on_host_only = problem.tpu[n] == INFINITE
        if on_tpu_only and any(behind_host[p] for p in before):
            return False
        behind_tpu[n] = on_tpu_only or any(behind_tpu[p] for p in before)
        behind_host[n] = any(behind_host[p] for p in before) or (on_host_only and behind_tpu[n])
    return True


@dataclass(frozen=True)
class _Region:
    """Nodes beside the way between two of its nodes.

    fork    place of the node before them
    others  the nodes
    extra   what they add at least where stages divide the way between the two nodes once: they are
            in one of these stages, or in one of their own between them
    """

    fork: int
    others: list[int]
    extra: float


class _Way:
    """Nodes of which each needs those before it; where some do not need each other, those on the
    longest way through them.

    nodes    on the way
    regions  by the place of the node of the way behind it
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        needs = ancestors(problem)
        self.nodes: list[int] = []
        self.regions: dict[int, _Region] = {}
        for members in _regions(problem, needs):
            fork = len(self.nodes) - 1
            on_way = _longest_within(problem, members, needs)
            self.nodes += on_way
            others = [n for n in members if n not in on_way]
            if others:
                self.regions[len(self.nodes)] = _Region(fork, others, _extra(problem, others))


def _extra(problem: Problem, nodes: Sequence[int]) -> float:
    # A stage of their own between the others gives at least one tensor to the one behind it.
    made = [problem.tensors[t] for n in nodes for t in problem.makes[n]]
    apart = problem.invoke + min(tensor.up + tensor.down for tensor in made)
    return min(apart, sum(min(problem.tpu[n], problem.host[n]) for n in nodes))


def _regions(problem: Problem, needs: Sequence[int]) -> list[list[int]]:
    """Nodes in groups that follow one another: all of a group come before all of the next."""
    beside: nx.Graph = nx.Graph()
    beside.add_nodes_from(range(problem.count))
    for n in range(problem.count):
        others = (1 << n) - 1 & ~needs[n]
        while others:
            other = others.bit_length() - 1
            beside.add_edge(n, other)
            others ^= 1 << other
    return sorted(sorted(members) for members in nx.connected_components(beside))


def _longest_within(problem: Problem, members: Sequence[int], needs: Sequence[int]) -> list[int]:
    """The members on the way that takes longest."""
    longest: dict[int, float] = {}
    came: dict[int, int | None] = {}
    for place, n in enumerate(members):
        before = [m for m in members[:place] if needs[n] >> m & 1]
        last = max(before, key=longest.__getitem__, default=None)
        own = min(problem.tpu[n], problem.host[n])
        longest[n] = own + (0.0 if last is None else longest[last])
        came[n] = last
    node: int | None = max(members, key=longest.__getitem__)
    way: list[int] = []
    while node is not None:
        way.append(node)
        node = came[node]
    return way[::-1]


def _best_stages(problem: Problem, way: _Way, reached: float) -> float:
    """The least sum of stages for the way, where each TPU has one."""
    rows = _Rows(problem, way, reached)
    programme = Programme(levels(problem), rows.tpu, rows.host)
    least = 0.0
    for _ in range(_MOST_ROUNDS):
        course = programme.best("latency")
        if course is None:
            # Nothing that is as good as `reached` was left out.
            return reached
        least = course.value * (1 - 1e-9)
        on_tpus = [(step.begin, step.end) for step in course.steps if step.device != HOST]
        if not rows.ask(on_tpus):
            break
    return least


class _Rows:
    """Times of the stages between any two places of the way, as far as they can be of use.

    Bytes that do not fit are taken to be those that are streamed fastest, until it is asked.
    """

    def __init__(self, problem: Problem, way: _Way, reached: float) -> None:
        self.problem, self.way, self.reached = problem, way, reached
        count = len(way.nodes)
        self.tpu = np.full((count + 1, count + 1), np.inf)
        self.host = np.full((count + 1, count + 1), np.inf)
        np.fill_diagonal(self.tpu, 0.0)
        np.fill_diagonal(self.host, 0.0)
        self.asked: set[tuple[int, int]] = set()
        for begin in range(count):
            self._fill(begin)

    def _fill(self, begin: int) -> None:
        way, problem = self.way, self.problem
        stage = _Stage(problem, way, begin)
        hosted = 0.0
        for end in range(begin + 1, len(way.nodes) + 1):
            stage.extend(end)
            time = stage.time - self._saved(begin, end)
            if time <= self.reached:
                self.tpu[begin, end] = time + stage.up() + stage.least_streaming()
            hosted += problem.host[way.nodes[end - 1]]
            if hosted <= self.reached:
                # The host takes nothing to end a stage within a region.
                self.host[begin, end] = hosted - self._saved(end - 1, end)
            if min(time, hosted) > self.reached:
                break

    def _saved(self, begin: int, end: int) -> float:
        """What a stage within regions lets run beside it."""
        saved = 0.0
        for join, region in self.way.regions.items():
            if region.fork < begin and end <= join:
                saved += region.extra
        return saved

    def ask(self, steps: Sequence[tuple[int, int]]) -> bool:
        """Put exact times to stream for stages where they stand for less; whether any was open."""
        new = [step for step in steps if step not in self.asked]
        for begin, end in new:
            self.asked.add((begin, end))
            stage = _Stage(self.problem, self.way, begin)
            for place in range(begin + 1, end + 1):
                stage.extend(place)
            if stage.is_full:
                late = streaming(self.problem, sorted(stage.nodes))
                self.tpu[begin, end] += max(0.0, late - stage.least_streaming())
        return bool(new)


class _Stage:
    """What a stage takes at least that has these nodes, and perhaps others beside the way."""

    def __init__(self, problem: Problem, way: _Way, begin: int) -> None:
        self.problem, self.way, self.begin = problem, way, begin
        self.before = set(way.nodes[:begin])
        self.behind = set(way.nodes[begin:])
        self.nodes: set[int] = set()
        self.read: set[int] = set()
        self.time = problem.invoke
        self.bytes = 0
        self.room = max(problem.capacities, default=0)

    @property
    def is_full(self) -> bool:
        return self.problem.streaming is not None or self.bytes > self.room

    def extend(self, end: int) -> None:
        """Take in the node before a place of the way, and the region that ends there."""
        self._add(self.way.nodes[end - 1])
        region = self.way.regions.get(end - 1)
        if region is None:
            return
        if region.fork >= self.begin:
            for n in region.others:
                self._add(n)
        elif self.begin < end - 1:
            self.time += region.extra

    def _add(self, n: int) -> None:
        problem = self.problem
        self.nodes.add(n)
        self.behind.discard(n)
        self.time += problem.tpu[n]
        self.bytes += problem.sizes[n]
        self.room = min(self.room, problem.capacities[n])
        for t in problem.reads[n]:
            source = problem.tensors[t].source
            if t not in self.read and (source is None or source in self.before):
                self.read.add(t)
                self.time += problem.tensors[t].down

    def up(self) -> float:
        """The time of the tensors that leave for nodes of the way, and of those that are wanted."""
        total = 0.0
        for n in self.nodes:
            for t in self.problem.makes[n]:
                tensor = self.problem.tensors[t]
                if tensor.leaves or not self.behind.isdisjoint(tensor.readers):
                    total += tensor.up
        return total

    def least_streaming(self) -> float:
        """The time to stream as many bytes as there is no room for, where that is fastest."""
        excess = self.bytes - self.room
        if excess <= 0:
            return 0.0
        holders = [n for n in self.nodes if self.problem.sizes[n]]
        rates = [(self.problem.stream[n] / self.problem.sizes[n], n) for n in holders]
        late = 0.0
        for rate, n in sorted(rates):
            if excess <= 0 or rate == INFINITE:
                break
            late += rate * min(excess, self.problem.sizes[n])
            excess -= self.problem.sizes[n]
        return late


def restricted(problem: Problem, nodes: Sequence[int]) -> Problem:
    """The problem of some nodes that follow one another: what others make and take is left out."""
    number = {n: index for index, n in enumerate(nodes)}
    tensors = []
    for tensor in problem.tensors:
        readers = tuple(number[reader] for reader in tensor.readers if reader in number)
        is_made = tensor.source is None or tensor.source in number
        if is_made and (readers or tensor.leaves):
            source = None if tensor.source is None else number[tensor.source]
            tensors.append(Tensor(source, readers, tensor.leaves, tensor.down, tensor.up))
    return replace(
        problem,
        tpu=[problem.tpu[n] for n in nodes],
        host=[problem.host[n] for n in nodes],
        edges=list(pairwise(range(len(nodes)))),
        tensors=tensors,
        sizes=[problem.sizes[n] for n in nodes],
        stream=[problem.stream[n] for n in nodes],
        capacities=[problem.capacities[n] for n in nodes],
        streaming=None,
    )
