"""Runs a rewrite over a graph until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes import common

from compiler.graph.builder import Builder, Names
from compiler.graph.values import is_static

MOST_ROUNDS = 1000  # of rewriting a graph; the deepest network in the tests takes a few


def rewrite_until_stable(model: ir.Model, rewrite: Callable[[ir.Node, Builder], bool]) -> None:
    """Offer every node of static shapes to `rewrite`, which says whether it changed anything, until
    none does.

    Raises RuntimeError where that does not come to an end.
    """
    names = Names(model.graph)
    for _ in range(MOST_ROUNDS):
        changed = False
        for node in list(model.graph):
            if node.graph is not None and all(
                is_static(v) for v in [*node.inputs, *node.outputs] if v is not None
            ):
                changed |= rewrite(node, Builder(model, names, node))
        common.RemoveUnusedNodesPass()(model)
        if not changed:
            return
    raise RuntimeError("rewriting does not come to an end")
