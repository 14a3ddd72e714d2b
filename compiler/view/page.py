"""The plan as one self-contained page, and the lowered graph for Graphviz."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compiler.graph import activations_of, operator_name, origin_of
from compiler.partition import Program
from compiler.view.cleaned import cleaned

_TEMPLATE = Path(__file__).parent / "page.html"


def page(plan: Mapping[str, Any]) -> str:
    """A plan or a manifest as HTML that needs no network."""
    data = json.dumps(cleaned(plan), ensure_ascii=False, sort_keys=True)
    return _TEMPLATE.read_text(encoding="utf-8").replace(
        "DATA</script>", data.replace("<", "\\u003c") + "</script>", 1
    )


def dot(program: Program) -> str:
    """The lowered graph in Graphviz's language: nodes in the boxes of their segments, tensors with
    their shapes."""
    names = {node: f"n{i}" for i, node in enumerate(program.model.graph)}
    lines = [
        "digraph plan {",
        "rankdir=TB; node [shape=box, style=filled, fillcolor=white]; compound=true;",
    ]
    for segment in program.plan.segments:
        where = "host" if segment.tpu is None else f"TPU {segment.tpu}"
        colour = "orange" if segment.tpu is None else "palegreen"
        title = _quoted(f"{segment.index}: {where}, {1e3 * segment.seconds:.3g} ms")
        lines.append(
            f"subgraph cluster_{segment.index} {{ label={title}; style=filled; color={colour};"
        )
        for node in segment.nodes:
            lines.append(
                f"{names[node]} [label={_quoted(operator_name(node))}, tooltip={_quoted(origin_of(node))}];"
            )
        lines.append("}")
    for node, name in names.items():
        for value in activations_of(node):
            producer = value.producer()
            if producer is not None:
                lines.append(f"{names[producer]} -> {name} [label={_quoted(_shape(value))}];")
    return "\n".join([*lines, "}", ""])


def _shape(value: ir.Value) -> str:
    return "x".join(str(d) for d in value.shape) if value.shape is not None else "?"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
