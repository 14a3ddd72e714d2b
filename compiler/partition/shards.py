"""Divides layers into shards that several Edge TPUs run at once.

    FullyConnected(x, W[N, K])
        ->  Concat(FullyConnected(x, W[0:n]), FullyConnected(x, W[n:2n]), ...)

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
    whole blocks of outputs; one that stands in tiles has these as its shards."""
    names = Names(model.graph)
    left = dict.fromkeys(nodes)
    while left:
        layer = layer_of(next(iter(left)))
        for tile in layer.tiles:
            left.pop(tile, None)
        tail = tail_of(layer, left)
        for tile in tail.second:
            del left[tile]
        _Division(model, names, layer, tail).run(parts, block)
    tidy(model)


@dataclass(frozen=True)
class Layer:
    """A layer in one node, or in tiles that a Concat joins; `last` is the node that gives all its
    outputs."""

    tiles: list[ir.Node]
    last: ir.Node

    @property
    def outputs(self) -> ir.Value:
        return self.last.outputs[0]


def layer_of(node: ir.Node) -> Layer:
    """The layer that a node is, or is a tile of."""
    alone = Layer([node], node)
    readers = consumers_of(node.outputs[0])
    if len(readers) != 1 or readers[0].op_type != "Concat":
        return alone
    tiles = [value.producer() for value in activations_of(readers[0])]
    if not all(tile is not None and can_divide(tile) for tile in tiles):
        return alone
    found = [tile for tile in tiles if tile is not None]
    if len({tile.inputs[0] for tile in found}) > 1 or len(set(found)) < len(found):
        return alone
    rows = sum(shape_of(tile.inputs[1])[0] for tile in found)
    is_whole = shape_of(readers[0].outputs[0])[-1] == rows
    return Layer(found, readers[0]) if is_whole else alone


def can_divide(node: ir.Node) -> bool:
    """Whether a node is a layer whose outputs may be made apart."""
    if node.domain != DIALECT or operator_of(node).linear != "dense":
        return False
    layers = layers_of(node)
    return len(layers) == 1 and layers[0].kind in ("dense", "conv")


@dataclass(frozen=True)
class Tail:
    """What follows a layer in each of its shards.

    nodes:   operators that treat each number by itself, in their order
    leaving: values that others read
    second:  the tiles of the layer that alone reads them, if its inputs are divided as well
    """

    nodes: list[ir.Node]
    leaving: list[ir.Value]
    second: list[ir.Node]


def tail_of(layer: Layer, chosen: Collection[ir.Node]) -> Tail:
    nodes = _elementwise_behind(layer.outputs)
    inside = {layer.last, *nodes}
    leaving = []
    for value in [layer.outputs, *(output for member in nodes for output in member.outputs)]:
        others = [reader for reader in consumers_of(value) if reader not in inside]
        if others or value.is_graph_output():
            leaving.append(value)
    second: list[ir.Node] = []
    if len(leaving) == 1 and not leaving[0].is_graph_output():
        readers = consumers_of(leaving[0])
        can_follow = all(reader in chosen and _multiplies_points(reader) for reader in readers)
        if can_follow and set(layer_of(readers[0]).tiles) == set(readers):
            second = layer_of(readers[0]).tiles
    return Tail(nodes, leaving, second)


def _elementwise_behind(value: ir.Value) -> list[ir.Node]:
    """Operators behind a value whose inputs are all numbers that were made of it, each of one
    number in the same place."""
    wanted = shape_of(value)
    inside = {value}
    found: list[ir.Node] = []
    todo = list(consumers_of(value))
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

    def __init__(self, model: ir.Model, names: Names, layer: Layer, tail: Tail) -> None:
        self.model, self.names, self.layer, self.tail = model, names, layer, tail

    def run(self, parts: int, block: int) -> None:
        tiles = self.layer.tiles
        if len(tiles) > 1 and not self.tail.second:
            # It is divided already.
            return
        b = self._builder(self.layer.last)
        if len(tiles) > 1:
            pieces = _pieces_of(tiles)
            first = [tile.outputs[0] for tile in tiles]
        else:
            outputs = shape_of(tiles[0].inputs[1])[0]
            size = -(-outputs // (parts * block)) * block
            pieces = slices_of(outputs, size)
            first = [self._rows(b, rows) for rows in pieces] if len(pieces) > 1 else []
        if not first:
            return
        shards = [self._followed(b, y) for y in first]
        _note_plan(b)
        for tile in self.tail.second:
            self._add_partial_sums(tile, shards, pieces)
        if not self.tail.second:
            self._join(shards)

    def _builder(self, anchor: ir.Node) -> Builder:
        return Builder(self.model, self.names, anchor)

    def _rows(self, b: Builder, rows: slice) -> ir.Value:
        """Some outputs of the layer."""
        (node,) = self.layer.tiles
        x, weight, bias = node.inputs
        assert weight is not None and bias is not None
        operands = [x, b.rows(weight, rows), b.rows(bias, rows)]
        return b.op(node.op_type, operands, node.attributes, node.domain)

    def _followed(self, b: Builder, y: ir.Value) -> dict[ir.Value, ir.Value]:
        """What one shard makes, by what it is a part of."""
        made = {self.layer.outputs: y}
        for node in self.tail.nodes:
            inputs = [None if value is None else made.get(value, value) for value in node.inputs]
            made[node.outputs[0]] = b.op(node.op_type, inputs, node.attributes, node.domain)
        return made

    def _join(self, shards: Sequence[dict[ir.Value, ir.Value]]) -> None:
        axis = len(shape_of(self.layer.outputs)) - 1
        for value in self.tail.leaving:
            producer = value.producer()
            assert producer is not None
            b = self._builder(producer)
            whole = b.op("Concat", [shard[value] for shard in shards], {"axis": axis})
            _note_plan(b)
            b.replace(whole)

    def _add_partial_sums(
        self, tile: ir.Node, shards: Sequence[dict[ir.Value, ir.Value]], pieces: Sequence[slice]
    ) -> None:
        hidden = self.tail.leaving[0]
        _, weight, bias = tile.inputs
        assert weight is not None and bias is not None
        b = self._builder(tile)
        sums: list[ir.Value] = []
        for shard, columns in zip(shards, pieces, strict=True):
            own = inputs_of(b, weight, columns)
            # The bias is added once.
            added = zero_bias(b, shape_of(weight)[0], own) if sums else bias
            operands = [shard[hidden], own, added]
            sums.append(b.op(tile.op_type, operands, tile.attributes, tile.domain))
        total = sums[0]
        for partial in sums[1:]:
            total = b.op("Add", [total, partial])
            adder = total.producer()
            assert adder is not None
            adder.metadata_props[HOST_REASON] = PARTIAL_SUMS
        _note_plan(b)
        b.replace(total)


def _pieces_of(tiles: Sequence[ir.Node]) -> list[slice]:
    """The outputs of each tile among those of the layer."""
    pieces = []
    begin = 0
    for tile in tiles:
        end = begin + shape_of(tile.inputs[1])[0]
        pieces.append(slice(begin, end))
        begin = end
    return pieces


def _note_plan(b: Builder) -> None:
    """What was built is planned as what it stands in front of."""
    for value in b.made:
        producer = value.producer()
        assert producer is not None
        producer.meta[PLANNED] = b.anchor.meta.get(PLANNED)
