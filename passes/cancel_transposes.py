"""Move Transposes towards the outputs, through operators that let them pass, until inverse ones
meet and vanish.

    Transpose(Conv2D) -> Relu -> Transpose^-1 -> Conv2D   ->   Conv2D -> Relu -> Conv2D

Layout is data flow: what is left over is a Transpose node that someone has to execute.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    ORIGIN,
    Builder,
    Names,
    activations_of,
    is_constant,
    is_static,
    key_of,
    only_consumer,
    origin_of,
    produced_by,
    rewrite_until_stable,
    shape_of,
)
from compiler.ops import lookup
from compiler.ops.transpose import permutation
from passes.context import PassContext


def run(model: ir.Model, context: PassContext) -> None:
    rewrite_until_stable(model, lambda node, b: _merge(node, b) or _sink(node, b))
    names = Names(model.graph)
    for node in _transposes(model):
        _hoist(node, Builder(model, names, node))
    for node in _transposes(model):
        if _moves_nothing(node):
            b = Builder(model, names, node)
            b.replace(b.reshape(node.inputs[0], shape_of(node.outputs[0])))  # type: ignore[arg-type]


def _transposes(model: ir.Model) -> list[ir.Node]:
    nodes = [node for node in model.graph if key_of(node) == ("", "Transpose")]
    return [node for node in nodes if is_static(node.inputs[0]) and is_static(node.outputs[0])]


def _transpose(value: ir.Value | None) -> ir.Node | None:
    return produced_by(value, "Transpose")


def _moves_nothing(node: ir.Node) -> bool:
    """Whether a Transpose keeps the order of all dimensions larger than one."""
    shape = shape_of(node.inputs[0])
    moved = [p for p in permutation(node) if shape[p] > 1]
    return moved == sorted(moved)


def _merge(node: ir.Node, b: Builder) -> bool:
    """Two Transposes in a row become one, or none."""
    if key_of(node) != ("", "Transpose"):
        return False
    second = permutation(node)
    if list(second) == sorted(second):
        b.replace(node.inputs[0])  # type: ignore[arg-type]
        return True
    before = _transpose(node.inputs[0])
    if before is None:
        return False
    first = permutation(before)
    b.replace(b.transpose(before.inputs[0], [first[i] for i in second]))  # type: ignore[arg-type]
    return True


def _sink(node: ir.Node, b: Builder) -> bool:
    """Let the Transposes in front of a node pass through it."""
    operator = lookup(node)
    if operator is None or operator.permute is None or key_of(node) == ("", "Transpose"):
        return False
    inputs = activations_of(node)
    found = [t for t in map(_transpose, inputs) if t is not None]
    if not found or not all(is_static(v) for v in node.outputs):
        return False
    if not any(_on_tpu(t.inputs[0]) for t in found):
        return False
    perm = permutation(found[0])
    rank = len(perm)
    if any(len(shape_of(v)) != rank for v in [*inputs, *node.outputs]):
        return False
    if any(len(shape_of(v)) > rank for v in node.inputs if v is not None and is_constant(v)):
        return False
    if not all(_passes(v, perm) for v in inputs):
        return False
    inverse = tuple(int(i) for i in np.argsort(perm))
    for index, value in enumerate(node.inputs):
        if value is None or is_constant(value):
            continue
        before = _transpose(value)
        source = before.inputs[0] if before is not None and permutation(before) == perm else None
        # What can be permuted for nothing is reshaped: as a Transpose it would sink in its turn,
        # and so on for ever.
        node.replace_input_with(
            index, source or b.reshape(value, [shape_of(value)[i] for i in inverse])
        )
    operator.permute(node, perm, b)
    _transpose_outputs(node, perm, b)
    return True


def _on_tpu(value: ir.Value | None) -> bool:
    """Whether a value may be made on the Edge TPU; a Transpose of any other stays at the border,
    for the host."""
    node = value.producer() if value is not None else None
    operator = lookup(node) if node is not None else None
    return operator is not None and operator.emit is not None


def _hoist(node: ir.Node, b: Builder) -> None:
    """Move a Transpose in front of what is done to a graph input before it, such as its
    normalisation."""
    chain, value = [], node.inputs[0]
    while value is not None and not value.is_graph_input():
        before = value.producer()
        operator = lookup(before) if before is not None else None
        if (
            before is None
            or operator is None
            or operator.permute is None
            or only_consumer(value) is None
        ):
            return
        inputs = activations_of(before)
        if not all(is_static(v) for v in [*inputs, value]):
            return
        if (
            len(inputs) != 1
            or len(before.outputs) != 1
            or len(shape_of(inputs[0])) != len(shape_of(value))
        ):
            return
        chain.append(before)
        value = inputs[0]
    if value is None or not chain:
        return
    perm = permutation(node)
    inverse = tuple(int(i) for i in np.argsort(perm))
    front = Builder(b.model, b.names, chain[-1])
    chain[-1].replace_input_with(chain[-1].inputs.index(value), front.transpose(value, perm))
    for before in reversed(chain):
        operator = lookup(before)
        assert operator is not None and operator.permute is not None
        operator.permute(before, inverse, Builder(b.model, b.names, before))
        out = before.outputs[0]
        shape = shape_of(out)
        out.name, out.shape = (
            b.names.fresh(f"{out.name}/hoisted"),
            ir.Shape([shape[i] for i in perm]),
        )
    b.replace(chain[0].outputs[0])


def _passes(value: ir.Value, perm: Sequence[int]) -> bool:
    """Whether an input comes out of this Transpose, or can be permuted for nothing."""
    before = _transpose(value)
    if before is not None and permutation(before) == tuple(perm):
        return True
    shape = shape_of(value)
    inverse = [int(i) for i in np.argsort(perm)]
    kept = [p for p in inverse if shape[p] > 1]
    return before is None and kept == sorted(kept)


def _transpose_outputs(node: ir.Node, perm: Sequence[int], b: Builder) -> None:
    """Behind a node that now computes in the other layout, restore the one that its readers expect."""
    inverse = np.argsort(perm)
    for value in node.outputs:
        shape, name = shape_of(value), value.name
        value.name = b.names.fresh(f"{name}/{'x'.join(map(str, inverse))}")
        value.shape = ir.Shape([shape[i] for i in inverse])
        after = ir.node("Transpose", [value], {"perm": tuple(perm)}, num_outputs=1)
        after.metadata_props[ORIGIN] = origin_of(node)
        out = after.outputs[0]
        out.name, out.type, out.shape = name, value.type, ir.Shape(shape)
        after.name = b.names.fresh(f"{origin_of(node)}/Transpose")
        b.graph.insert_after(node, after)
        users = [(user, i) for user, i in value.uses() if user is not after]
        for user, i in users:
            user.replace_input_with(i, out)
        for i, result in enumerate(b.graph.outputs):
            if result is value:
                b.graph.outputs[i] = out
