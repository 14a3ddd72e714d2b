"""What reads a part of a Concat reads what was joined there, and a last layer that is read in parts
becomes several.

    Slice(Concat(a, b), the part that is b)                       ->  b
    Slice(Concat(Reshape(Concat(a, b)), Reshape(Concat(c, d))))   ->  Concat(Reshape(b), Reshape(d))
    Slice(Conv2D(x, w), its channels n to m)                      ->  Conv2D(x, rows n to m of w)

A Concat has one int8 scale for all that it joins, and so has the result of a layer. Detectors join
distances of boxes and scores of classes for each level, or make both by one layer, join the levels,
and read distances and scores apart again: read where they are made, each has a scale of its own.
Layers that other layers follow stay whole: equalising channels (compiler/quantize/equalise.py)
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


def run(model: ir.Model, context: PassContext) -> None:
    rewrite_until_stable(model, lambda node, b: _rewrite(node, b, context.target))


def _rewrite(node: ir.Node, b: Builder, target: Target) -> bool:
    x = node.inputs[0] if node.inputs else None
    spans = _spans(node)
    if x is None or not spans:
        return False
    parts = _Parts(_is_only_cut(x, spans[0].axis) and not _leads_to_layer(x, target))
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
        taken += sum(span.end - span.begin for span in spans)
    return taken <= shape_of(x)[axis]


def _leads_to_layer(x: ir.Value, target: Target) -> bool:
    """Whether a layer follows before the host."""
    left, seen = [x], {x}
    while left:
        readers = [reader for reader in consumers_of(left.pop()) if refusal(reader, target) is None]
        if any(reader.domain == DIALECT and is_constant(input_at(reader, 1)) for reader in readers):
            return True
        made = {value for reader in readers for value in reader.outputs} - seen
        seen |= made
        left += made
    return False


def _spans(node: ir.Node) -> list[_Span]:
    """What each output of a Split, or of a Slice along one axis, is of its input; empty for all
    other nodes."""
    if key_of(node) == ("", "Split"):
        shape = shape_of(node.inputs[0])
        axis = axis_of(int(attribute_of(node, "axis", 0)), len(shape))
        spans, begin = [], 0
        for value in node.outputs:
            end = begin + shape_of(value)[axis]
            spans.append(_Span(axis, begin, end))
            begin = end
        return spans
    if key_of(node) != ("", "Slice"):
        return []
    bounds, shape = slicing.ranges(node), shape_of(node.inputs[0])
    if bounds is None:
        return []
    spans = [_Span(axis, begin, end) for axis, (begin, end) in enumerate(zip(*bounds, strict=True))]
    cut = [span for span in spans if span.end - span.begin != shape[span.axis]]
    return cut if len(cut) == 1 and cut[0].begin < cut[0].end else []


@dataclass(frozen=True)
class _Parts:
    """How to make spans of values from whole parts of Concats in front of them. Layout changes are
    repeated.

    With `cuts_layers` also from some rows of layers, as long as nothing else reads what lies
    between.
    """

    cuts_layers: bool

    def of(self, value: ir.Value, span: _Span) -> Make | None:
        """How to make a span of a value, None where it is not made of such parts."""
        node = value.producer()
        if node is None or not all(
            is_static(v) for v in [*node.inputs, *node.outputs] if v is not None
        ):
            return None
        if key_of(node) == ("", "Concat"):
            return self._concat(node, span)
        if key_of(node) == ("", "Transpose"):
            return self._transpose(node, span)
        if key_of(node) == ("", "Reshape"):
            return self._reshape(node, span)
        if self.cuts_layers and node.domain == DIALECT and node.op_type in _LAYERS:
            return _rows(node, span)
        return None

    def _before(self, value: ir.Value | None, span: _Span) -> Make | None:
        """How to make a span of an input of a node between."""
        if value is None:
            return None
        return replace(self, cuts_layers=self.cuts_layers and only_consumer(value) is not None).of(
            value, span
        )

    def _concat(self, node: ir.Node, span: _Span) -> Make | None:
        inputs = [v for v in node.inputs if v is not None]
        axis = axis_of(int(attribute_of(node, "axis")), len(shape_of(node.outputs[0])))
        along = axis == span.axis
        makes = self._along(inputs, span) if along else [self._before(v, span) for v in inputs]
        known = [make for make in makes if make is not None]
        if len(known) < len(makes):
            return None
        if len(known) == 1:
            return known[0]
        return lambda b: b.op("Concat", [make(b) for make in known], {"axis": axis})

    def _along(self, parts: Sequence[ir.Value], span: _Span) -> list[Make | None]:
        """How to make each of the parts, joined along the axis of the span, that it touches."""
        makes, start = [], 0
        for part in parts:
            count = shape_of(part)[span.axis]
            inner = _Span(span.axis, max(span.begin - start, 0), min(span.end - start, count))
            start += count
            if inner.begin < inner.end:
                whole = inner.end - inner.begin == count
                makes.append(_itself(part) if whole else self._before(part, inner))
        return makes

    def _transpose(self, node: ir.Node, span: _Span) -> Make | None:
        perm = permutation(node)
        make = self._before(node.inputs[0], replace(span, axis=perm[span.axis]))
        return None if make is None else lambda b: b.transpose(make(b), perm)

    def _reshape(self, node: ir.Node, span: _Span) -> Make | None:
        """Through a Reshape whose input has an axis of the same elements, or of whole groups of
        them."""
        after = list(shape_of(node.outputs[0]))
        inner = _span_before(shape_of(node.inputs[0]), after, span)
        make = self._before(node.inputs[0], inner) if inner is not None else None
        if make is None:
            return None
        after[span.axis] = span.end - span.begin
        return lambda b: b.reshape(make(b), after)


def _span_before(before: Sequence[int], after: Sequence[int], span: _Span) -> _Span | None:
    """The same elements in front of a Reshape, None where they are no span of one axis."""
    outer, inner = math.prod(after[: span.axis]), math.prod(after[span.axis + 1 :])
    for axis, count in enumerate(before):
        group, rest = divmod(inner, max(math.prod(before[axis + 1 :]), 1))
        if rest == 0 and math.prod(before[:axis]) == outer and count == after[span.axis] * group:
            return _Span(axis, span.begin * group, span.end * group)
    return None


def _itself(value: ir.Value) -> Make:
    return lambda b: value


def _rows(node: ir.Node, span: _Span) -> Make | None:
    """The layer of some of the outputs."""
    x, weight, bias = node.inputs
    last = span.axis == len(shape_of(node.outputs[0])) - 1
    if (
        not last
        or weight is None
        or bias is None
        or not (is_constant(weight) and is_constant(bias))
    ):
        return None
    rows = slice(span.begin, span.end)

    def make(b: Builder) -> ir.Value:
        inputs = [x, b.rows(weight, rows), b.rows(bias, rows)]
        return b.op(node.op_type, inputs, node.attributes, node.domain)

    return make
