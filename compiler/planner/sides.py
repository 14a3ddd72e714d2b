"""Which nodes go to a TPU and which to the host, by minimum cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count as numbers

import networkx as nx

from compiler.planner.problem import INFINITE, Problem, cached

# What a second of a TPU counts in a pipeline, as powers of two divided by the number of TPUs.
_PIPELINE_WEIGHTS = range(-4, 5)


def sides(problem: Problem) -> list[list[bool]]:
    """Choices of whether each node goes to a TPU, each the least sum of times and transfers.

    Invocations and the bytes that fit are not seen by a cut; parameters that surely do not fit
    count as streamed. In a pipeline TPUs share what is theirs, so their time counts for less; how
    much less is tried.
    """
    wherever_possible = [seconds < INFINITE for seconds in problem.tpu]
    free = [
        n for n in range(problem.count) if problem.tpu[n] < INFINITE and problem.host[n] < INFINITE
    ]
    if not free:
        return [wherever_possible]
    if problem.objective == "latency":
        weights = [1.0]
    else:
        weights = [2.0**power / problem.tpus for power in _PIPELINE_WEIGHTS]
    streamed = _surely_streamed(problem, wherever_possible)
    found = [wherever_possible]
    for weight in weights:
        side = _minimum_cut(problem, streamed, weight)
        if side not in found:
            found.append(side)
    return found


def _surely_streamed(problem: Problem, on_tpu: Sequence[bool]) -> list[float]:
    """Seconds to stream each node's parameters where all TPUs together do not hold them."""
    together = [capacity * problem.tpus for capacity in problem.capacities]
    spread = replace(problem, capacities=together)
    kept, _ = cached(spread, [n for n, goes in enumerate(on_tpu) if goes])
    return [
        0.0 if n in kept or not size else problem.stream[n] for n, size in enumerate(problem.sizes)
    ]


def _minimum_cut(problem: Problem, streamed: Sequence[float], weight: float) -> list[bool]:
    """The side of each node in a minimum cut between a TPU and the host.

    An edge that is cut is a time that is spent: a node's time on the side that it is on, and a
    transfer where a tensor's source and a reader are apart. A tensor has a node of its own for each
    direction, so that several readers on one side pay once.
    """
    graph = nx.DiGraph()
    # Numbers for all nodes: sets of them have the same order in every process.
    names = numbers(problem.count)
    on_tpu, on_host = next(names), next(names)
    for n in range(problem.count):
        _add_edge(graph, on_tpu, n, problem.host[n])
        _add_edge(graph, n, on_host, weight * (problem.tpu[n] + streamed[n]))
    for tensor in problem.tensors:
        down, up = next(names), next(names)
        for reader in tensor.readers:
            graph.add_edge(reader, down)
            graph.add_edge(up, reader)
        source = on_host if tensor.source is None else tensor.source
        graph.add_edge(down, source, capacity=weight * tensor.down)
        if tensor.source is not None:
            graph.add_edge(tensor.source, up, capacity=weight * tensor.up)
            if tensor.leaves:
                graph.add_edge(up, on_host)
    _, (tpu, _) = nx.minimum_cut(graph, on_tpu, on_host)
    return [n in tpu for n in range(problem.count)]


def _add_edge(graph: nx.DiGraph, tail: int, head: int, seconds: float) -> None:
    # networkx takes an edge without a capacity as one that cannot be cut.
    if seconds == INFINITE:
        graph.add_edge(tail, head)
    else:
        graph.add_edge(tail, head, capacity=seconds)
