"""Divides layers into shards that several Edge TPUs run at once.

    FullyConnected(x, W[N, K])  ->  Concat(FullyConnected(x, W[0:n]), FullyConnected(x, W[n:2n]), ...)

Operators that treat each number by itself go along with the shard that makes their input. Where
all that they give goes into another layer that is divided too, shards go on through it: each
multiplies the inputs that it has, and the host adds the partial sums in float, where int8 addition
on an Edge TPU would round each sum again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from compiler.device.draft import layers_of
from compiler.graph import (
    DIALECT,
    HOST_REASON,
    Builder,
    Names,
    activations_of,
    consumers_of,
    is_constant,
    shape_of,
)
from compiler.ops import operator_of
from compiler.ops.conv import zero_bias
from passes.fold_constants import tidy
from passes.tile_matmul import inputs_of, slices_of

# Where a node notes the segment that it was planned for before layers were divided.
PLANNED = "edgetpu.planned"
PARTIAL_SUMS = "partial sums of several Edge TPUs are added in float"


def divide(model: ir.Model, nodes: Sequence[ir.Node], parts: int, block: int) -> None:
    """Divide each of these layers of a model by its outputs, in place, into about `parts` shards of
    whole blocks of outputs."""
    names = Names(model.graph)
    left = dict.fromkeys(nodes)
    while left:
        node = next(iter(left))
        del left[node]
        tail = _tail(node, left)
        if tail.second is not None:
            del left[tail.second]
        _Division(model, names, node, tail).run(parts, block)
    tidy(model)


def can_divide(node: ir.Node) -> bool:
    """Whether a node is a layer whose outputs may be made apart."""
    if node.domain != DIALECT or operator_of(node).linear != "dense":
        return False
    layers = layers_of(node)
    return len(layers) == 1 and layers[0].kind in ("dense", "conv")


@dataclass(frozen=True)
class _Tail:
    """What follows a layer in each of its shards.

    nodes:   operators that treat each number by itself, in their order
    leaving: values that others read
    second:  the layer that alone reads them, if its inputs are divided as well
    """

    nodes: list[ir.Node]
    leaving: list[ir.Value]
    second: ir.Node | None


def _tail(node: ir.Node, chosen: Collection[ir.Node]) -> _Tail:
    nodes = _elementwise_behind(node)
    inside = {node, *nodes}
    leaving = []
    for value in [output for member in (node, *nodes) for output in member.outputs]:
        others = [reader for reader in consumers_of(value) if reader not in inside]
        if others or value.is_graph_output():
            leaving.append(value)
    second = None
    if len(leaving) == 1 and not leaving[0].is_graph_output():
        readers = consumers_of(leaving[0])
        if len(readers) == 1 and readers[0] in chosen and _multiplies_points(readers[0]):
            second = readers[0]
    return _Tail(nodes, leaving, second)


def _elementwise_behind(node: ir.Node) -> list[ir.Node]:
    """Operators behind a layer whose inputs are all numbers that were made of its outputs, each of
    one number in the same place."""
    wanted = shape_of(node.outputs[0])
    inside = {node.outputs[0]}
    found: list[ir.Node] = []
    todo = list(consumers_of(node.outputs[0]))
    while todo:
        reader = todo.pop(0)
        if reader in found or not inside.issuperset(activations_of(reader)):
            continue
        operator = operator_of(reader)
        is_pointwise = operator.elementwise(reader) is not None or (
            operator.combines is not None and len(activations_of(reader)) == len(reader.inputs)
        )
        if is_pointwise and len(reader.outputs) == 1 and shape_of(reader.outputs[0]) == wanted:
            found.append(reader)
            inside.add(reader.outputs[0])
            todo += consumers_of(reader.outputs[0])
    return found


def _multiplies_points(node: ir.Node) -> bool:
    """Whether a layer only mixes channels, so that each of its inputs has weights of its own."""
    _, weight, bias = node.inputs
    is_plain = weight is not None and bias is not None and is_constant(weight)
    return can_divide(node) and is_plain and layers_of(node)[0].kind == "dense"


class _Division:
    """One layer, with what follows it in each shard."""

    def __init__(self, model: ir.Model, names: Names, node: ir.Node, tail: _Tail) -> None:
        self.model, self.names, self.node, self.tail = model, names, node, tail

    def run(self, parts: int, block: int) -> None:
        outputs = shape_of(self.node.inputs[1])[0]
        share = -(-outputs // parts)
        size = -(-share // block) * block
        pieces = slices_of(outputs, size)
        if len(pieces) < 2:
            return
        shards = [self._shard(rows) for rows in pieces]
        if self.tail.second is not None:
            self._add_partial_sums(self.tail.second, shards, pieces)
        else:
            self._join(shards)

    def _replace(self, b: Builder, value: ir.Value) -> None:
        """Put a value in the place of the builder's anchor; what was built is planned as that."""
        for made in b.made:
            producer = made.producer()
            assert producer is not None
            producer.meta[PLANNED] = b.anchor.meta.get(PLANNED)
        b.replace(value)

    def _shard(self, rows: slice) -> dict[ir.Value, ir.Value]:
        """What one shard makes, by what it is a part of."""
        node = self.node
        x, weight, bias = node.inputs
        assert weight is not None and bias is not None
        b = Builder(self.model, self.names, node)
        operands = [x, b.rows(weight, rows), b.rows(bias, rows)]
        made = {node.outputs[0]: b.op(node.op_type, operands, node.attributes, node.domain)}
        for follower in self.tail.nodes:
            inputs = [made.get(value, value) if value is not None else None for value in follower.inputs]
            y = b.op(follower.op_type, inputs, follower.attributes, follower.domain)
            made[follower.outputs[0]] = y
        for value in made.values():
            producer = value.producer()
            assert producer is not None
            producer.meta[PLANNED] = node.meta.get(PLANNED)
        return made

    def _join(self, shards: Sequence[dict[ir.Value, ir.Value]]) -> None:
        leaving = self.tail.leaving
        axis = len(shape_of(self.node.outputs[0])) - 1
        for value in leaving:
            producer = value.producer()
            assert producer is not None
            # In front of whoever reads it, behind all shards.
            b = Builder(self.model, self.names, producer)
            whole = b.op("Concat", [shard[value] for shard in shards], {"axis": axis})
            self._replace(b, whole)

    def _add_partial_sums(
        self, second: ir.Node, shards: Sequence[dict[ir.Value, ir.Value]], pieces: Sequence[slice]
    ) -> None:
        hidden = self.tail.leaving[0]
        _, weight, bias = second.inputs
        assert weight is not None and bias is not None
        b = Builder(self.model, self.names, second)
        sums = []
        for shard, columns in zip(shards, pieces, strict=True):
            own = inputs_of(b, weight, columns)
            # The bias is added once.
            added = bias if not sums else zero_bias(b, shape_of(weight)[0], own)
            operands = [shard[hidden], own, added]
            sums.append(b.op(second.op_type, operands, second.attributes, second.domain))
        total = sums[0]
        for partial in sums[1:]:
            total = b.op("Add", [total, partial])
            adder = total.producer()
            assert adder is not None
            adder.metadata_props[HOST_REASON] = PARTIAL_SUMS
        self._replace(b, total)
