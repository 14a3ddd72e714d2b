"""The rewritten graph for Graphviz."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from compiler.graph import activations_of, operator_name, origin_of
from compiler.partition import Program, Segment

_HEAD = (
    "digraph plan {",
    "rankdir=TB; node [shape=box, style=filled, fillcolor=white]; compound=true;",
)


def dot(program: Program) -> str:
    """The rewritten graph in Graphviz's language: nodes in the boxes of their segments, tensors
    with their shapes."""
    names = {node: f"n{index}" for index, node in enumerate(program.model.graph)}
    lines = [*_HEAD]
    for segment in program.plan.segments:
        lines += _box(segment, names)
    for node in program.model.graph:
        lines += _edges(node, names)
    return "\n".join([*lines, "}", ""])


def _box(segment: Segment, names: Mapping[ir.Node, str]) -> Iterator[str]:
    on_host = segment.tpu is None
    numbers = [] if on_host else [segment.tpu, *segment.replicas]
    place = "host" if on_host else f"TPU {', '.join(map(str, numbers))}"
    colour = "orange" if on_host else "palegreen"
    title = _quoted(f"{segment.index}: {place}, {1e3 * segment.seconds:.3g} ms")
    yield f"subgraph cluster_{segment.index} {{ label={title}; style=filled; color={colour};"
    for node in segment.nodes:
        label, tooltip = _quoted(operator_name(node)), _quoted(origin_of(node))
        yield f"{names[node]} [label={label}, tooltip={tooltip}];"
    yield "}"


def _edges(node: ir.Node, names: Mapping[ir.Node, str]) -> Iterator[str]:
    for value in activations_of(node):
        producer = value.producer()
        if producer is not None:
            yield f"{names[producer]} -> {names[node]} [label={_quoted(_shape(value))}];"


def _shape(value: ir.Value) -> str:
    if value.shape is None:
        return "?"
    return "x".join(str(size) for size in value.shape)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
