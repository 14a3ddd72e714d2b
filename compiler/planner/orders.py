"""Topological orders of a graph that are worth cutting."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import networkx as nx

from compiler.planner.budget import SMALL_GRAPH
from compiler.planner.problem import Problem, Stages

# Random orders of a small graph, and orders that are drawn from each of the best plans of one.
_RANDOM_ORDERS = 6
_ORDERS_OF_PLAN = 6


def orders(problem: Problem, rng: random.Random) -> list[list[int]]:
    """Orders of the nodes: the caller's, by depth, one branch after the other, some by chance."""
    branch_after_branch = nx.dfs_postorder_nodes(problem.graph.reverse(copy=False))
    ranks: list[dict[int, float]] = [{n: i for i, n in enumerate(branch_after_branch)}]
    if problem.count <= SMALL_GRAPH:
        for _ in range(_RANDOM_ORDERS):
            ranks.append({n: rng.random() for n in range(problem.count)})
    given = list(range(problem.count))
    found = [given, sorted(given, key=lambda n: (problem.depth[n], n))]
    for rank in ranks:
        order = list(nx.lexicographical_topological_sort(problem.graph, key=rank.__getitem__))
        found.append(order)
    return [order for i, order in enumerate(found) if order not in found[:i]]


def orders_of_plan(problem: Problem, stages: Stages, rng: random.Random) -> Iterator[list[int]]:
    """Topological orders that a plan's stages could have been cut from."""
    stage_of: dict[int, int] = {}
    for index, (_, nodes) in enumerate(stages):
        stage_of |= dict.fromkeys(nodes, index)
    for _ in range(_ORDERS_OF_PLAN if problem.count <= SMALL_GRAPH else 1):
        rank = {n: (stage, rng.random()) for n, stage in stage_of.items()}
        yield list(nx.lexicographical_topological_sort(problem.graph, key=rank.__getitem__))


def alternate(
    problem: Problem, order: Sequence[int], sides: Sequence[bool]
) -> list[tuple[bool, list[int]]]:
    """The nodes of `order` in turns of the TPUs (True) and the host, as few as the graph allows.

    One side runs as long as something is ready for it. `sides` says for each node whether it goes
    to a TPU.
    """
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
            n = order[heappop(ready[side])]
            nodes.append(n)
            for user in inside & {*problem.successors[n]}:
                waiting[user] -= 1
                if not waiting[user]:
                    heappush(ready[sides[user]], position[user])
        turns.append((side, nodes))
        side = not side
    return turns
