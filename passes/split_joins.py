"""Read what was joined where it was made, and divide a last layer that is read in parts.

    Slice(Concat(a, b), the part that is b)                       ->  b
    Slice(Concat(Reshape(Concat(a, b)), Reshape(Concat(c, d))))   ->  Concat(Reshape(b), Reshape(d))
    Slice(Conv2D(x, w), its channels n to m)                      ->  Conv2D(x, rows n to m of w)

A Concat has one int8 scale for all that it joins, and so has the result of a layer. Detectors join
distances of boxes and scores of classes for each level, or make both by one layer, join the levels,
and read distances and scores apart again: read where they are made, each has a scale of its own.
Layers that other layers follow stay whole, as equalising channels (compiler/quantize/equalise.py)
serves their parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compiler.device.legality import refusal
from compiler.graph import (
    DIALECT,
    Builder,
    attribute_of,
    axis_of,
    consumers_of,
    input_at,
    is_constant,
    is_static,
    key_of,
    only_consumer,
    rewrite_until_stable,
    shape_of,
)
from compiler.ops import slice as slicing
from compiler.ops.transpose import permutation
from compiler.targets import Target
from passes.context import PassContext

_LAYERS = ("Conv2D", "FullyConnected")

Make = Callable[[Builder], ir.Value]


@dataclass(frozen=True)
class _Span:
    """Elements `begin` to `end` of one axis."""

    axis: int
    begin: int
    end: int

    @property
    def count(self) -> int:
        return self.end - self.begin


def run(model: ir.Model, context: PassContext) -> None:
    def rewrite(node: ir.Node, b: Builder) -> bool:
        return _rewrite(node, b, context.target)

    for node in rewrite_until_stable(model, rewrite):
        context.matched(node)


def _rewrite(node: ir.Node, b: Builder, target: Target) -> bool:
    """Read what a Slice or Split takes where it was made. Returns whether that can be done."""
    spans = _spans(node)
    if not spans:
        return False
    x = node.inputs[0]
    assert x is not None
    may_cut = _is_only_cut(x, spans[0].axis) and not _leads_to_layer(x, target)
    parts = _Parts(cuts_layers=may_cut)
    makes = [parts.of(x, span) for span in spans]
    known = [make for make in makes if make is not None]
    if len(known) < len(makes):
        return False
    b.replace(*(make(b) for make in known))
    return True


def _is_only_cut(x: ir.Value, axis: int) -> bool:
    """Whether all that reads a value are parts of it along one axis, none of them twice."""
    if x.is_graph_output():
        return False
    taken = 0
    for reader in consumers_of(x):
        spans = _spans(reader)
        if not spans or spans[0].axis != axis:
            return False
        taken += sum(span.count for span in spans)
    return taken <= shape_of(x)[axis]


def _leads_to_layer(x: ir.Value, target: Target) -> bool:
    """Whether a layer reads a value, or what is made of it, before the host does."""
    left, seen = [x], {x}
    while left:
        readers = [reader for reader in consumers_of(left.pop()) if refusal(reader, target) is None]
        if any(_is_layer(reader) for reader in readers):
            return True
        for reader in readers:
            new = [value for value in reader.outputs if value not in seen]
            seen.update(new)
            left += new
    return False


def _is_layer(node: ir.Node) -> bool:
    return node.domain == DIALECT and is_constant(input_at(node, 1))


def _spans(node: ir.Node) -> list[_Span]:
    """What each output of a Split, or of a Slice along one axis, is of its input.

    Empty for all other nodes.
    """
    if key_of(node) == ("", "Split"):
        return _spans_of_split(node)
    if key_of(node) == ("", "Slice"):
        return _spans_of_slice(node)
    return []


def _spans_of_split(node: ir.Node) -> list[_Span]:
    axis = axis_of(int(attribute_of(node, "axis", 0)), len(shape_of(node.inputs[0])))
    spans = []
    begin = 0
    for value in node.outputs:
        end = begin + shape_of(value)[axis]
        spans.append(_Span(axis, begin, end))
        begin = end
    return spans


def _spans_of_slice(node: ir.Node) -> list[_Span]:
    bounds = slicing.ranges(node)
    if bounds is None or set(bounds[2]) != {1}:
        return []
    begins, ends, _ = bounds
    whole = shape_of(node.inputs[0])
    spans = [_Span(axis, *span) for axis, span in enumerate(zip(begins, ends, strict=True))]
    cut = [span for span in spans if span.count != whole[span.axis]]
    return cut if len(cut) == 1 and cut[0].count > 0 else []


@dataclass(frozen=True)
class _Parts:
    """How to make spans of values from whole parts of the Concats in front of them.

    Layout changes between are repeated. With `cuts_layers` also from some rows of layers, as long
    as nothing else reads what lies between.
    """

    cuts_layers: bool

    def of(self, value: ir.Value, span: _Span) -> Make | None:
        """How to make a span of a value, None where it is not made of such parts."""
        node = value.producer()
        if node is None:
            return None
        around = [v for v in [*node.inputs, *node.outputs] if v is not None]
        if not all(is_static(v) for v in around):
            return None
        if key_of(node) == ("", "Concat"):
            return self._of_concat(node, span)
        if key_of(node) == ("", "Transpose"):
            return self._of_transpose(node, span)
        if key_of(node) == ("", "Reshape"):
            return self._of_reshape(node, span)
        if self.cuts_layers and node.domain == DIALECT and node.op_type in _LAYERS:
            return _rows(node, span)
        return None

    def _before(self, value: ir.Value | None, span: _Span) -> Make | None:
        """How to make a span of an input of a node between."""
        if value is None:
            return None
        cuts_layers = self.cuts_layers and only_consumer(value) is not None
        return _Parts(cuts_layers).of(value, span)

    def _of_concat(self, node: ir.Node, span: _Span) -> Make | None:
        inputs = [value for value in node.inputs if value is not None]
        axis = axis_of(int(attribute_of(node, "axis")), len(shape_of(node.outputs[0])))
        if axis == span.axis:
            makes = self._along(inputs, span)
        else:
            makes = [self._before(value, span) for value in inputs]
        known = [make for make in makes if make is not None]
        if len(known) < len(makes):
            return None
        if len(known) == 1:
            return known[0]
        return lambda b: b.op("Concat", [make(b) for make in known], {"axis": axis})

    def _along(self, parts: Sequence[ir.Value], span: _Span) -> list[Make | None]:
        """How to make each of the parts, joined along the axis of the span, that it touches."""
        makes: list[Make | None] = []
        start = 0
        for part in parts:
            count = shape_of(part)[span.axis]
            begin = max(span.begin - start, 0)
            end = min(span.end - start, count)
            start += count
            if begin >= end:
                continue
            if end - begin == count:
                makes.append(_itself(part))
            else:
                makes.append(self._before(part, _Span(span.axis, begin, end)))
        return makes

    def _of_transpose(self, node: ir.Node, span: _Span) -> Make | None:
        perm = permutation(node)
        make = self._before(node.inputs[0], replace(span, axis=perm[span.axis]))
        if make is None:
            return None
        return lambda b: b.transpose(make(b), perm)

    def _of_reshape(self, node: ir.Node, span: _Span) -> Make | None:
        """Through a Reshape whose input has an axis of the same elements, or of groups of them."""
        after = list(shape_of(node.outputs[0]))
        inner = _span_before(shape_of(node.inputs[0]), after, span)
        make = self._before(node.inputs[0], inner) if inner is not None else None
        if make is None:
            return None
        after[span.axis] = span.count
        return lambda b: b.reshape(make(b), after)


def _span_before(before: Sequence[int], after: Sequence[int], span: _Span) -> _Span | None:
    """The same elements in front of a Reshape, None where they are no span of one axis."""
    outer = math.prod(after[: span.axis])
    inner = math.prod(after[span.axis + 1 :])
    for axis, count in enumerate(before):
        # One element behind the Reshape is `group` elements of this axis.
        group, rest = divmod(inner, max(math.prod(before[axis + 1 :]), 1))
        if rest or math.prod(before[:axis]) != outer:
            continue
        if count == after[span.axis] * group:
            return _Span(axis, span.begin * group, span.end * group)
    return None


def _itself(value: ir.Value) -> Make:
    return lambda b: value


def _rows(node: ir.Node, span: _Span) -> Make | None:
    """The layer of some of the outputs."""
    x, weight, bias = node.inputs
    if span.axis != len(shape_of(node.outputs[0])) - 1 or weight is None or bias is None:
        return None
    if not is_constant(weight) or not is_constant(bias):
        return None
    rows = slice(span.begin, span.end)

    def make(b: Builder) -> ir.Value:
        inputs = [x, b.rows(weight, rows), b.rows(bias, rows)]
        return b.op(node.op_type, inputs, node.attributes, node.domain)

    return make
