"""Decompose what does not fit one Edge TPU along its outputs into tiles that do, joined by a
Concat.

y = FullyConnected(x, W[N, K])  ->  y = Concat(FullyConnected(x, W[0:n]), FullyConnected(x,
W[n:2n]), ...)

Tiles follow how the device stores weights (compiler/targets/memory.py): equal, and multiples of a
full row of tiles (1024 outputs) where one fits. Only where not even 64 outputs fit - more inputs
than one tile has bytes for - the inputs are split too, and the partial sums added; that costs
precision, as each partial sum is int8.
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
from passes.fold_constants import tidy


@dataclass(frozen=True)
class Tiling:
    """Outputs and inputs of a tile; the last along each axis may be smaller."""

    outputs: int
    inputs: int


def run(model: ir.Model, target: Target) -> None:
    names = Names(model.graph)
    for node in list(model.graph):
        layers = layers_of(node) if node.domain == DIALECT else ()
        if layers and not fits(layers, target):
            tiling = plan(layers[0], target)
            b = Builder(model, names, node)
            b.replace(_tile(node, tiling, b))
    tidy(model)


def plan(layer: Layer, target: Target) -> Tiling:
    """The fewest equal tiles of a layer that each fit; inputs are split only where a block of
    outputs does not fit."""
    block, row = target.block_outputs, target.block_outputs * target.tiles
    parts = 1
    while not fits([_part(layer, min(block, layer.outputs), parts)], target):
        parts += 1
    inputs = up(-(-layer.inputs // parts), target.input_multiple)
    tiles = 1
    while True:
        even = -(-layer.outputs // tiles)
        for outputs in (up(even, row), up(even, block), even):
            if fits([_part(layer, min(outputs, layer.outputs), parts)], target):
                return Tiling(min(outputs, layer.outputs), inputs)
        tiles += 1


def _part(layer: Layer, outputs: int, parts: int) -> Layer:
    return replace(layer, outputs=outputs, inputs=-(-layer.inputs // parts))


def _tile(node: ir.Node, tiling: Tiling, b: Builder) -> ir.Value:
    x, weight, bias = node.inputs
    assert x is not None and weight is not None and bias is not None
    outputs, inputs = shape_of(weight)[:2]
    columns = [(i, min(i + tiling.inputs, inputs)) for i in range(0, inputs, tiling.inputs)]
    slices = [_columns(b, x, begin, end) if len(columns) > 1 else x for begin, end in columns]
    made = []
    for start in range(0, outputs, tiling.outputs):
        rows = slice(start, min(start + tiling.outputs, outputs))
        total: ir.Value | None = None
        for part, (begin, end) in zip(slices, columns, strict=True):
            w = b.rows(weight, rows)
            if len(columns) > 1:
                w = _inputs(b, w, begin, end)
            c = b.rows(bias, rows) if begin == 0 else zero_bias(b, rows.stop - rows.start, w)
            y = b.op(node.op_type, [part, w, c], node.attributes, node.domain)
            total = y if total is None else b.op("Add", [total, y])
        assert total is not None
        made.append(total)
    return made[0] if len(made) == 1 else b.op("Concat", made, {"axis": len(shape_of(made[0])) - 1})


def _columns(b: Builder, x: ir.Value, begin: int, end: int) -> ir.Value:
    axis = len(shape_of(x)) - 1
    bounds = [b.const(np.array([i], np.int64), "slice") for i in (begin, end, axis)]
    return b.op("Slice", [x, *bounds])


def _inputs(b: Builder, weight: ir.Value, begin: int, end: int) -> ir.Value:
    outputs, _, *taps = shape_of(weight)
    return b.lazy(
        weight, lambda w: w[:, begin:end], (outputs, end - begin, *taps), f"{weight.name}x{begin}"
    )
