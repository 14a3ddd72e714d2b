"""Where a graph divides into branches that do not need each other, such as the tiles of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from compiler.planner.problem import INFINITE, Problem

# A node that takes less than this share of an invocation is no reason for one of its own.
_LIGHT = 0.05

Branch = frozenset[int]


@dataclass(frozen=True)
class Section:
    """Branches between two places that all ways pass: none needs what another one makes."""

    branches: tuple[Branch, ...]

    @property
    def nodes(self) -> Branch:
        return frozenset().union(*self.branches)


def sections(problem: Problem) -> list[Section]:
    """The parts of a graph that several TPUs could share, in the order of the graph.

    Nodes that take long are the skeleton: a part is what is between two places at which each of
    them either comes before or behind. Nodes that take little go with the branch that makes or
    reads all that is theirs; others belong to none.
    """
    needs = ancestors(problem)
    heavy = [n for n in range(problem.count) if _is_heavy(problem, n)]
    beside = nx.Graph()
    beside.add_nodes_from(heavy)
    for place, n in enumerate(heavy):
        # Nodes are numbered in a topological order.
        beside.add_edges_from((m, n) for m in heavy[:place] if not needs[n] >> m & 1)
    found = []
    for members in nx.connected_components(beside):
        if len(members) > 1:
            branches = _branches(sorted(members), needs)
            if len(branches) > 1:
                found.append(_with_light_nodes(problem, branches, needs, set(heavy)))
    return sorted(found, key=lambda section: min(section.nodes))


def _is_heavy(problem: Problem, n: int) -> bool:
    if problem.tpu[n] == INFINITE:
        return False
    streamed = problem.stream[n] if problem.sizes[n] and problem.stream[n] < INFINITE else 0.0
    return problem.tpu[n] + streamed > _LIGHT * problem.invoke


def ancestors(problem: Problem) -> list[int]:
    """Of each node all that it needs, as bit masks."""
    needs: list[int] = []
    for before in problem.predecessors:
        mask = 0
        for other in before:
            mask |= needs[other] | 1 << other
        needs.append(mask)
    return needs


def _branches(members: Sequence[int], needs: Sequence[int]) -> list[set[int]]:
    """Members in groups of which none needs another one."""
    ordered = nx.Graph()
    ordered.add_nodes_from(members)
    for place, n in enumerate(members):
        ordered.add_edges_from((m, n) for m in members[:place] if needs[n] >> m & 1)
    return sorted(nx.connected_components(ordered), key=min)


def _with_light_nodes(
    problem: Problem, branches: Sequence[set[int]], needs: Sequence[int], heavy: set[int]
) -> Section:
    """The section with the nodes that serve one of its branches alone."""
    masks = [sum(1 << n for n in branch) for branch in branches]
    whole = sum(masks)
    serves = [0] * problem.count
    for n in reversed(range(problem.count)):
        if whole >> n & 1:
            continue
        for reader in problem.successors[n]:
            serves[n] |= 1 << reader & whole | serves[reader]
    grown = [set(branch) for branch in branches]
    for n in range(problem.count):
        if n in heavy or problem.tpu[n] == INFINITE:
            continue
        behind = [p for p in problem.predecessors[n] if (needs[p] | 1 << p) & whole]
        readers = [i for i, mask in enumerate(masks) if serves[n] & mask]
        for branch, mask in zip(grown, masks, strict=True):
            made_here = bool(behind) and branch.issuperset(behind)
            read_here = not behind and len(readers) == 1 and _serves_only(problem, n, mask)
            if made_here or read_here:
                branch.add(n)
    return Section(tuple(frozenset(branch) for branch in grown))


def _serves_only(problem: Problem, n: int, mask: int) -> bool:
    return all(mask >> reader & 1 for reader in problem.successors[n])
