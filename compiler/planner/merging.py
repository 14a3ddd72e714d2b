"""A graph with fewer nodes: those without parameters go where one of their inputs goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import networkx as nx

from compiler.planner.ideals import by_ideals
from compiler.planner.problem import INFINITE, Problem, Solution, Stages, Tensor, cost

# A node that joins more inputs may as well stand with its reader.
_MOST_INPUTS = 2

Groups = list[list[int]]


def by_merging(problem: Problem) -> Solution | None:
    """The best plan in which a node without parameters stays with its last input that nothing else
    reads, as in tiles that are added up; None where the graph is too wide even so. Proves nothing.
    """
    groups = _groups(problem)
    found = by_ideals(_merged(problem, groups))
    if found is None:
        return None
    stages: Stages = tuple(
        (device, tuple(sorted(chain.from_iterable(groups[index] for index in members))))
        for device, members in found.stages
    )
    return Solution(stages, cost(problem, stages, found.copies), copies=found.copies)


def _groups(problem: Problem) -> Groups:
    """The nodes that stay together, in a topological order of the groups."""
    graph = problem.graph.copy()
    first = list(range(problem.count))
    for n in range(problem.count):
        before = problem.predecessors[n]
        if problem.sizes[n] or not 1 <= len(before) <= _MOST_INPUTS:
            continue
        if len(problem.successors[max(before)]) > 1:
            continue
        producer = first[max(before)]
        if _sides(problem, n) != _sides(problem, producer):
            continue
        graph.remove_edge(producer, n)
        if nx.has_path(graph, producer, n):
            # Together they would have to run both before and behind what is between.
            graph.add_edge(producer, n)
            continue
        graph.add_edges_from((producer, after) for after in graph.successors(n))
        graph.add_edges_from((other, producer) for other in graph.predecessors(n))
        graph.remove_node(n)
        first[n] = producer
    members: dict[int, list[int]] = {n: [] for n in nx.lexicographical_topological_sort(graph)}
    for n, group in enumerate(first):
        members[group].append(n)
    return list(members.values())


def _sides(problem: Problem, n: int) -> tuple[bool, bool]:
    """Whether a node may go to a TPU, and to the host."""
    return problem.tpu[n] < INFINITE, problem.host[n] < INFINITE


def _merged(problem: Problem, groups: Groups) -> Problem:
    """The problem whose nodes are the groups."""
    number: dict[int, int] = {}
    for index, group in enumerate(groups):
        number |= dict.fromkeys(group, index)

    def total(times: Sequence[float]) -> list[float]:
        return [sum(times[n] for n in group) for group in groups]

    tensors = []
    for tensor in problem.tensors:
        source = None if tensor.source is None else number[tensor.source]
        readers = {number[reader] for reader in tensor.readers} - {source}
        if readers or tensor.leaves:
            kept = Tensor(source, tuple(sorted(readers)), tensor.leaves, tensor.down, tensor.up)
            tensors.append(kept)
    edges = {(number[u], number[v]) for u, v in problem.edges if number[u] != number[v]}
    exact = problem.streaming

    def streaming(members: Sequence[int]) -> list[float]:
        assert exact is not None
        nodes = sorted(chain.from_iterable(groups[index] for index in members))
        times = dict(zip(nodes, exact(nodes), strict=True))
        return [sum(times[n] for n in groups[index]) for index in members]

    return replace(
        problem,
        tpu=total(problem.tpu),
        host=total(problem.host),
        edges=sorted(edges),
        tensors=tensors,
        sizes=[sum(problem.sizes[n] for n in group) for group in groups],
        stream=total(problem.stream),
        capacities=[min(problem.capacities[n] for n in group) for group in groups],
        streaming=None if exact is None else streaming,
    )
