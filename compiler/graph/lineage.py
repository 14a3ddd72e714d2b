"""Where the nodes of the user's file went: a name that no node has any more after the passes still
means something to the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from compiler.graph.keys import origin_of

# Key of `ir.Node.meta`, which is not written to files.
_ABSORBED = "coral_bundle.absorbed"

Neighbours = Mapping[str, Sequence[str]]


class Lineage:
    """The nodes of a graph before it is rewritten, by name, and who feeds whom."""

    def __init__(self, graph: ir.Graph) -> None:
        self._before: dict[str, list[str]] = {}
        self._behind: dict[str, list[str]] = {}
        for node in graph:
            name = origin_of(node)
            self._before.setdefault(name, [])
            self._behind.setdefault(name, [])
            for producer in node.predecessors():
                self._before[name].append(origin_of(producer))
                self._behind.setdefault(origin_of(producer), []).append(name)

    def note_absorbed(self, graph: ir.Graph) -> None:
        """Note on the nodes of the rewritten graph which ones went into them: those whose name is
        gone belong to the nearest node in front that is still there, else to the nearest behind."""
        left = {origin_of(node) for node in graph}
        absorbed: dict[str, list[str]] = {}
        for name in self._before:
            if name not in left:
                heir = _nearest(name, self._before, left) or _nearest(name, self._behind, left)
                if heir is not None:
                    absorbed.setdefault(heir, []).append(name)
        for node in graph:
            node.meta[_ABSORBED] = tuple(absorbed.get(origin_of(node), ()))


def names_of(node: ir.Node) -> tuple[str, ...]:
    """The names by which a user may know a node: its own, then those of nodes that went into it."""
    return (origin_of(node), *node.meta.get(_ABSORBED, ()))


def _nearest(name: str, neighbours: Neighbours, wanted: set[str]) -> str | None:
    """The first of the wanted names that a walk from `name` comes to, the nearest first."""
    seen = {name}
    row: Iterable[str] = neighbours.get(name, ())
    while row:
        following: list[str] = []
        for other in row:
            if other in wanted:
                return other
            if other not in seen:
                seen.add(other)
                following += neighbours.get(other, ())
        row = following
    return None
