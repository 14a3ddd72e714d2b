"""Normalised products that the host keeps in float: there they are plain products again.

Rows are rotated and normalised for int8 alone. A product on the host saves the time of that, which
the planner has to know, and gives the same without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compiler.device.cost import Cost, of_node
from compiler.graph import (
    HOST_REASON,
    Builder,
    Names,
    array_of,
    consumers_of,
    element_count,
    joined_rows,
    produced_by,
    rows_of,
    shape_of,
)
from compiler.partition.plan import Placement
from compiler.partition.program import Program
from compiler.partition.segments import refilled
from compiler.quantize.products import Product, is_tile, joined_from, products, row_scaling
from compiler.quantize.rotation import REASON as ROTATES
from compiler.quantize.rotation import rotate_blocks
from compiler.targets import Host
from passes.fold_constants import tidy


@dataclass(frozen=True)
class Wrapped:
    """A normalised product that may be a plain one: `undo` gives the results of the product of
    `rows`, which are rotated in blocks by `rotation` first where that is there.

    `tiles` multiply the `normalised` rows. Without them there would be neither `rotate`, which
    rotates rows, nor `scaling`, which divides them by their peaks, nor the `rest`.
    """

    product: Product
    undo: ir.Node
    rows: ir.Value
    rotation: ir.Value | None
    normalised: ir.Value
    tiles: tuple[ir.Node, ...]
    rotate: tuple[ir.Node, ...]
    scaling: tuple[ir.Node, ...]
    rest: tuple[ir.Node, ...]

    @property
    def around(self) -> tuple[ir.Node, ...]:
        return (*self.rotate, *self.scaling, *self.rest)


def wrapped(nodes: Iterable[ir.Node]) -> Iterator[Wrapped]:
    """The normalised products among the nodes of a graph that may be plain ones."""
    for product in products(nodes).values():
        found = _wrapped(product)
        if found is not None:
            yield found


def _wrapped(product: Product) -> Wrapped | None:
    tiles: list[ir.Node] = []
    joins: list[ir.Node] = []
    for value in joined_from(product.z):
        node = value.producer()
        if node is None or not (is_tile(node) or node.op_type == "Concat"):
            return None  # as where two rows stand for one
        (tiles if is_tile(node) else joins).append(node)
    rows = tiles[0].inputs[0]
    assert rows is not None
    scaling = row_scaling(product, rows)
    if scaling is None or set(consumers_of(rows)) != set(tiles):
        return None
    if {*consumers_of(scaling.x)} - {*scaling.nodes}:
        return None
    reshape = produced_by(scaling.x, "Reshape")
    rotate = produced_by(scaling.x if reshape is None else reshape.inputs[0], "MatMul")
    if rotate is not None and rotate.metadata_props.get(HOST_REASON) != ROTATES:
        rotate = None
    source, rotation = (scaling.x, None) if rotate is None else rotate.inputs
    assert source is not None
    return Wrapped(
        product=product,
        undo=scaling.undo,
        rows=source,
        rotation=rotation,
        normalised=rows,
        tiles=tuple(tiles),
        rotate=() if rotate is None else (rotate,),
        scaling=scaling.nodes,
        rest=(*joins, product.scale, product.shift, scaling.undo),
    )


def saved(
    nodes: Iterable[ir.Node], costs: Mapping[ir.Node, Cost], host: Host, int8: bool
) -> dict[ir.Node, Cost]:
    """The costs of products that are less by what surrounds them and is not done on the host.

    Where the host multiplies in `int8`, that is less than with plain products: its product gives
    the factors by itself, and quantizes a single row in one operator (compiler/emit/qgemm.py).
    """
    cheaper = {}
    for found in wrapped(nodes):
        if int8:
            less = _saved_in_int8(found, costs, host)
        else:
            less = sum(costs[node].host for node in found.around)
        for tile in found.tiles:
            left = costs[tile].host - less / len(found.tiles)
            cheaper[tile] = replace(costs[tile], host=max(0.0, left))
    return cheaper


def _saved_in_int8(found: Wrapped, costs: Mapping[ir.Node, Cost], host: Host) -> float:
    product = found.product
    saved = costs[product.scale].host + costs[product.shift].host
    if element_count(found.normalised) == shape_of(found.normalised)[-1]:
        saved += sum(costs[node].host for node in (*found.scaling, found.undo)) - host.operator
    return saved


def plain_on_host(program: Program) -> Program:
    """The program with plain products, in place, where all of a normalised one is on the host."""
    model, plan = program.model, program.plan
    segment_of = {node: s.index for s in plan.segments for node in s.nodes}
    on_host = {s.index for s in plan.segments if s.device == "host"}
    moved: dict[ir.Node, tuple[int, Placement]] = {}
    found = _on_host(model.graph, segment_of, on_host)
    while found is not None:
        place = segment_of[found.undo], plan.placements[found.tiles[0]]
        builder = Builder(model, Names(model.graph), found.undo)
        moved |= dict.fromkeys(_unwrap(found, builder), place)
        found = _on_host(model.graph, segment_of, on_host)
    if not moved:
        return program
    tidy(model)
    host = Host.load(plan.options.host)
    costs = {node: of_node(node, program.target, host, legal=False) for node in moved}
    inside = {node: index for node, (index, _) in moved.items()}
    reasons = {node: why for node, (_, why) in moved.items()}
    known = replace(plan, costs={**plan.costs, **costs}, placements={**plan.placements, **reasons})
    plan = refilled(known, model.graph, program.target, {**segment_of, **inside})
    return replace(program, plan=plan)


def _on_host(
    graph: ir.Graph, segment_of: Mapping[ir.Node, int], on_host: Collection[int]
) -> Wrapped | None:
    """The first product of which all is in segments of the host."""
    for found in wrapped(graph):
        if all(segment_of[node] in on_host for node in found.tiles):
            return found
    return None


def _unwrap(found: Wrapped, b: Builder) -> list[ir.Node]:
    """Put a plain product in the place of what undoes the normalising; returns the new nodes."""
    weights = [tile.inputs[1] for tile in found.tiles if tile.inputs[1] is not None]
    outputs = sum(shape_of(weight)[0] for weight in weights)
    inputs = shape_of(weights[0])[1]
    factors = found.product.factors
    rotation = None if found.rotation is None else array_of(found.rotation)

    def read(part: slice) -> np.ndarray:
        scaled = joined_rows(weights, part).reshape(-1, inputs) * rows_of(factors, part)[:, None]
        # The rotation is of the rows: x Q^T, as a matrix that stands behind them.
        return scaled if rotation is None else rotate_blocks(scaled, rotation)

    weight = b.by_rows(read, (outputs, inputs), f"{weights[0].name}/plain")
    rows = b.reshape(found.rows, (element_count(found.rows) // inputs, inputs))
    y = b.op("Gemm", [rows, weight], {"transB": 1})
    b.replace(b.reshape(y, shape_of(found.undo.outputs[0])))
    made = [value.producer() for value in b.made]
    return [node for node in made if node is not None]
