"""Normalised products, as one record: passes write them, and who needs them finds them here.

For rows x and the largest magnitude of each, their peak:

    rows   = x / peak               on the host
    z      = W rows + shift         on the Edge TPU or in int8 on the host, maybe in tiles
    scaled = z * factors            the node that carries the mark
    moved  = scaled + offsets
    result = moved * peak

passes/normalise_linears.py writes them, and compiler/quantize/balance.py chooses the factors and
offsets. passes/second_row.py may put two rows in the place of each; z is then chosen from what the
Edge TPU makes of them. compiler/emit/qgemm.py writes those that stay on the host.

The last product of a fused block (passes/fuse_blocks.py) has no peak: its rows are made on the Edge
TPU, and have the range that calibration shows. Its outputs are balanced like those of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from compiler.graph import BALANCED, ROWS, activations_of, only_consumer
from compiler.ops import operator_of

# What a mark says of the rows of its product.
UNIT_ROWS = "of rows in [-1, 1]"
OTHER_ROWS = "of rows with a range of their own"


@dataclass(frozen=True)
class Product:
    """A normalised product. `scale` multiplies z by `factors`, `shift` adds `offsets`; `made` is
    what the Edge TPU makes: z itself, or what z is chosen from where it has two rows for one.
    `has_unit_rows` tells that the rows were divided by their peaks."""

    scale: ir.Node
    shift: ir.Node
    z: ir.Value
    factors: ir.Value
    offsets: ir.Value
    made: ir.Value
    has_unit_rows: bool = True

    @property
    def name(self) -> str:
        """What the programs of a language model call the same product."""
        return str(self.factors.name)

    @property
    def has_second_row(self) -> bool:
        return self.made is not self.z

    def set(self, factors: ir.TensorProtocol, offsets: ir.TensorProtocol) -> None:
        """Give the channels of z their factors and offsets; the layer's weights follow them."""
        for value, tensor in ((self.factors, factors), (self.offsets, offsets)):
            value.const_value = tensor
            # Rows that were computed from the old ones.
            value.meta.pop(ROWS, None)


@dataclass(frozen=True)
class RowScaling:
    """What brings the rows of a product to [-1, 1]: `nodes` divide `x` by its `peak`; `undo`
    multiplies the result by the peak."""

    x: ir.Value
    peak: ir.Value
    rows: ir.Value
    nodes: tuple[ir.Node, ...]
    undo: ir.Node


def mark(scale: ir.Node, *, has_unit_rows: bool = True) -> None:
    """Make a product known by the node that multiplies its z by the factors."""
    scale.metadata_props[BALANCED] = UNIT_ROWS if has_unit_rows else OTHER_ROWS


def products(nodes: Iterable[ir.Node]) -> dict[str, Product]:
    """The normalised products among the nodes of a graph, by name."""
    found = {}
    for node in nodes:
        if BALANCED in node.metadata_props:
            product = _product(node)
            found[product.name] = product
    return found


def _product(scale: ir.Node) -> Product:
    shift = only_consumer(scale.outputs[0])
    assert shift is not None
    z, factors = scale.inputs
    offsets = shift.inputs[1]
    assert z is not None and factors is not None and offsets is not None
    has_unit_rows = scale.metadata_props[BALANCED] != OTHER_ROWS
    return Product(scale, shift, z, factors, offsets, _made(z), has_unit_rows)


def _made(z: ir.Value) -> ir.Value:
    """What z is chosen from, where two rows stand for one (a Where); else z."""
    value = z
    has_choice = False
    while True:
        node = value.producer()
        if node is None or node.op_type not in ("Reshape", "Where", "Split"):
            return value if has_choice else z
        is_choice = node.op_type == "Where"
        has_choice |= is_choice
        # Of a Where, the first choice is the row itself; the other is the row at half its size.
        source = node.inputs[1 if is_choice else 0]
        assert source is not None
        value = source


def joined_from(value: ir.Value) -> Iterator[ir.Value]:
    """`value` and all that it is joined from, down to the outputs of its tiles in their order."""
    yield value
    node = value.producer()
    if node is None or node.op_type not in ("Concat", "Reshape"):
        return
    parts = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    for part in parts:
        if part is not None:
            yield from joined_from(part)


def is_tile(node: ir.Node) -> bool:
    """Whether a node multiplies rows by (some of) the weights of a product."""
    return operator_of(node).linear == "dense"


def row_scaling(product: Product, rows: ir.Value) -> RowScaling | None:
    """What brings `rows`, which the product's tiles read, to [-1, 1]; None where that is not to be
    seen, as with two rows for one."""
    divide = rows.producer()
    undo = only_consumer(product.shift.outputs[0])
    if divide is None or divide.op_type != "Div" or undo is None:
        return None
    x, peak = divide.inputs
    assert x is not None and peak is not None
    nodes = {divide: None}
    waiting = [peak]
    while waiting:
        node = waiting.pop().producer()
        if node is None:
            return None
        nodes[node] = None
        waiting += [value for value in activations_of(node) if value is not x]
    return RowScaling(x, peak, rows, tuple(nodes), undo)
