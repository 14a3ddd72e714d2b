"""Cut layers that do not fit one Edge TPU into tiles that do, joined by a Concat.

    FullyConnected(x, W[N, K])
        ->  Concat(FullyConnected(x, W[0:n]), FullyConnected(x, W[n:2n]), ...)

Tiles follow how the device stores weights (compiler/targets/memory.py): equal, and multiples of a
full row of tiles (1024 outputs) where one fits. Only where not even one block of 64 outputs fits,
as with more inputs than one tile has bytes for, the inputs are cut too, and the partial sums added.
That costs precision, as each partial sum is int8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compiler.device.draft import layers_of
from compiler.graph import DIALECT, Builder, Names, shape_of
from compiler.ops.conv import zero_bias
from compiler.targets import Layer, Target, fits
from compiler.targets.memory import up
from passes.context import PassContext
from passes.fold_constants import tidy


@dataclass(frozen=True)
class Tiling:
    """Outputs and inputs of a tile; the last along each axis may be smaller."""

    outputs: int
    inputs: int


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in list(model.graph):
        layers = layers_of(node) if node.domain == DIALECT else ()
        if not layers or fits(layers, context.target):
            continue
        b = Builder(model, names, node)
        b.replace(_tile(node, plan(layers[0], context.target), b))
        context.matched(node)
    tidy(model)


def plan(layer: Layer, target: Target) -> Tiling:
    """The fewest equal tiles of a layer that each fit.

    Inputs are cut only where a block of outputs does not fit.
    """
    block = target.block_outputs
    row = block * target.tiles
    parts = 1
    while not fits([_part(layer, min(block, layer.outputs), parts)], target):
        parts += 1
    inputs = up(_share(layer.inputs, parts), target.input_multiple)
    tiles = 1
    while True:
        even = _share(layer.outputs, tiles)
        # Full rows of tiles are stored without gaps; blocks are at least whole.
        for wanted in (up(even, row), up(even, block), even):
            outputs = min(wanted, layer.outputs)
            if fits([_part(layer, outputs, parts)], target):
                return Tiling(outputs, inputs)
        tiles += 1


def _share(count: int, parts: int) -> int:
    """`count` divided by `parts`, rounded up."""
    return -(-count // parts)


def _part(layer: Layer, outputs: int, parts: int) -> Layer:
    """The layer with fewer outputs and one of `parts` of its inputs."""
    return replace(layer, outputs=outputs, inputs=_share(layer.inputs, parts))


def _tile(node: ir.Node, tiling: Tiling, b: Builder) -> ir.Value:
    x, weight, bias = node.inputs
    assert x is not None and weight is not None and bias is not None
    outputs, inputs = shape_of(weight)[:2]
    columns = slices_of(inputs, tiling.inputs)
    parts = [x] if len(columns) == 1 else [_columns_of(b, x, part) for part in columns]
    tiles = []
    for rows in slices_of(outputs, tiling.outputs):
        total: ir.Value | None = None
        for part, own_columns in zip(parts, columns, strict=True):
            w = b.rows(weight, rows)
            if len(columns) > 1:
                w = inputs_of(b, w, own_columns)
            # The bias is added once.
            c = b.rows(bias, rows) if total is None else zero_bias(b, rows.stop - rows.start, w)
            y = b.op(node.op_type, [part, w, c], node.attributes, node.domain)
            total = y if total is None else b.op("Add", [total, y])
        assert total is not None
        tiles.append(total)
    if len(tiles) == 1:
        return tiles[0]
    last_axis = len(shape_of(tiles[0])) - 1
    return b.op("Concat", tiles, {"axis": last_axis})


def slices_of(count: int, size: int) -> list[slice]:
    """Slices of `size`, the last of which may be smaller."""
    return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _columns_of(b: Builder, x: ir.Value, columns: slice) -> ir.Value:
    """Some channels of an activation."""
    bounds = (columns.start, columns.stop, len(shape_of(x)) - 1)
    constants = [b.const(np.array([number], np.int64), "slice") for number in bounds]
    return b.op("Slice", [x, *constants])


def inputs_of(b: Builder, weight: ir.Value, columns: slice) -> ir.Value:
    """Weights [N, K, ...] for some of the inputs."""
    outputs, _, *taps = shape_of(weight)
    new = (outputs, columns.stop - columns.start, *taps)
    return b.lazy(weight, lambda w: w[:, columns], new, f"{weight.name}x{columns.start}")
