"""The problem, its plans, and what a plan costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import networkx as nx

Objective = Literal["latency", "throughput"]
Stages = tuple[tuple[int, tuple[int, ...]], ...]
HOST = -1
INFINITE = math.inf


@dataclass(frozen=True)
class Tensor:
    """`source` makes it (None: it comes from outside), `readers` read it; `leaves` tells that the
    caller wants it.

    `down` is the time to bring it to a TPU, `up` the time to bring it back; a stage pays each once.
    """

    source: int | None
    readers: tuple[int, ...]
    leaves: bool
    down: float
    up: float


@dataclass(frozen=True)
class Problem:
    """Nodes are numbered in a topological order. Infinite times forbid a device.

    `sizes` are parameter bytes, `stream` the time to send them at each run where they are not
    cached. `capacities` bound the bytes cached on the device of a node. `host_stages` bounds how
    many stages the host may have, `limit` the load of each device. `streaming` gives, for nodes
    that share a TPU, the exact time to stream for each, where that may be more than bytes promise.
    With `replicas` several TPUs may hold the same stage and take requests in turn.
    """

    tpu: Sequence[float]
    host: Sequence[float]
    edges: Sequence[tuple[int, int]]
    tensors: Sequence[Tensor]
    sizes: Sequence[int]
    stream: Sequence[float]
    capacities: Sequence[int]
    tpus: int
    invoke: float = 0.0
    objective: Objective = "latency"
    host_stages: int | None = None
    limit: float = INFINITE
    streaming: Callable[[Sequence[int]], Sequence[float]] | None = None
    replicas: bool = False

    @property
    def count(self) -> int:
        return len(self.tpu)

    @cached_property
    def free(self) -> bool:
        """Whether a node may go to a TPU or to the host."""
        return any(max(times) < INFINITE for times in zip(self.tpu, self.host, strict=True))

    @cached_property
    def rank(self) -> list[int]:
        """Place of each node where they are sorted by size."""
        order = sorted(range(self.count), key=lambda n: (self.sizes[n], n))
        return [place for _, place in sorted(zip(order, range(self.count), strict=True))]

    @cached_property
    def graph(self) -> nx.DiGraph:
        graph = nx.DiGraph([*self.edges])
        graph.add_nodes_from(range(self.count))
        return graph

    @cached_property
    def successors(self) -> list[list[int]]:
        return [[*self.graph.successors(n)] for n in range(self.count)]

    @cached_property
    def predecessors(self) -> list[list[int]]:
        return [[*self.graph.predecessors(n)] for n in range(self.count)]

    @cached_property
    def depth(self) -> list[int]:
        """Edges on the longest way to each node."""
        found: list[int] = []
        for before in self.predecessors:
            found.append(1 + max((found[p] for p in before), default=-1))
        return found

    @cached_property
    def reads(self) -> list[list[int]]:
        """Indices of the tensors that each node reads."""
        found: list[list[int]] = [[] for _ in range(self.count)]
        for index, tensor in enumerate(self.tensors):
            for reader in tensor.readers:
                found[reader].append(index)
        return found

    @cached_property
    def makes(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(self.count)]
        for index, tensor in enumerate(self.tensors):
            if tensor.source is not None:
                found[tensor.source].append(index)
        return found


@dataclass(frozen=True)
class Solution:
    """Stages in order, as (device, nodes); empty ones are left out.

    `bound` is what no plan can be better than where a solver has looked for it, else None.
    `copies` says how many TPUs hold the stages of each device; one where it is not there.
    """

    stages: Stages
    cost: float
    bound: float | None = None
    copies: Mapping[int, int] = field(default_factory=dict)


def cached(problem: Problem, nodes: Iterable[int]) -> tuple[set[int], float]:
    """(nodes whose parameters stay cached, time to stream the others) where `nodes` share one TPU.

    The smallest stay, as many as there is room for. What the tiles take of the chosen plan is
    counted after (compiler/targets/memory.py), and is seldom less.
    """
    nodes = [*nodes]
    holders = [n for n in nodes if problem.sizes[n]]
    room = min((problem.capacities[n] for n in nodes), default=0)
    used = sum(problem.sizes[n] for n in holders)
    if used <= room:
        return set(holders), 0.0
    late = 0.0
    holders.sort(key=problem.rank.__getitem__)
    while used > room:
        last = holders.pop()
        used -= problem.sizes[last]
        late += problem.stream[last]
    return set(holders), late


def streaming(problem: Problem, nodes: Sequence[int]) -> float:
    """Time to stream parameters where `nodes` share one TPU, as exactly as is known."""
    if problem.streaming is not None:
        return sum(problem.streaming(nodes))
    return cached(problem, nodes)[1]


def streaming_of_each(problem: Problem, nodes: Sequence[int]) -> dict[int, float]:
    """As `streaming`, of each node that streams."""
    if problem.streaming is not None:
        times = problem.streaming(nodes)
        return {n: time for n, time in zip(nodes, times, strict=True) if time}
    kept, late = cached(problem, nodes)
    if not late:
        return {}
    return {n: problem.stream[n] for n in nodes if problem.sizes[n] and n not in kept}


def stage_time(problem: Problem, device: int, nodes: Sequence[int]) -> float:
    """Time of one stage without parameters that are streamed."""
    if device == HOST:
        return sum(problem.host[n] for n in nodes)
    inside = set(nodes)
    read: set[int] = set()
    made: list[Tensor] = []
    for n in nodes:
        read.update(problem.reads[n])
        made += [problem.tensors[t] for t in problem.makes[n]]
    down = sum(problem.tensors[t].down for t in read if problem.tensors[t].source not in inside)
    up = sum(t.up for t in made if t.leaves or not inside.issuperset(t.readers))
    return problem.invoke + sum(problem.tpu[n] for n in nodes) + down + up


def loads(problem: Problem, stages: Sequence[tuple[int, Sequence[int]]]) -> dict[int, float]:
    """Time of each device that has stages, streaming included."""
    found: dict[int, float] = {}
    whole: dict[int, list[int]] = {}
    for device, nodes in stages:
        found[device] = found.get(device, 0.0) + stage_time(problem, device, nodes)
        whole.setdefault(device, []).extend(nodes)
    for device, nodes in whole.items():
        if device != HOST:
            found[device] += streaming(problem, nodes)
    return found


def cost(
    problem: Problem,
    stages: Sequence[tuple[int, Sequence[int]]],
    copies: Mapping[int, int] | None = None,
) -> float:
    """What is to be small; infinite where a device is over the limit."""
    times = loads(problem, stages)
    shares = [time / (copies or {}).get(device, 1) for device, time in times.items()]
    return objective_of(problem, times.values(), shares)


def objective_of(problem: Problem, times: Collection[float], shares: Collection[float]) -> float:
    """As `cost`, of what a request takes on each device, and of the same divided by the copies."""
    pace = max(shares, default=0.0)
    if pace > problem.limit:
        return INFINITE
    return sum(times) if problem.objective == "latency" else pace


def simple_bound(problem: Problem) -> float:
    """What cannot be undercut: every node on its faster device, parameters that fit nowhere
    streamed, tensors moved between nodes that only one side may run, evenly shared."""
    nodes = range(problem.count)
    tpu = sum(problem.tpu[n] for n in nodes if problem.host[n] == INFINITE)
    tpu += surely_streamed(problem) + _surely_moved(problem)
    tpu += problem.invoke * _fewest_stages(problem)
    host = sum(problem.host[n] for n in nodes if problem.tpu[n] == INFINITE)
    free = sum(
        min(problem.tpu[n], problem.host[n])
        for n in nodes
        if INFINITE not in (problem.tpu[n], problem.host[n])
    )
    if problem.objective == "latency":
        return tpu + host + free
    return max(host, tpu / problem.tpus, (tpu + host + free) / (problem.tpus + 1))


def needed(problem: Problem) -> int:
    """The fewest TPUs whose room holds all parameters, if they could be cut anywhere."""
    return math.ceil(sum(problem.sizes) / max(max(problem.capacities, default=1), 1))


def surely_streamed(problem: Problem) -> float:
    """Least time to stream what does not fit all TPUs together."""
    held = [n for n in range(problem.count) if problem.sizes[n] and problem.host[n] == INFINITE]
    excess = sum(problem.sizes[n] for n in held) - problem.tpus * max(problem.capacities, default=0)
    late = 0.0
    for n in sorted(held, key=lambda n: problem.stream[n] / problem.sizes[n]):
        if excess <= 0 or problem.stream[n] == INFINITE:
            break
        late += problem.stream[n] * min(1.0, excess / problem.sizes[n])
        excess -= problem.sizes[n]
    return late


def _surely_moved(problem: Problem) -> float:
    """The time of the tensors that pass between what only a TPU and what only the host may run."""
    seconds = 0.0
    for tensor in problem.tensors:
        source = tensor.source
        reader_times = [(problem.tpu[n], problem.host[n]) for n in tensor.readers]
        to_tpu = any(host == INFINITE for _, host in reader_times)
        to_host = tensor.leaves or any(tpu == INFINITE for tpu, _ in reader_times)
        if to_tpu and (source is None or problem.tpu[source] == INFINITE):
            seconds += tensor.down
        if to_host and source is not None and problem.host[source] == INFINITE:
            seconds += tensor.up
    return seconds


def _fewest_stages(problem: Problem) -> int:
    """How many stages of TPUs there are at least, as nodes of the host stand between them."""
    stages: list[int] = []
    # Whether the longest way to a node needs another stage for a node that only a TPU may run.
    opens: list[bool] = []
    for n, before in enumerate(problem.predecessors):
        most, is_open = max(((stages[p], opens[p]) for p in before), default=(0, True))
        if problem.host[n] == INFINITE:
            most, is_open = most + is_open, False
        elif problem.tpu[n] == INFINITE:
            is_open = True
        stages.append(most)
        opens.append(is_open)
    return max(stages, default=0)


def levels(problem: Problem) -> list[int]:
    """Device of each level of a pipeline: the host before, between and behind the TPUs, where it
    may run anything."""
    if all(time == INFINITE for time in problem.host):
        return [*range(problem.tpus)]
    found = [HOST]
    for tpu in range(problem.tpus):
        found += [tpu, HOST]
    return found


def filled(devices: Iterable[int], rows: Iterable[Iterable[int]]) -> Stages:
    """The stages that have nodes; host stages in a row become one."""
    stages: list[tuple[int, tuple[int, ...]]] = []
    for device, row in zip(devices, rows, strict=True):
        nodes = tuple(sorted(row))
        if nodes and device == HOST and stages and stages[-1][0] == HOST:
            stages[-1] = (HOST, (*stages[-1][1], *nodes))
        elif nodes:
            stages.append((device, nodes))
    return tuple(stages)
