"""Writes normalised products (compiler/quantize/products.py) that stay on the host in int8.

They become onnxruntime's QGemm, on the very weights that a segment for the Edge TPU would have. Its
float result needs no scale of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from compiler.emit.host_model import HostModel
from compiler.emit.rows import is_positive
from compiler.graph import (
    array_of,
    consumers_of,
    element_count,
    only_consumer,
    produced_by,
    shape_of,
)
from compiler.quantize import weights
from compiler.quantize.products import (
    Product,
    RowScaling,
    is_tile,
    joined_from,
    products,
    row_scaling,
)

CONTRIB = "com.microsoft"
# Normalised rows as uint8: 1 is 127 steps from zero, as in a segment for the Edge TPU.
ROW_SCALE, ROW_ZERO = np.float32(1 / 127), np.uint8(128)


@dataclass(frozen=True)
class HostProduct:
    """A normalised product that lies wholly within a host segment.

    `tiles` are in the order of their outputs, `joins` what joins them to z. `scaling` is there
    where it is of a single row and read by nothing else: onnxruntime then does the scaling too.
    `divide` divides several rows by their peaks, for the tiles alone; quantizing does that as well.
    """

    product: Product
    tiles: list[ir.Node]
    joins: list[ir.Node]
    scaling: RowScaling | None
    divide: ir.Node | None

    @property
    def last(self) -> ir.Node:
        """The last node that is replaced, in whose place the product is written."""
        return self.product.shift if self.scaling is None else self.scaling.undo

    @property
    def replaced(self) -> set[ir.Node]:
        own = {*self.tiles, *self.joins, self.product.scale, self.product.shift}
        if self.divide is not None:
            own.add(self.divide)
        return own if self.scaling is None else own | {*self.scaling.nodes, self.scaling.undo}


def host_products(nodes: Sequence[ir.Node]) -> dict[ir.Node, HostProduct]:
    """The normalised products that lie wholly within `nodes`, by the node in whose place they are
    written."""
    inside = set(nodes)
    found = {}
    for product in products(nodes).values():
        host_product = _within(product, inside)
        if host_product is not None:
            found[host_product.last] = host_product
    return found


def _within(product: Product, inside: set[ir.Node]) -> HostProduct | None:
    """The product with its parts; None where a part is elsewhere or read by somebody else."""
    # QGemm is given rows of a known scale.
    if product.shift not in inside or not product.has_unit_rows:
        return None
    tiles: list[ir.Node] = []
    joins: list[ir.Node] = []
    for value in joined_from(product.z):
        node = value.producer()
        if node is None or node not in inside or only_consumer(value) is None:
            return None
        if is_tile(node):
            tiles.append(node)
        elif node.op_type == "Concat":
            joins.append(node)
        else:
            return None
    scaling = _single_row(product, tiles, inside)
    divide = None if scaling else _division(tiles, inside)
    return HostProduct(product, tiles, joins, scaling, divide)


def _division(tiles: Sequence[ir.Node], inside: set[ir.Node]) -> ir.Node | None:
    rows = tiles[0].inputs[0]
    divide = produced_by(rows, "Div")
    if rows is None or divide is None or divide not in inside or rows.is_graph_output():
        return None
    is_own = set(consumers_of(rows)) == set(tiles)
    return divide if is_own and is_positive(divide.inputs[1]) else None


def _single_row(
    product: Product, tiles: Sequence[ir.Node], inside: set[ir.Node]
) -> RowScaling | None:
    """The scaling of the rows, where that is of one row [1, K] and for this product alone."""
    rows = tiles[0].inputs[0]
    scaling = None if rows is None else row_scaling(product, rows)
    if scaling is None or not inside.issuperset((*scaling.nodes, scaling.undo)):
        return None
    shape = shape_of(scaling.rows)
    is_single = len(shape) == 2 and element_count(scaling.rows) == shape[-1]
    readers = {*consumers_of(scaling.rows), *consumers_of(scaling.peak)}
    is_own = readers == {*tiles, scaling.nodes[0], scaling.undo}
    return scaling if is_single and is_own else None


def write(found: HostProduct, model: HostModel) -> None:
    """The product in int8: its tiles, each scaled as the whole is."""
    result = found.last.outputs[0]
    rows = _rows(found, f"{result.name}/rows", model)
    factors = array_of(found.product.factors)
    start = 0
    for node in found.tiles:
        count = shape_of(node.inputs[1])[0]
        _tile(node, rows, factors[start : start + count], model)
        start += count
    for node in found.joins:
        model.node(node)
    model.op("Identity", [str(found.product.z.name)], [str(result.name)])


def _rows(found: HostProduct, name: str, model: HostModel) -> list[str]:
    """[rows as uint8 [S, K], scale, zero point]. onnxruntime quantizes a single row from what it
    was before it was normalised; several have the scale that they were normalised to."""
    names = [f"{name}/uint8", f"{name}/scale", f"{name}/zero_point"]
    quantized, scale, zero_point = names
    if found.scaling is not None:
        source = [str(found.scaling.x.name)]
        model.append(onnx.helper.make_node("DynamicQuantizeLinear", source, names, name=name))
        return names
    rows = found.tiles[0].inputs[0] if found.divide is None else found.divide.inputs[0]
    assert rows is not None
    inputs = shape_of(rows)[-1]
    shape = model.array(f"{name}/shape", np.array([-1, inputs]))
    model.op("Reshape", [str(rows.name), shape], [name])
    model.array(scale, ROW_SCALE)
    model.array(zero_point, ROW_ZERO)
    if found.divide is None:
        model.op("QuantizeLinear", [name, scale, zero_point], [quantized])
        return names
    # Divided by its own scale, each row is divided by its peak.
    peak = found.divide.inputs[1]
    assert peak is not None
    column = model.array(f"{name}/column", np.array([-1, 1]))
    model.op("Reshape", [str(peak.name), column], [f"{name}/peaks"])
    model.op("Mul", [f"{name}/peaks", scale], [f"{name}/scales"])
    zeros = np.full((element_count(rows) // inputs, 1), ROW_ZERO)
    constants = [f"{name}/scales", model.array(f"{name}/zeros", zeros)]
    model.op("QuantizeLinear", [name, *constants], [quantized], axis=1, block_size=inputs)
    return names


def _tile(node: ir.Node, rows: Sequence[str], factors: np.ndarray, model: HostModel) -> None:
    """A FullyConnected or 1x1 Conv2D as QGemm, its outputs multiplied by `factors`."""
    weight = node.inputs[1]
    assert weight is not None
    name = str(node.outputs[0].name)
    shape = shape_of(node.outputs[0])
    count, inputs = shape_of(weight)[:2]
    around = weights.Surroundings(str(weight.name), float(ROW_SCALE), float(ROW_SCALE))
    matrix, scales, _ = weights.quantize(array_of(weight), np.zeros(count, np.float32), around)
    constants = [
        model.array(f"{name}/weights", matrix.reshape(count, inputs)),
        model.array(f"{name}/scales", scales * factors),
        model.array(f"{name}/zeros", np.zeros(count, np.int8)),
    ]
    # QGemm gives [S, N]; the tile may have more dimensions.
    is_flat = len(shape) == 2
    flat = name if is_flat else f"{name}/flat"
    model.op("QGemm", [*rows, *constants], [flat], CONTRIB, transB=1)
    if not is_flat:
        model.op("Reshape", [flat, model.array(f"{name}/shape", np.array(shape))], [name])
