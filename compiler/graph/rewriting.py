"""Runs a rewrite over a graph until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from compiler.graph.builder import Builder, Names
from compiler.graph.values import is_static

# Rounds over a graph at most; the deepest network in the tests takes a few.
MOST_ROUNDS = 1000


def rewrite_until_stable(
    model: ir.Model, rewrite: Callable[[ir.Node, Builder], bool]
) -> list[ir.Node]:
    """Offer every node of static shapes to `rewrite` until it changes nothing any more.

    `rewrite` says whether it changed anything. Returns the nodes at which it did, in order; some
    are no longer in the graph. Raises RuntimeError where that does not come to an end.
    """
    names = Names(model.graph)
    changed: list[ir.Node] = []
    for _ in range(MOST_ROUNDS):
        before = len(changed)
        for node in list(model.graph):
            # A rewrite of an earlier node may have removed this one.
            if node.graph is None or not _has_static_shapes(node):
                continue
            if rewrite(node, Builder(model, names, node)):
                changed.append(node)
        common.RemoveUnusedNodesPass()(model)
        if len(changed) == before:
            return changed
    raise RuntimeError("rewriting does not come to an end")


def _has_static_shapes(node: ir.Node) -> bool:
    values = [value for value in [*node.inputs, *node.outputs] if value is not None]
    return all(is_static(value) for value in values)
