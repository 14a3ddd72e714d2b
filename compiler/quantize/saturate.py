"""Clips the range of an activation to the values that its readers tell apart.

    x * gate(x)      below some x the gate is closed: what lies further down gives the same product
    Sigmoid, Tanh    far out, their int8 results are the first or the last

int8 saturates at the ends of its range by itself, so that its steps serve the values that matter:
the input of a hard swish from -250 to 185 needs its range from -3 on. What only moves values, as a
Reshape or a Concat does, shares one scale with what it reads, and so the same ends.

A gate gives small negative results just below zero: SiLU -0.278 at the least. A single edge in a
picture may reach so far beyond all else that one step is more than that, and all those results are
zero. Then the range ends where they are one step, as long as that is far out.

Logits of which the host makes probabilities are the other way round: few samples show how sure a
detector can be, and whatever is surer would be cut off. Their range has room for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from compiler.graph import (
    activations_around,
    activations_of,
    consumers_of,
    key_of,
    only_consumer,
)
from compiler.ops import Moves, operator_of
from compiler.ops.common import Function
from compiler.quantize.calibrate import ChannelStats

Ends = tuple[float, float]

# How much saturation may change a product of x and its gate, in steps of its int8 result.
SLACK = 0.25
# Where x * gate(x) is looked at below zero: finely where the gates of networks close, and at so
# many values further down, as far as x was seen.
_GRID = np.linspace(-64, 0, 64 * 64 + 1)
_BELOW = 64
# A range may end short of a value that is so many times as large as the root mean square of all.
FAR = 8
# The logit of a probability of 0.993. There is room up to it where most logits are far below and
# some are not, as where objects are sought in every cell.
SURE = 5
_SELDOM = -4
_SOMETIMES = -2
EVERYTHING: Ends = (-np.inf, np.inf)


def saturated(
    nodes: Iterable[ir.Node], stats: Mapping[str, ChannelStats]
) -> dict[str, ChannelStats]:
    """The stats of activations, clipped where all readers are among `nodes` and none of them tells
    the values further out apart."""
    nodes = list(nodes)
    inside = set(nodes)
    clipped = dict(stats)
    ends_of: dict[ir.Value, Ends] = {}
    # Readers come first, so that what only moves values finds the ends of its results.
    for value in reversed(activations_around(nodes)):
        name = str(value.name)
        readers = consumers_of(value)
        if name not in stats or not readers or value.is_graph_output():
            continue
        if _gives_probabilities(value, inside):
            clipped[name] = _with_room(stats[name])
            continue
        if not inside.issuperset(readers):
            continue
        low, high = _ends(value, readers, stats, ends_of)
        high = min(high, _end_of_product(value, stats))
        ends_of[value] = (low, high)
        seen = stats[name]
        clipped[name] = replace(
            seen, low=np.clip(seen.low, low, high), high=np.clip(seen.high, low, high)
        )
    return clipped


def _gives_probabilities(value: ir.Value, inside: set[ir.Node]) -> bool:
    """Whether the host makes probabilities of a value, changes of its layout aside, and nothing
    else."""
    readers = consumers_of(value)
    if value.is_graph_output() or not readers or inside.intersection(readers):
        return False
    for reader in readers:
        if operator_of(reader).moves >= Moves.ELEMENTS:
            if not _gives_probabilities(reader.outputs[0], inside):
                return False
        elif key_of(reader) != ("", "Sigmoid"):
            return False
    return True


def _with_room(seen: ChannelStats) -> ChannelStats:
    """Logits with the range that they may need."""
    low, high = seen.range
    if low > _SELDOM or high < _SOMETIMES:
        return seen
    return replace(seen, high=np.maximum(seen.high, SURE))


def _ends(
    x: ir.Value,
    readers: Sequence[ir.Node],
    stats: Mapping[str, ChannelStats],
    ends_of: Mapping[ir.Value, Ends],
) -> Ends:
    """The lowest and the highest value of x that matter to its readers."""
    if all(operator_of(reader).moves >= Moves.VALUES for reader in readers):
        return _ends_behind(readers, ends_of)
    saturating = {operator_of(reader).saturates_at for reader in readers}
    if len(saturating) == 1:
        end = saturating.pop()
        if end is not None:
            return -end, end
    for product in readers:
        function = _gated(product, x, readers)
        result = stats.get(str(product.outputs[0].name))
        if function is not None and result is not None:
            low, high = result.range
            step = (high - low) / 255
            lowest, _ = stats[str(x.name)].range
            return _closed(function, SLACK * step, lowest), _far_end(function, result)
    return EVERYTHING


def _end_of_product(y: ir.Value, stats: Mapping[str, ChannelStats]) -> float:
    """The highest value of y that matters where it is x * gate(x): as high as that of x."""
    product = y.producer()
    if product is None:
        return np.inf
    for x in activations_of(product):
        function = _gated(product, x, consumers_of(x))
        if function is not None:
            return _far_end(function, stats[str(y.name)])
    return np.inf


def _far_end(function: Function, result: ChannelStats) -> float:
    """Up to which value x * gate(x) has steps as fine as what it gives below zero; infinity where
    its steps are finer, or where that is not far out."""
    depth = -float(function(_GRID).min())
    low, high = result.range
    end = 255 * depth + max(low, -depth)
    size = float(np.sqrt(result.square.mean()))
    is_open = abs(float(function(np.array(end))) - end) < SLACK * depth
    if high <= end or end < FAR * size or not is_open:
        return np.inf
    return end


def _ends_behind(readers: Sequence[ir.Node], ends_of: Mapping[ir.Value, Ends]) -> Ends:
    """The widest ends among the results of readers that only move values."""
    lows = []
    highs = []
    for reader in readers:
        for value in reader.outputs:
            low, high = ends_of.get(value, EVERYTHING)
            lows.append(low)
            highs.append(high)
    return min(lows), max(highs)


def _gated(product: ir.Node, x: ir.Value, readers: Sequence[ir.Node]) -> Function | None:
    """x * gate(x) as a function, where `product` is that and nothing else reads x."""
    is_product = operator_of(product).combines == "product"
    if not is_product or x not in product.inputs or len(readers) != 2:
        return None
    others = [value for value in product.inputs if value is not x]
    gate = _function_of(others[0], x) if others else None
    if gate is None:
        return None
    return lambda t: t * gate(t)


def _function_of(value: ir.Value | None, x: ir.Value) -> Function | None:
    """`value` as a function of x, where elementwise operators alone lead from x to it and nothing
    else reads what they make."""
    node = value.producer() if value is not None else None
    if node is None or only_consumer(node.outputs[0]) is None:
        return None
    read = activations_of(node)
    step = operator_of(node).elementwise(node)
    if step is None or len(read) != 1:
        return None
    if read[0] is x:
        return step
    before = _function_of(read[0], x)
    if before is None:
        return None
    return lambda t: step(before(t))


def _closed(function: Function, slack: float, lowest: float) -> float:
    """The largest x below zero under which, down to `lowest`, the function changes by no more than
    `slack`."""
    grid = _GRID
    if lowest < grid[0]:
        # A gate that closes is closed there too; a polynomial goes on growing.
        below = np.linspace(lowest, grid[0], _BELOW, endpoint=False)
        grid = np.concatenate([below, grid])
    with np.errstate(over="ignore"):
        y = function(grid)
    spread = np.maximum.accumulate(y) - np.minimum.accumulate(y)
    count = int(np.searchsorted(spread, slack, side="right"))
    return float(grid[max(count - 1, 0)])
