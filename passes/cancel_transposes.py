"""Move Transposes towards the outputs until inverse ones meet and vanish.

    Transpose(Conv2D) -> Relu -> Transpose^-1 -> Conv2D   ->   Conv2D -> Relu -> Conv2D

Layout is data flow: lowering puts each operator between two Transposes, and what is left over is a
Transpose node that someone has to execute. They sink through operators that let them pass
(`Operator.permute`), one by one, and join with those that they meet. They also pass a Reshape that
joins or divides axes which are neighbours on both sides:

    Reshape(Transpose(x [1, H, W, C]) [1, C, H, W]) [1, C, H * W]   ->   Transpose(Reshape(x))

At the end, what was left in front of a graph input's normalisation goes in front of all of it, and
what moves no element becomes a Reshape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    producer_of,
    rewrite_until_stable,
    shape_of,
)
from compiler.ops import lookup
from compiler.ops.transpose import permutation
from passes.context import PassContext

Permutation = tuple[int, ...]


def run(model: ir.Model, context: PassContext) -> None:
    for node in rewrite_until_stable(model, _rewrite):
        context.matched(node)
    names = Names(model.graph)
    for node in _transposes(model):
        if _hoist(node, Builder(model, names, node)):
            context.matched(node)
    for node in _transposes(model):
        if _moves_nothing(node):
            b = Builder(model, names, node)
            source = node.inputs[0]
            assert source is not None
            b.replace(b.reshape(source, shape_of(node.outputs[0])))
            context.matched(node)


def _rewrite(node: ir.Node, b: Builder) -> bool:
    return _merge(node, b) or _sink(node, b) or _sink_through_reshape(node, b)


def _transposes(model: ir.Model) -> list[ir.Node]:
    nodes = [node for node in model.graph if key_of(node) == ("", "Transpose")]
    return [node for node in nodes if is_static(node.inputs[0]) and is_static(node.outputs[0])]


def _inverse(perm: Sequence[int]) -> Permutation:
    return tuple(int(axis) for axis in np.argsort(perm))


def _keeps_order(perm: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether a permutation of `shape` keeps the order of all dimensions larger than one."""
    moved = [axis for axis in perm if shape[axis] > 1]
    return moved == sorted(moved)


def _moves_nothing(node: ir.Node) -> bool:
    return _keeps_order(permutation(node), shape_of(node.inputs[0]))


def _merge(node: ir.Node, b: Builder) -> bool:
    """Two Transposes in a row become one, or none."""
    if key_of(node) != ("", "Transpose"):
        return False
    second = permutation(node)
    source = node.inputs[0]
    assert source is not None
    if list(second) == sorted(second):
        b.replace(source)
        return True
    before = produced_by(source, "Transpose")
    if before is None:
        return False
    first = permutation(before)
    assert before.inputs[0] is not None
    b.replace(b.transpose(before.inputs[0], [first[axis] for axis in second]))
    return True


def _sink(node: ir.Node, b: Builder) -> bool:
    """Let the Transposes in front of a node pass through it."""
    operator = lookup(node)
    if operator is None or operator.permute is None:
        return False
    perm = _passing(node)
    if perm is None:
        return False
    inverse = _inverse(perm)
    for index, value in enumerate(node.inputs):
        if value is None or is_constant(value):
            continue
        before = produced_by(value, "Transpose")
        if before is not None and permutation(before) == perm:
            node.replace_input_with(index, before.inputs[0])
        else:
            # What can be permuted for nothing is reshaped: as a Transpose it would sink in its
            # turn, and so on for ever.
            wanted = [shape_of(value)[axis] for axis in inverse]
            node.replace_input_with(index, b.reshape(value, wanted))
    operator.permute(node, perm, b)
    _transpose_outputs(node, perm, b)
    return True


def _sink_through_reshape(node: ir.Node, b: Builder) -> bool:
    """Let a Transpose pass a Reshape, where the axes that this joins or divides stay neighbours."""
    if key_of(node) != ("", "Reshape"):
        return False
    before = produced_by(node.inputs[0], "Transpose")
    if before is None or not _may_be_on_tpu(before.inputs[0]):
        return False
    source = before.inputs[0]
    assert source is not None
    perm = permutation(before)
    result = shape_of(node.outputs[0])
    groups = _groups(shape_of(before.outputs[0]), result)
    if groups is None:
        return False
    # The groups in the order that their axes have in front of the Transpose; an axis of one may
    # be anywhere.
    shape = shape_of(source)
    groups.sort(
        key=lambda group: max(perm[axis] * (shape[perm[axis]] > 1) for axis in group.before)
    )
    moved = [perm[axis] for group in groups for axis in group.before]
    if not _keeps_order(moved, shape):
        return False
    axes = [axis for group in groups for axis in group.after]
    reshaped = b.reshape(source, [result[axis] for axis in axes])
    b.replace(b.transpose(reshaped, _inverse(axes)))
    return True


class _Group(NamedTuple):
    """Axes next to each other that a Reshape makes of others with as many elements."""

    before: list[int]
    after: list[int]


def _groups(before: Sequence[int], after: Sequence[int]) -> list[_Group] | None:
    """What a Reshape makes of which axes, in the smallest groups.

    None where a shape has no elements, or no axes to tell.
    """
    if 0 in before or not before or not after:
        return None
    groups: list[_Group] = []
    left = list(range(len(before)))
    right = list(range(len(after)))
    while left and right:
        group = _Group([left.pop(0)], [right.pop(0)])
        here, there = before[group.before[0]], after[group.after[0]]
        while here != there:
            if here < there:
                group.before.append(left.pop(0))
                here *= before[group.before[-1]]
            else:
                group.after.append(right.pop(0))
                there *= after[group.after[-1]]
        groups.append(group)
    # What is left on one side has one element.
    groups[-1].before.extend(left)
    groups[-1].after.extend(right)
    return groups


def _passing(node: ir.Node) -> Permutation | None:
    """The permutation of the Transposes in front of a node, where they may pass through it."""
    if key_of(node) == ("", "Transpose"):
        return None
    inputs = activations_of(node)
    found = [produced_by(value, "Transpose") for value in inputs]
    transposes = [transpose for transpose in found if transpose is not None]
    if not transposes or not all(is_static(value) for value in node.outputs):
        return None
    if not any(_may_be_on_tpu(transpose.inputs[0]) for transpose in transposes):
        return None
    perm = permutation(transposes[0])
    rank = len(perm)
    if any(len(shape_of(value)) != rank for value in [*inputs, *node.outputs]):
        return None
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    if any(len(shape_of(value)) > rank for value in constants):
        return None
    return perm if all(_has_or_bears(value, perm) for value in inputs) else None


def _may_be_on_tpu(value: ir.Value | None) -> bool:
    """Whether a value may be made on the Edge TPU.

    A Transpose of any other stays at the boundary, for the host.
    """
    node = producer_of(value)
    operator = lookup(node) if node is not None else None
    return operator is not None and operator.emit is not None


def _has_or_bears(value: ir.Value, perm: Permutation) -> bool:
    """Whether a value comes out of this Transpose, or can be permuted back for nothing."""
    before = produced_by(value, "Transpose")
    if before is not None:
        return permutation(before) == perm
    return _keeps_order(_inverse(perm), shape_of(value))


def _hoist(node: ir.Node, b: Builder) -> bool:
    """Move a Transpose in front of what is done to a graph input before it, such as its
    normalisation. Returns whether it moved."""
    chain = _chain_to_input(node)
    if not chain:
        return False
    perm = permutation(node)
    (source,) = activations_of(chain[-1])
    front = Builder(b.model, b.names, chain[-1])
    place = chain[-1].inputs.index(source)
    chain[-1].replace_input_with(place, front.transpose(source, perm))
    for before in reversed(chain):
        operator = lookup(before)
        assert operator is not None and operator.permute is not None
        # Of an operator that reads values in the other layout now: its own inverse.
        operator.permute(before, _inverse(perm), Builder(b.model, b.names, before))
        out = before.outputs[0]
        shape = shape_of(out)
        out.name = b.names.fresh(f"{out.name}/hoisted")
        out.shape = ir.Shape([shape[axis] for axis in perm])
    b.replace(chain[0].outputs[0])
    return True


def _chain_to_input(node: ir.Node) -> list[ir.Node]:
    """The nodes between a graph input and a Transpose, last first, where it may pass them all."""
    chain: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and not value.is_graph_input():
        before = value.producer()
        if before is None or only_consumer(value) is None or not _lets_pass(before):
            return []
        chain.append(before)
        (value,) = activations_of(before)
    return chain


def _lets_pass(node: ir.Node) -> bool:
    """Whether a Transpose may pass a node of one activation, which keeps its rank."""
    operator = lookup(node)
    if operator is None or operator.permute is None:
        return False
    inputs = activations_of(node)
    if len(inputs) != 1 or len(node.outputs) != 1:
        return False
    if not is_static(inputs[0]) or not is_static(node.outputs[0]):
        return False
    return len(shape_of(inputs[0])) == len(shape_of(node.outputs[0]))


def _transpose_outputs(node: ir.Node, perm: Permutation, b: Builder) -> None:
    """Behind a node that now computes in the other layout, restore the one its readers expect."""
    inverse = _inverse(perm)
    for value in node.outputs:
        shape, name = shape_of(value), value.name
        value.name = b.names.fresh(f"{name}/{'x'.join(map(str, inverse))}")
        value.shape = ir.Shape([shape[axis] for axis in inverse])
        after = ir.node("Transpose", [value], {"perm": perm}, num_outputs=1)
        after.metadata_props[ORIGIN] = origin_of(node)
        after.name = b.names.fresh(f"{origin_of(node)}/Transpose")
        out = after.outputs[0]
        out.name, out.type, out.shape = name, value.type, ir.Shape(shape)
        b.graph.insert_after(node, after)
        for reader, index in list(value.uses()):
            if reader is not after:
                reader.replace_input_with(index, out)
        for index, result in enumerate(b.graph.outputs):
            if result is value:
                b.graph.outputs[index] = out
