"""What no schedule can end before, whatever runs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import networkx as nx

from compiler.planner.ideals import by_ideals
from compiler.planner.problem import (
    INFINITE,
    Problem,
    Tensor,
    simple_bound,
    surely_streamed,
)
from compiler.planner.sections import ancestors

# Comparing all pairs of nodes of larger graphs would take longer than planning them.
_MOST_NODES = 2500


def makespan_bound(problem: Problem) -> float:
    """What no makespan is less than, over all plans in which each TPU has one stage.

    Nodes that need one another run one after the other, in stages as of a plan without anything at
    once. So the best such plan of the nodes on one way through the graph is a bound, and so is the
    work that all TPUs share.
    """
    if problem.count > _MOST_NODES:
        return _shared_work(problem)
    way = _longest_way(problem)
    if len(way) == problem.count:
        on_the_way = problem
    else:
        on_the_way = restricted(problem, way)
    found = by_ideals(on_the_way)
    if found is not None and found.bound is not None:
        least = found.bound
    else:
        least = simple_bound(on_the_way)
    return max(least, _shared_work(problem))


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


def _longest_way(problem: Problem) -> list[int]:
    """Nodes of which each needs those before it: where some do not need each other, those on the
    longest way through them."""
    needs = ancestors(problem)
    beside = nx.Graph()
    beside.add_nodes_from(range(problem.count))
    everything = (1 << problem.count) - 1
    behind = _descendants(problem)
    for n in range(problem.count):
        others = everything & ~(needs[n] | behind[n] | (2 << n) - 1)
        while others:
            other = others & -others
            beside.add_edge(n, other.bit_length() - 1)
            others ^= other
    way: list[int] = []
    for members in nx.connected_components(beside):
        way += _longest_within(problem, sorted(members), needs)
    return sorted(way)


def _descendants(problem: Problem) -> list[int]:
    found = [0] * problem.count
    for n in reversed(range(problem.count)):
        for reader in problem.successors[n]:
            found[n] |= found[reader] | 1 << reader
    return found


def _longest_within(problem: Problem, members: Sequence[int], needs: Sequence[int]) -> list[int]:
    """The members on the way that takes longest."""
    if len(members) == 1:
        return [*members]
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
    return way


def restricted(problem: Problem, nodes: Sequence[int]) -> Problem:
    """The problem of some of the nodes: what the others make and take is left out."""
    number = {n: index for index, n in enumerate(nodes)}
    tensors = []
    for tensor in problem.tensors:
        readers = tuple(number[reader] for reader in tensor.readers if reader in number)
        is_made = tensor.source is None or tensor.source in number
        if is_made and (readers or tensor.leaves):
            source = None if tensor.source is None else number[tensor.source]
            tensors.append(Tensor(source, readers, tensor.leaves, tensor.down, tensor.up))
    edges = {(number[u], number[v]) for u, v in problem.edges if u in number and v in number}
    # Each needs the one before it, whatever stood between.
    edges.update((index, index + 1) for index in range(len(nodes) - 1))

    def of(values: Sequence[float]) -> list[float]:
        return [values[n] for n in nodes]

    return replace(
        problem,
        tpu=of(problem.tpu),
        host=of(problem.host),
        edges=sorted(edges),
        tensors=tensors,
        sizes=[problem.sizes[n] for n in nodes],
        stream=of(problem.stream),
        capacities=[problem.capacities[n] for n in nodes],
        streaming=None,
    )
