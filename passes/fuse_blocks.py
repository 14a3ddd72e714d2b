"""Fuse the two products of a transformer's MLP and the gate between them into one segment.

    h = FullyConnected(x, W, c);  y = FullyConnected(Gelu(h), V, d)              an encoder's MLP
    g = FullyConnected(x, W1);  u = FullyConnected(x, W2)
    y = FullyConnected(g * Sigmoid(g) * u, V)                                    SwiGLU
        ->  r = Q x                                                              on the host
            z = FullyConnected(gate(FullyConnected(r, W Q^T, c)), V / a, (d - o) / a)
            y = a * z + o                                                        on the host

exactly. By default the gate runs on the host (passes/keep_gates.py), so that the widest activations
of the network go there and back; here they never leave the Edge TPU, and the host neither gates nor
normalises them. What it costs is accuracy: a gate is not homogeneous, so rows cannot be divided by
their own largest value. They are rotated, which evens out their channels, and have one range for
all. Channels between the products are equalised (passes/equalise.py), those of the result are
balanced (passes/balance.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    DIALECT,
    HOST_REASON,
    Builder,
    Names,
    activations_of,
    array_of,
    attribute_of,
    consumers_of,
    is_constant,
    origin_of,
    produced_by,
    producer_of,
    rows_of,
    scalar_of,
    shape_of,
)
from compiler.ops.activation import by_channels, gelu
from compiler.quantize.products import mark
from compiler.quantize.rotation import block_rotation, rotate_blocks
from compiler.targets import Target
from passes.context import PassContext
from passes.fold_constants import tidy
from passes.normalise_linears import is_linear, made_on_host, norms_of, only_read_on_host
from passes.rotate_rows import rotated

REASON = "it balances the outputs of a fused block, exactly, in float"


@dataclass(frozen=True)
class Part:
    """Some outputs of a product: `rows` of the weights of `product`."""

    product: ir.Node
    rows: slice

    @property
    def x(self) -> ir.Value:
        x = self.product.inputs[0]
        assert x is not None
        return x


@dataclass(frozen=True)
class Gate:
    """GELU or SiLU of `x`: `kind` is "gelu", "tanh" (GELU by its tanh formula) or "silu", which is
    x * sigmoid(slope * x). `result` is made of `x` by `nodes`."""

    kind: str
    slope: float
    x: ir.Value
    result: ir.Value
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Block:
    """`last` multiplies the rows that `gate` makes of `gated`, times `factor` where there is one.

    `nodes` are all between the products, from which nothing else reads.
    """

    gated: Part
    gate: Gate
    factor: Part | None
    last: ir.Node
    nodes: frozenset[ir.Node]

    @property
    def firsts(self) -> list[Part]:
        return [self.gated] if self.factor is None else [self.gated, self.factor]


def run(model: ir.Model, context: PassContext) -> None:
    names = Names(model.graph)
    for node in model.graph:
        block = find(node)
        if block is None or not context.takes(node):
            continue
        reason = _why_not(block, context.target)
        if reason is not None:
            context.missed(node, reason, fitted=3)
            continue
        _fuse(block, model, names)
        context.matched(node)
    tidy(model)


def find(last: ir.Node) -> Block | None:
    """The block whose last product is `last`; None where that is not the last of one."""
    if not _is_product(last):
        return None
    hidden = _through_reshape(last.inputs[0])
    gate = _gate(hidden)
    factor = None
    outer: list[ir.Node] = []
    if gate is None:
        product = produced_by(hidden, "Mul")
        if product is None or len(activations_of(product)) != 2:
            return None
        outer = [product]
        for one, other in (activations_of(product), activations_of(product)[::-1]):
            gate, factor = _gate(_through_reshape(one)), _part(other)
            if gate is not None and factor is not None:
                break
    gated = _part(gate.x) if gate is not None else None
    if gate is None or gated is None or (outer and factor is None):
        return None
    nodes = _between(last, [gated, factor] if factor is not None else [gated])
    if not nodes.issuperset([*gate.nodes, *outer]):
        return None
    return Block(gated, gate, factor, last, nodes)


def _is_product(node: ir.Node) -> bool:
    """Whether a node multiplies several rows: a single one is decoded, where weights weigh more
    than gates."""
    return is_linear(node) and node.op_type == "Conv2D"


def _through_reshape(value: ir.Value | None) -> ir.Value | None:
    """What a value was before its rows were laid out in another way."""
    node = produced_by(value, "Reshape")
    if value is None or node is None:
        return value
    source = node.inputs[0]
    if source is None or shape_of(source)[-1] != shape_of(value)[-1]:
        return value
    return _through_reshape(source)


def _gate(value: ir.Value | None) -> Gate | None:
    """The GELU or SiLU that made a value."""
    gelu_node = produced_by(value, "Gelu")
    if value is not None and gelu_node is not None:
        x = gelu_node.inputs[0]
        is_tanh = attribute_of(gelu_node, "approximate", "none") == "tanh"
        assert x is not None
        return Gate("tanh" if is_tanh else "gelu", 1.0, x, value, (gelu_node,))
    product = produced_by(value, "Mul")
    if value is None or product is None:
        return None
    for x, other in (product.inputs, product.inputs[::-1]):
        sigmoid = produced_by(other, "Sigmoid")
        if x is None or sigmoid is None or is_constant(x):
            continue
        if sigmoid.inputs[0] is x:
            return Gate("silu", 1.0, x, value, (sigmoid, product))
        scale = produced_by(sigmoid.inputs[0], "Mul")
        slope = _slope(scale, x)
        if scale is not None and slope is not None:
            return Gate("silu", slope, x, value, (scale, sigmoid, product))
    return None


def _slope(scale: ir.Node | None, x: ir.Value) -> float | None:
    """The number by which a node multiplies x."""
    if scale is None or x not in scale.inputs:
        return None
    numbers = [scalar_of(value) for value in scale.inputs if value is not x]
    return numbers[0] if len(numbers) == 1 else None


def _part(value: ir.Value | None) -> Part | None:
    """The product, or the part of one, that made a value."""
    value = _through_reshape(value)
    node = producer_of(value)
    if node is None or value is None:
        return None
    if _is_product(node):
        return Part(node, slice(0, shape_of(node.inputs[1])[0]))
    if node.op_type != "Split" or attribute_of(node, "axis", 0) not in (
        -1,
        len(shape_of(value)) - 1,
    ):
        return None
    source = producer_of(_through_reshape(node.inputs[0]))
    if source is None or not _is_product(source):
        return None
    begin = 0
    for output in node.outputs:
        end = begin + shape_of(output)[-1]
        if output is value:
            return Part(source, slice(begin, end))
        begin = end
    return None


def _between(last: ir.Node, firsts: Sequence[Part]) -> frozenset[ir.Node]:
    """All nodes between the first products and the last one."""
    ends = {part.product for part in firsts}
    found: set[ir.Node] = set()
    waiting = activations_of(last)
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found and node not in ends:
            found.add(node)
            waiting += activations_of(node)
    return frozenset(found)


def _why_not(block: Block, target: Target) -> str | None:
    """Why a block stays as it is; None where nothing stands against it."""
    inside = {*block.nodes, block.last}
    made = [part.product.outputs[0] for part in block.firsts]
    for node in block.nodes:
        made += node.outputs
    for value in made:
        if value.is_graph_output() or not inside.issuperset(consumers_of(value)):
            return "what is between its products is read elsewhere too"
    sources = {_through_reshape(part.x) for part in block.firsts}
    if len(sources) != 1:
        return "its products multiply different rows"
    if not made_on_host(block.gated.x, target):
        return "its rows come from the Edge TPU"
    if not only_read_on_host(block.last.outputs[0], target):
        return "the Edge TPU reads its outputs"
    return None


def _fuse(block: Block, model: ir.Model, names: Names) -> None:
    for node in block.nodes:
        # What takes the place of a gate that was kept on the host is for the Edge TPU.
        node.metadata_props.pop(HOST_REASON, None)
    first = next(node for node in model.graph if node in {p.product for p in block.firsts})
    rows, rotation = _rotated_rows(block.gated.x, Builder(model, names, first))
    made = []
    for part in block.firsts:
        made.append(_first_product(part, rows, rotation, Builder(model, names, part.product)))
    h = _gated(block.gate, made[0], Builder(model, names, block.gate.nodes[-1]))
    b = Builder(model, names, block.last)
    if block.factor is not None:
        h = b.op("Mul", [h, made[1]])
    b.replace(_balanced(block.last, h, b))


def _rotated_rows(x: ir.Value, b: Builder) -> tuple[ir.Value, np.ndarray | None]:
    """(Q x, Q) with Q None where no rotation fits the number of channels."""
    rotation = block_rotation(shape_of(x)[-1])
    return (x if rotation is None else rotated(b, x, rotation)), rotation


def _first_product(part: Part, rows: ir.Value, rotation: np.ndarray | None, b: Builder) -> ir.Value:
    """A first product on rotated rows."""
    _, weight, bias = part.product.inputs
    assert weight is not None and bias is not None
    outputs = part.rows.stop - part.rows.start
    begin = part.rows.start

    def read(some: slice) -> np.ndarray:
        own = rows_of(weight, slice(begin + some.start, begin + some.stop))
        return own if rotation is None else rotate_blocks(own, rotation)

    turned = b.by_rows(read, (outputs, *shape_of(weight)[1:]), f"{weight.name}/turned")
    own_bias = b.const(array_of(bias)[part.rows], f"{bias.name}/own")
    attributes = part.product.attributes
    return b.op(part.product.op_type, [rows, turned, own_bias], attributes, DIALECT)


def _gated(gate: Gate, x: ir.Value, b: Builder) -> ir.Value:
    """The gate in operators of the Edge TPU, on an image in NHWC."""
    if gate.kind != "silu":
        return gelu(b, x, is_tanh=gate.kind == "tanh")
    opened = b.op("Sigmoid", [by_channels(b, x, gate.slope)])
    return b.op("Mul", [x, opened])


def _balanced(last: ir.Node, h: ir.Value, b: Builder) -> ir.Value:
    """a * z + o, with z = (V / a) h + (d - o) / a, for the last product V h + d.

    Weights and shift are computed from the factors `a` and the offsets `o` when they are read, so
    that both may be chosen later.
    """
    _, weight, bias = last.inputs
    assert weight is not None and bias is not None
    name = origin_of(last)
    shape = shape_of(weight)
    outputs = shape[0]

    def norms(some: slice) -> np.ndarray:
        return norms_of(rows_of(weight, some))

    factors = b.by_rows(norms, (outputs,), f"{name}/factors")
    offsets = b.const(np.zeros(outputs, np.float32), f"{name}/offsets")

    def balanced(some: slice) -> np.ndarray:
        scale = 1 / rows_of(factors, some)
        return rows_of(weight, some) * scale.reshape(-1, *[1] * (len(shape) - 1))

    def shifts(some: slice) -> np.ndarray:
        moved: np.ndarray = (rows_of(bias, some) - rows_of(offsets, some)) / rows_of(factors, some)
        return moved

    parameters = [
        b.by_rows(balanced, shape, f"{name}/balanced"),
        b.by_rows(shifts, (outputs,), f"{name}/shift"),
    ]
    z = b.op(last.op_type, [h, *parameters], last.attributes, DIALECT)
    scaled = b.op("Mul", [z, factors])
    y = b.op("Add", [scaled, offsets])
    for value in (scaled, y):
        made = value.producer()
        assert made is not None
        made.metadata_props[HOST_REASON] = REASON
    multiply = scaled.producer()
    assert multiply is not None
    mark(multiply, has_unit_rows=False)
    return y
