"""Finds where a model's state is int8 behind a step and in front of the next one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import onnx_ir as ir

from compiler.graph import activations_of, consumers_of
from compiler.ops import Moves, operator_of


def carried(
    graph: ir.Graph, pairs: Mapping[str, str], quantized: Collection[ir.Value]
) -> list[tuple[ir.Value, ir.Value]]:
    """Pairs of `quantized` activations that hold one state: behind a step, and in front of the
    next.

    `pairs` are {output: input}. Between them may lie what only moves elements, as the host does at
    the borders of segments.
    """
    inputs = {str(value.name): value for value in graph.inputs}
    found = []
    for output in graph.outputs:
        name = pairs.get(str(output.name))
        after = None if name is None else _made_in_int8(output, quantized)
        if name is None or after is None:
            continue
        found += [(after, before) for before in _read_in_int8(inputs[name], quantized)]
    return found


def _made_in_int8(value: ir.Value, quantized: Collection[ir.Value]) -> ir.Value | None:
    """The quantized value that a state comes from, moved at most."""
    while value not in quantized:
        node = value.producer()
        moved = [] if node is None else activations_of(node)
        if node is None or not moved or operator_of(node).moves < Moves.ELEMENTS:
            return None
        value = moved[0]
    return value


def _read_in_int8(value: ir.Value, quantized: Collection[ir.Value]) -> Iterator[ir.Value]:
    """The quantized values that a state becomes, moved at most."""
    if value in quantized:
        yield value
        return
    for node in consumers_of(value):
        if operator_of(node).moves >= Moves.ELEMENTS:
            for output in node.outputs:
                yield from _read_in_int8(output, quantized)
