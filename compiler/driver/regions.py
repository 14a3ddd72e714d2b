"""Which parts of a program may run on the host instead, for accuracy: what that costs, and what it
saves.

Nodes around the worst roundings make regions; the frontier of these choices is the planner's
(planner/selection.py). Times are estimates here, as what crosses the link depends on neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import networkx as nx
import onnx_ir as ir

from compiler.checks.simulation import Rounding
from compiler.checks.trials import Noises
from compiler.graph import activations_of, consumers_of, element_count, origin_of
from compiler.partition import Program
from compiler.planner.selection import Option, frontier
from compiler.targets import Target

# How many of the worst roundings make regions, one choice of regions after the other.
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)


@dataclass(frozen=True)
class Choice:
    """Nodes to keep on the host: about how many seconds that costs, and the noise that is expected
    to be left."""

    nodes: frozenset[ir.Node]
    seconds: float
    noise: float


@dataclass
class _Regions:
    """Groups of nodes around bad roundings, each of which may run on the host."""

    members: list[set[ir.Node]]
    options: list[list[Option]]
    fixed: float


def choices(
    program: Program, roundings: Sequence[Rounding], noises: Noises, movable: Collection[ir.Node]
) -> list[Choice]:
    """What may be kept on the host, from the fastest to the most accurate choice. None is beaten by
    another one; of `movable` nodes only."""
    ranked = sorted(
        (r for r in roundings if r.name in noises.single), key=lambda r: -noises.single[r.name]
    )
    found: dict[frozenset[ir.Node], Choice] = {}
    for depth in DEPTHS:
        regions = _regions(program, ranked, noises, depth, movable)
        for selection in frontier(regions.options):
            chosen = [
                members
                for members, option in zip(regions.members, selection.choice, strict=True)
                if option
            ]
            nodes = frozenset(chain.from_iterable(chosen))
            noise = selection.error + regions.fixed
            found.setdefault(nodes, Choice(nodes, selection.seconds, noise))
        if depth >= len(ranked):
            break
    return _unbeaten(found.values())


def _unbeaten(found: Iterable[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    # Sorting is stable: the order of discovery decides between equals.
    for choice in sorted(found, key=lambda choice: (choice.seconds, choice.noise)):
        if not kept or choice.noise < kept[-1].noise:
            kept.append(choice)
    return kept


def _regions(
    program: Program,
    ranked: Sequence[Rounding],
    noises: Noises,
    depth: int,
    movable: Collection[ir.Node],
) -> _Regions:
    """What stands around the worst `depth` roundings, joined where they share nodes."""
    graph: nx.Graph = nx.Graph()
    for rounding in ranked[:depth]:
        if all(node in movable for node in rounding.nodes):
            graph.add_nodes_from(rounding.nodes)
            graph.add_edges_from((rounding.nodes[0], node) for node in rounding.nodes[1:])
    place = {node: index for index, node in enumerate(program.model.graph)}
    parts = [set(part) for part in nx.connected_components(graph)]
    parts = [_of_one_source(part, program) for part in parts]
    parts.sort(key=lambda part: min(place[node] for node in part))
    errors = [0.0] * len(parts)
    fixed = noises.rest
    for rounding in ranked:
        own = [i for i, part in enumerate(parts) if part.issuperset(rounding.nodes)]
        if own:
            errors[own[0]] += noises.single[rounding.name]
        else:
            fixed += noises.single[rounding.name]
    options = []
    for part, error in zip(parts, errors, strict=True):
        options.append([Option(0.0, error), Option(_seconds(program, part), 0.0)])
    return _Regions(parts, options, fixed)


def _of_one_source(part: set[ir.Node], program: Program) -> set[ir.Node]:
    """With all nodes of the source nodes that these come from, which are kept as a whole."""
    names = {origin_of(node) for node in part}
    return {node for node in program.model.graph if origin_of(node) in names}


def _seconds(program: Program, part: set[ir.Node]) -> float:
    """About what it costs to run nodes of the Edge TPU on the host, the way there and back
    included."""
    plan, target = program.plan, program.target
    on_tpu = {n for s in plan.segments if s.device == "tpu" for n in s.nodes}
    moved = [node for node in part if node in on_tpu]
    seconds = 0.0
    for node in moved:
        seconds += plan.costs[node].host - plan.costs[node].tpu
        seconds -= sum(p.stream for p in plan.costs[node].parameters if p.layer.is_streamed)
    return seconds + _transfers(set(moved), on_tpu, target)


def _transfers(moved: set[ir.Node], on_tpu: set[ir.Node], target: Target) -> float:
    """Seconds for what crosses the link more than before."""
    seconds = 0.0
    values = dict.fromkeys(chain.from_iterable((*activations_of(n), *n.outputs) for n in moved))
    comes = goes = False
    for value in values:
        size = element_count(value)
        producer = value.producer()
        others = [node for node in consumers_of(value) if node in on_tpu and node not in moved]
        if producer in moved:
            was_read = value.is_graph_output() or any(
                node not in on_tpu for node in consumers_of(value)
            )
            seconds -= size / target.up if was_read else 0.0
            seconds += size / target.down if others else 0.0
            goes = goes or bool(others)
        elif producer in on_tpu:
            seconds += size / target.up
            comes = True
        elif not others:
            # It had to be sent for these nodes alone.
            seconds -= size / target.down
    return seconds + (target.invoke if comes and goes else 0.0)
