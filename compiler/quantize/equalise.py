"""Equalise channels: each is multiplied by a factor where it is made and divided by it where it is
read.

    W2 relu(W1 x + b)   =   (W2 / d) relu(d W1 x + d b)      for d > 0

exactly. An activation has one int8 scale, so a channel that is far smaller than the others has few
steps; trained networks have such channels. Factors go through all operators that treat channels
alike (`Operator.ties`) up to the layers that take them into their weights; channels that meet an
operator which cannot bear a factor keep theirs (compiler/quantize/ties.py).

A factor makes the steps of its channel finer, and its weights in the layer that reads it smaller
beside the others of their row, so coarser. Each weighs by the error that it makes in the results of
that layer: with g = sum W^2 over rows, m = the mean square of the channel, steps D of the
activation and S of the rows,

    error  ~  g D^2 / d^2 + d^2 m sum S^2      least for      d^4 = g D^2 / (m sum S^2)

It is never less than 1, and never so large that the activation would need a much wider range. The
channels of an activation keep theirs where the wider range costs about as much as they save.
Cross-layer equalisation is from Nagel et al. (2019), who choose factors by ranges alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compiler.graph import (
    Builder,
    Names,
    activations_around,
    array_of,
    element_count,
    is_constant,
    rows_of,
    shape_of,
)
from compiler.ops import operator_of
from compiler.quantize.calibrate import ChannelStats
from compiler.quantize.scales import Groups, groups_of
from compiler.quantize.ties import (
    FactorClasses,
    Numbering,
    factor_classes,
    number_channels,
    takes_factors,
)

# Rows of weights that are read at once, in bytes.
ROWS_BYTES = 16 << 20
# A factor below this is not worth new weights.
LEAST = 1.05
# The shorter side of a range may grow to this share of the longer one: all channels of a gate's
# input end at one value.
SIDE = 0.5
# Standard deviations from its mean that a channel is taken to reach before a ReLU, however few of
# its values were seen.
SPREAD = 4
# How many times the halves of the samples may differ in a channel and still say something.
MOST_APART = 2
# What is left of an activation's error must be less than this for a wider range to be worth it.
WORTH = 0.9
# Keeps divisions by the size of channels that are zero finite.
TINY = 1e-30

Stats = Mapping[str, ChannelStats]


def equalise(model: ir.Model, nodes: Sequence[ir.Node], stats: Stats) -> dict[str, ChannelStats]:
    """Change the weights of `nodes`, which are to run in int8, in place; returns what activations
    show now."""
    numbering = number_channels(
        value for value in activations_around(nodes) if str(value.name) in stats
    )
    factors = _factors(nodes, stats, numbering, factor_classes(nodes, numbering))
    changed = dict(stats)
    if not np.any(factors != 1):
        return changed
    names = Names(model.graph)
    for node in nodes:
        around = {value: factors[numbering.of(value)] for value in numbering.around(node)}
        _apply(node, around, Builder(model, names, node))
    common.RemoveUnusedNodesPass()(model)
    for value in numbering.values:
        name = str(value.name)
        changed[name] = stats[name].times(factors[numbering.of(value)])
    return changed


def _factors(
    nodes: Sequence[ir.Node], stats: Stats, numbering: Numbering, classes: FactorClasses
) -> np.ndarray:
    """The factor of each channel, as float32: d of the formula above, within what ranges bear."""
    most, steps = _limits(nodes, stats, numbering, classes)
    # g and m sum S^2 of the formula, summed over all layers that read channels of a class.
    finer = np.zeros(numbering.count)
    coarser = np.zeros(numbering.count)
    for node in nodes:
        if takes_factors(node) and len(numbering.around(node)) == 2:
            x, y = numbering.around(node)
            gain, loss = _layer_weights(node, stats[str(x.name)], stats[str(y.name)])
            own = classes.of[numbering.of(x)]
            np.add.at(finer, own, gain)
            np.add.at(coarser, own, loss)
    # A class that no layer reads has 0 / 0, one whose weights bear all factors something / 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = (finer * steps / coarser) ** 0.25
    best: np.ndarray = np.minimum(np.nan_to_num(wanted, nan=1.0, posinf=np.inf), most)
    is_left = ~np.isfinite(best) | (best < LEAST)
    best[is_left | classes.fixed] = 1
    _leave_what_costs(best, finer, _Activations(nodes, stats, numbering, classes))
    factors: np.ndarray = best[classes.of]
    return factors.astype(np.float32)


def _leave_what_costs(best: np.ndarray, finer: np.ndarray, activations: _Activations) -> None:
    """Set factors back to 1, in place, where they save little of an activation's error, for its
    range gets wider.

    `finer` is how much the steps of each class weigh.
    """
    left = True
    while left:
        left = False
        growth = activations.growth(best)
        for value, grown in growth.items():
            own = np.unique(activations.classes_of(value))
            weights = finer[own]
            rest = (weights * (grown / best[own]) ** 2).sum()
            if np.any(best[own] != 1) and rest > WORTH * weights.sum():
                best[own] = 1
                left = True


@dataclass(frozen=True)
class _Activations:
    """What `nodes` read and make, with what it shows and the classes of its channels."""

    nodes: Sequence[ir.Node]
    stats: Stats
    numbering: Numbering
    classes: FactorClasses

    def classes_of(self, value: ir.Value) -> np.ndarray:
        """The class of each channel [C]."""
        found: np.ndarray = self.classes.of[self.numbering.of(value)]
        return found

    def growth(self, factors: np.ndarray) -> dict[ir.Value, float]:
        """How many times as wide the range of each activation becomes by the factors of classes."""
        groups = groups_of(self.nodes)
        observed = groups.observed(self.numbering.values)
        changed = dict(self.stats)
        for value in observed:
            name = str(value.name)
            changed[name] = self.stats[name].times(factors[self.classes_of(value)])
        before = _widest_ranges(groups, set(observed), self.stats)
        after = _widest_ranges(groups, set(observed), changed)
        found = {}
        for value in observed:
            group = groups.of(value)
            found[value] = float(np.ptp(after[group]) / max(np.ptp(before[group]), TINY))
        return found


def _limits(
    nodes: Sequence[ir.Node], stats: Stats, numbering: Numbering, classes: FactorClasses
) -> tuple[np.ndarray, np.ndarray]:
    """By class: the largest factor that its activations bear, and the sum of the squared steps
    D of activations."""
    groups = groups_of(nodes)
    observed = set(groups.observed(numbering.values))
    widest = _widest_ranges(groups, observed, stats)
    most = np.full(numbering.count, np.inf)
    steps = np.zeros(numbering.count)
    for value in numbering.values:
        seen = stats[str(value.name)]
        own = classes.of[numbering.of(value)]
        low, high = widest.get(groups.of(value), (0.0, 0.0))
        low, high = min(low, -SIDE * high), max(high, -SIDE * low)
        with np.errstate(all="ignore"):  # channels that are zero, or nearly
            if value not in observed:
                # An absorbed clamp cuts off what is below.
                np.minimum.at(most, own, high / _reach_before_clamp(seen))
                continue
            np.minimum.at(most, own, high / _reach(seen.high))
            np.minimum.at(most, own, -low / _reach(-seen.low))
        np.add.at(steps, own, ((high - low) / 255) ** 2)
    return most, steps


def _widest_ranges(
    groups: Groups, observed: set[ir.Value], stats: Stats
) -> dict[object, tuple[float, float]]:
    """The range, which holds zero, of each group of activations that share a scale."""
    widest: dict[object, tuple[float, float]] = {}
    for value in observed:
        group = groups.of(value)
        low, high = stats[str(value.name)].range
        lowest, highest = widest.get(group, (0.0, 0.0))
        widest[group] = (min(lowest, low), max(highest, high))
    return widest


def _layer_weights(
    node: ir.Node, x: ChannelStats, y: ChannelStats
) -> tuple[np.ndarray, np.ndarray]:
    """How much the steps of each input channel [C] of a layer weigh in its result, and how much the
    steps of its weights do: g and m sum S^2 over the mean square of the result."""
    weight = node.inputs[1]
    assert weight is not None
    inputs = len(x.square)
    if operator_of(node).linear == "depthwise":
        # Each channel has its own scale of weights: factors cost nothing.
        gains = np.concatenate([(rows**2).sum(axis=(1, 2)) for rows in _chunks(weight)])
        shares = gains / np.maximum(y.square, TINY)
        return shares.reshape(inputs, -1).sum(axis=1), np.zeros(inputs)
    size = max(float(y.square.mean()), TINY)
    gains = np.zeros(inputs)
    squared_steps = 0.0
    for rows in _chunks(weight):
        gains += (rows**2).sum(axis=(0, 2))
        largest = np.abs(rows).max(axis=(1, 2))
        squared_steps += float((largest**2).sum()) / 127**2
    taps = element_count(weight) // (shape_of(weight)[0] * inputs)
    return gains / size, x.square * taps * squared_steps / size


def _chunks(weight: ir.Value) -> Iterator[np.ndarray]:
    """Weights [rows, inputs, taps], some rows at a time."""
    rows, inputs = shape_of(weight)[:2]
    row_bytes = 4 * element_count(weight) // rows
    step = max(1, ROWS_BYTES // row_bytes)
    for begin in range(0, rows, step):
        some = rows_of(weight, slice(begin, min(begin + step, rows)))
        yield some.reshape(len(some), inputs, -1)


def _reach(ends: np.ndarray) -> np.ndarray:
    """How far channels may reach, by how far they did in either half of the samples [2, C].

    Where the halves differ, a channel gets room by the square of how many times they do.
    """
    most = np.maximum(ends.max(axis=0), 0)
    least = np.maximum(ends.min(axis=0), 0)
    apart = np.minimum(most / least, MOST_APART)
    return np.where(most > 0, most * apart**2, 0)


def _reach_before_clamp(stats: ChannelStats) -> np.ndarray:
    """How far channels may reach before a ReLU, by mean and deviation: samples show little of the
    positive values of channels that are seldom active."""
    variance = np.maximum(stats.square - stats.mean**2, 0)
    reach: np.ndarray = stats.mean + SPREAD * np.sqrt(variance)
    return reach.clip(min=0)


def _apply(node: ir.Node, factors: Mapping[ir.Value, np.ndarray], builder: Builder) -> None:
    """Give a node the weights, or the constants to add, that its activations' factors ask for."""
    made = factors.get(node.outputs[0])
    if made is None:
        return
    if operator_of(node).combines == "sum" and np.any(made != 1):
        _scale_constants(node, made, builder)
    elif takes_factors(node):
        x, weight, bias = node.inputs
        assert x is not None and weight is not None and bias is not None
        read = factors.get(x, np.ones(1, np.float32))
        if np.any(made != 1) or np.any(read != 1):
            node.replace_input_with(1, _scaled(builder, weight, made, 1 / read))
            node.replace_input_with(2, builder.const(array_of(bias) * made, f"{bias.name}/equal"))


def _scale_constants(node: ir.Node, factors: np.ndarray, builder: Builder) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and is_constant(value):
            scaled = builder.const(array_of(value) * factors, f"{value.name}/equal")
            node.replace_input_with(index, scaled)


def _scaled(builder: Builder, weight: ir.Value, rows: np.ndarray, columns: np.ndarray) -> ir.Value:
    """Weights [O, I, ...] with each row and each column multiplied; of [C, 1, ...] the columns are
    the channels."""
    shape = shape_of(weight)
    if shape[1] != len(columns):
        each = len(rows) // len(columns)
        rows = rows * np.repeat(columns, each)
        columns = np.ones(1, np.float32)
    spatial = [1] * (len(shape) - 2)

    def read(some: slice) -> np.ndarray:
        by_row = rows[some].reshape(-1, 1, *spatial)
        by_column = columns.reshape(1, -1, *spatial)
        scaled: np.ndarray = rows_of(weight, some) * by_row * by_column
        return scaled

    return builder.by_rows(read, shape, f"{weight.name}/equal")
