"""Ranges end where the readers of an activation no longer tell its values apart.

    x * gate(x)      below some x the gate is closed: what lies further down gives the same product
    Sigmoid, Tanh    far out, their int8 results are the first or the last

int8 saturates there by itself, so that its steps serve the values that matter: the input of a hard
swish from -250 to 185 needs its range from -3 on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    activations_of,
    constant_of,
    consumers_of,
    only_consumer,
    scalar_of,
    shape_of,
)
from compiler.ops.activation import GELU_GATES, SIGMOID_END, TANH_END, bounds
from compiler.quantize.calibrate import ChannelStats

# What saturation may change in a product of x and its gate, in steps of its int8 result.
SLACK = 0.25
# Where x * gate(x) is looked at below zero: for the gates that networks have, all is settled long
# before.
_GRID = np.linspace(-64, 0, 64 * 64 + 1)
# Written as LOGISTIC.
_SIGMOIDS = ("Sigmoid", *GELU_GATES)
_ENDS = {**dict.fromkeys(_SIGMOIDS, SIGMOID_END), "Tanh": TANH_END}

Function = Callable[[np.ndarray], np.ndarray]


def saturated(
    nodes: Iterable[ir.Node], stats: Mapping[str, ChannelStats]
) -> dict[str, ChannelStats]:
    """What activations show, without what lies beyond such ends where all readers are among
    `nodes`."""
    nodes = list(nodes)
    inside, found = set(nodes), dict(stats)
    for value in dict.fromkeys(v for n in nodes for v in activations_of(n)):
        name, readers = str(value.name), consumers_of(value)
        if name in stats and not value.is_graph_output() and inside.issuperset(readers):
            low, high = _ends(value, readers, stats)
            seen = stats[name]
            found[name] = replace(
                seen, low=np.clip(seen.low, low, high), high=np.clip(seen.high, low, high)
            )
    return found


def _ends(
    x: ir.Value, readers: list[ir.Node], stats: Mapping[str, ChannelStats]
) -> tuple[float, float]:
    """(lowest, highest) value of x that matters."""
    kinds = {node.op_type for node in readers}
    if len(kinds) == 1 and (end := _ENDS.get(kinds.pop())) is not None:
        return -end, end
    for product in readers:
        function = _gated(product, x, readers)
        if function is not None and str(product.outputs[0].name) in stats:
            low, high = stats[str(product.outputs[0].name)].range
            return _closed(function, SLACK * (high - low) / 255), np.inf
    return -np.inf, np.inf


def _gated(product: ir.Node, x: ir.Value, readers: list[ir.Node]) -> Function | None:
    """x * gate(x) as a function, where `product` is that and nothing else reads x."""
    if product.op_type != "Mul" or x not in product.inputs or len(readers) != 2:
        return None
    gate = _along(next((v for v in product.inputs if v is not x), None), x)
    return None if gate is None else lambda t: t * gate(t)


def _along(value: ir.Value | None, x: ir.Value) -> Function | None:
    """What operators of numbers alone make of x on the way to `value`, as a function, where nothing
    else reads it."""
    node = value.producer() if value is not None else None
    rest = activations_of(node) if node is not None else []
    if node is None or len(rest) != 1 or only_consumer(node.outputs[0]) is None:
        return None
    step = _step(node)
    before = (lambda t: t) if rest[0] is x else _along(rest[0], x)
    return None if before is None or step is None else lambda t: step(before(t))


def _step(node: ir.Node) -> Function | None:
    """What a node does to each number by itself."""
    if node.op_type in _SIGMOIDS:
        return lambda t: 1 / (1 + np.exp(-t))
    limits = bounds(node) if node.op_type in ("Clip", "Relu") else None
    if limits is not None:
        return lambda t: np.clip(t, *limits)
    if node.op_type == "DepthwiseConv2D" and shape_of(node.inputs[1])[2:] == (1, 1):
        slope, shift = (_alike(v) for v in node.inputs[1:])
        return None if slope is None or shift is None else lambda t: slope * t + shift
    numbers = [n for v in node.inputs if (n := scalar_of(v)) is not None]
    if node.op_type not in ("Add", "Mul") or len(numbers) != 1:
        return None
    number = numbers[0]
    return (lambda t: t + number) if node.op_type == "Add" else (lambda t: t * number)


def _alike(value: ir.Value | None) -> float | None:
    """The number that all elements of a constant are."""
    array = constant_of(value)
    return float(array.flat[0]) if array is not None and array.size and np.ptp(array) == 0 else None


def _closed(function: Function, slack: float) -> float:
    """The largest x on a grid below zero under which the function changes by no more than `slack`."""
    y = function(_GRID)
    spread = np.maximum.accumulate(y) - np.minimum.accumulate(y)
    return float(_GRID[max(int(np.searchsorted(spread, slack, side="right")) - 1, 0)])
