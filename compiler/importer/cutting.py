"""Ends a model at tensors that the user names, before anything else is made of the file.

The baseline cuts the user's file in the same way and changes nothing else of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence

import onnx
import onnx_ir as ir

from compiler.errors import OptionError

# Where an imported model keeps the names of the tensors that the user ended it at.
META = "edgetpu.outputs"
# How many names an error offers.
_CLOSEST = 3


def cut(model: onnx.ModelProto, outputs: Sequence[str]) -> None:
    """Make these tensors the model's outputs, in this order, and drop what they do not need: nodes,
    inputs and weights.

    Raises OptionError for a name that no node of the main graph gives.
    """
    graph = model.graph
    made = {name for node in graph.node for name in node.output if name}
    for name in outputs:
        if name not in made:
            raise OptionError(f"{name}: {_unknown(name, graph, made)}", "outputs")
    known = {value.name: value for value in [*graph.value_info, *graph.output]}
    declared = [known.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
    _replace(graph.output, declared)
    nodes, needed = _needed(graph.node, outputs)
    _replace(graph.node, nodes)
    _replace(graph.input, [value for value in graph.input if value.name in needed])
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    inner = {value.name for value in declared}
    _replace(graph.value_info, [v for v in graph.value_info if v.name not in inner])


def of(model: ir.Model) -> tuple[str, ...]:
    """The tensors that an imported model was ended at; none where it ends as in the file."""
    return tuple(model.meta.get(META, ()))


def _needed(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that outputs are computed from, in their order, and the names of all tensors that
    these read."""
    needed = set(outputs)
    kept = []
    # Nodes stand behind those that they read.
    for node in reversed(nodes):
        if needed.isdisjoint(node.output):
            continue
        kept.append(node)
        needed.update(_read(node))
    return kept[::-1], needed


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, by the graphs inside it too."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                yield from _read(inner)
            yield from (value.name for value in graph.output)


def _unknown(name: str, graph: onnx.GraphProto, made: Iterable[str]) -> str:
    """What to say of a name that is no tensor which a node gives."""
    for node in graph.node:
        if node.name == name and node.output:
            return f"is the name of a node; the tensor that it gives is '{node.output[0]}'"
    if any(value.name == name for value in graph.input):
        return "is an input of the model: end it at a tensor that a node gives"
    close = difflib.get_close_matches(name, sorted(made), _CLOSEST, cutoff=0.4)
    if not close:
        close = [value.name for value in graph.output]
    offered = ", ".join(f"'{other}'" for other in close)
    return f"the model has no such tensor; the closest are {offered}"


def _replace(field, values) -> None:  # type: ignore[no-untyped-def]  # protobuf's containers
    kept = list(values)
    copies = [type(value)() for value in kept]
    for copy, value in zip(copies, kept, strict=True):
        copy.CopyFrom(value)
    del field[:]
    field.extend(copies)
