"""Equalise channels: each is multiplied by a factor where it is made and divided by it where it is
read.

    W2 relu(W1 x + b)   =   (W2 / d) relu(d W1 x + d b)      for d > 0

exactly. An activation has one int8 scale, so a channel that is far smaller than the others has few
steps; trained networks have such channels. Factors go through all operators that treat channels
alike (`Operator.ties`) up to the layers that take them into their weights; channels that meet an
operator which cannot bear a factor keep theirs.

A factor makes the steps of its channel finer, and its weights in the layer that reads it smaller
beside the others of their row, so coarser. Each weighs by the error that it makes in the results of
that layer: with g = sum W^2 over rows, m = the mean square of the channel, steps D of the
activation and S of the rows,

    error  ~  g D^2 / d^2 + d^2 m sum S^2      least for      d^4 = g D^2 / (m sum S^2)

It is never less than 1, and never so large that the activation would need a much wider range.
Cross-layer equalisation is from Nagel et al. (2019), who choose factors by ranges alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compiler.graph import (
    Builder,
    Names,
    activations_around,
    activations_of,
    array_of,
    consumers_of,
    element_count,
    grid_of,
    is_constant,
    rows_of,
    shape_of,
)
from compiler.ops import lookup
from compiler.ops.common import ChannelTie, channels
from compiler.quantize.calibrate import ChannelStats
from compiler.quantize.scales import Groups

LINEAR = ("Conv2D", "DepthwiseConv2D", "TransposeConv2D", "FullyConnected")
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
TINY = 1e-30


def equalise(
    model: ir.Model, nodes: Sequence[ir.Node], stats: Mapping[str, ChannelStats]
) -> dict[str, ChannelStats]:
    """Change the weights of `nodes`, which are to run in int8, in place; returns what activations
    show now."""
    layout = _Channels(nodes, stats)
    factors = layout.factors()
    if not np.any(factors != 1):
        return dict(stats)
    names = Names(model.graph)
    for node in nodes:
        _apply(
            node,
            {v: factors[layout.of(v)] for v in layout.around(node)},
            Builder(model, names, node),
        )
    common.RemoveUnusedNodesPass()(model)
    return dict(stats) | {
        str(v.name): stats[str(v.name)].times(factors[layout.of(v)]) for v in layout.values
    }


class _Channels:
    """The channels of all activations around `nodes`, numbered, and which of them must have the
    same factor."""

    def __init__(self, nodes: Sequence[ir.Node], stats: Mapping[str, ChannelStats]) -> None:
        self.nodes, self.stats = nodes, stats
        self.values = [v for v in activations_around(nodes) if str(v.name) in stats]
        bounds = np.cumsum([0, *(channels(v) for v in self.values)])
        self._start = {v: int(b) for v, b in zip(self.values, bounds, strict=False)}
        self.count = int(bounds[-1])
        self.fixed = np.zeros(self.count, bool)
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._tie()
        self.classes = self._classes()

    def of(self, value: ir.Value) -> np.ndarray:
        """Numbers of the channels of an activation."""
        return self._start[value] + np.arange(channels(value))

    def around(self, node: ir.Node) -> list[ir.Value]:
        return [v for v in [*activations_of(node), *node.outputs] if v in self._start]

    def _tie(self) -> None:
        inside, products = set(self.nodes), []
        for value in self.values:
            if (
                value.producer() not in inside
                or value.is_graph_output()
                or not inside.issuperset(consumers_of(value))
            ):
                self._fix(value)
        for node in self.nodes:
            around = self.around(node)
            known = len(around) == len(activations_around([node]))
            if known and _takes_factors(node):
                continue
            if known and node.op_type == "Mul" and len(set(activations_of(node))) == 2:
                products.append(node)
                continue
            operator = lookup(node)
            ties = operator.ties(node) if operator is not None and known else None
            if ties is None:
                self._fix(*around)
            else:
                self._join(ties)
        self._settle(products)

    def _settle(self, products: list[ir.Node]) -> None:
        """A product of two activations takes the factors of one of them where the other's are
        fixed."""
        while products:
            classes, left = self._classes(), []
            fixed = np.isin(classes, classes[self.fixed])
            for node in products:
                y = node.outputs[0]
                gates = [v for v in activations_of(node) if fixed[self.of(v)].all()]
                free = [
                    v for v in activations_of(node) if v not in gates and channels(v) == channels(y)
                ]
                if len(gates) == 1 and free:
                    self._join([ChannelTie(free[0], y)])
                elif gates:
                    self._fix(y, *activations_of(node))
                else:
                    left.append(node)
            if len(left) == len(products):
                self._fix(*activations_of(left[0])[1:])
            products = left

    def _fix(self, *values: ir.Value) -> None:
        for value in values:
            self.fixed[self.of(value)] = True

    def _join(self, ties: Iterable[ChannelTie]) -> None:
        self._ties += [(self.of(t.a)[t.of_a], self.of(t.b)[t.of_b]) for t in ties]

    def _classes(self) -> np.ndarray:
        """For each channel the lowest number among those that must have its factor."""
        lowest = np.arange(self.count)
        a, b = (
            (np.concatenate(side) for side in zip(*self._ties, strict=True))
            if self._ties
            else (lowest, lowest)
        )
        while True:
            least = np.minimum(lowest[a], lowest[b])
            new = lowest.copy()
            np.minimum.at(new, a, least)
            np.minimum.at(new, b, least)
            new = new[new]
            if np.array_equal(new, lowest):
                return new
            lowest = new

    def factors(self) -> np.ndarray:
        """The factor of each channel."""
        most, steps = self._ranges()
        finer, coarser = np.zeros(self.count), np.zeros(self.count)
        for node in self.nodes:
            if _takes_factors(node) and len(self.around(node)) == 2:
                own = self.classes[self.of(node.inputs[0])]  # type: ignore[arg-type]
                gain, loss = self._layer(node)
                np.add.at(finer, own, gain)
                np.add.at(coarser, own, loss)
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.nan_to_num((finer * steps / coarser) ** 0.25, nan=1.0, posinf=np.inf)
        best = np.minimum(best, most)
        best[
            ~np.isfinite(best)
            | (best < LEAST)
            | np.isin(np.arange(self.count), self.classes[self.fixed])
        ] = 1
        return best[self.classes].astype(np.float32)

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """By class: the largest factor that its activations bear, and the sum of the squared steps
        of activations."""
        groups = Groups(self.nodes)
        observed = set(groups.observed(self.values))
        widest: dict[object, tuple[float, float]] = {}
        for value in observed:
            low, high = self.stats[str(value.name)].range
            before = widest.get(groups.of(value), (0.0, 0.0))
            widest[groups.of(value)] = min(before[0], low), max(before[1], high)
        most, steps = np.full(self.count, np.inf), np.zeros(self.count)
        for value in self.values:
            low, high = widest.get(groups.of(value), (0.0, 0.0))
            low, high = min(low, -SIDE * high), max(high, -SIDE * low)
            own, stats = self.classes[self.of(value)], self.stats[str(value.name)]
            with np.errstate(all="ignore"):  # channels that are zero, or nearly
                if value in observed:
                    np.minimum.at(most, own, high / _room(stats.high))
                    np.minimum.at(most, own, -low / _room(-stats.low))
                    np.add.at(steps, own, ((high - low) / 255) ** 2)
                else:  # before a clamp, which cuts off what is below
                    np.minimum.at(most, own, high / _spread(stats))
        return most, steps

    def _layer(self, node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
        """For each input channel of a layer, what its steps and what the steps of its weights weigh
        in the result."""
        x, y = (self.stats[str(v.name)] for v in self.around(node))
        weight = node.inputs[1]
        assert weight is not None
        if (
            node.op_type == "DepthwiseConv2D"
        ):  # each channel has its own scale: factors cost nothing
            gains = np.concatenate([(rows**2).sum(axis=(1, 2)) for rows in _chunks(weight)])
            each = gains / np.maximum(y.square, TINY)
            return each.reshape(len(x.square), -1).sum(axis=1), np.zeros(len(x.square))
        size = max(float(y.square.mean()), TINY)
        columns, steps = np.zeros(len(x.square)), 0.0
        for rows in _chunks(weight):
            columns += (rows**2).sum(axis=(0, 2))
            steps += float((np.abs(rows).max(axis=(1, 2)) ** 2).sum()) / 127**2
        taps = element_count(weight) // (shape_of(weight)[0] * len(columns))
        return columns / size, x.square * taps * steps / size


def _room(ends: np.ndarray) -> np.ndarray:
    """How far channels may reach, by how far they did in either half of the samples [2, C]: those
    whose halves differ get room by the square of how many times."""
    most, least = np.maximum(ends.max(axis=0), 0), np.maximum(ends.min(axis=0), 0)
    return np.where(most > 0, most * np.minimum(most / least, MOST_APART) ** 2, 0)


def _spread(stats: ChannelStats) -> np.ndarray:
    """How far channels may reach before a ReLU: that tells of channels that are seldom active too."""
    return np.maximum(stats.mean + SPREAD * np.sqrt(np.maximum(stats.square - stats.mean**2, 0)), 0)


def _takes_factors(node: ir.Node) -> bool:
    """Whether a layer can have other weights: constant ones, not given as int8."""
    if node.op_type not in LINEAR:
        return False
    _, weight, bias = node.inputs
    return (
        weight is not None and is_constant(weight) and is_constant(bias) and grid_of(weight) is None
    )


def _chunks(weight: ir.Value) -> Iterator[np.ndarray]:
    """Weights [rows, inputs, taps], some rows at a time."""
    rows, inputs = shape_of(weight)[:2]
    step = max(1, ROWS_BYTES // (4 * element_count(weight) // rows))
    for begin in range(0, rows, step):
        some = rows_of(weight, slice(begin, min(begin + step, rows)))
        yield some.reshape(len(some), inputs, -1)


def _apply(node: ir.Node, factors: Mapping[ir.Value, np.ndarray], b: Builder) -> None:
    """Give a node the weights, or the constants to add, that its activations' factors ask for."""
    y = node.outputs[0]
    made = factors.get(y)
    if made is None:
        return
    if node.op_type in ("Add", "Sub") and np.any(made != 1):
        for index, value in enumerate(node.inputs):
            if value is not None and is_constant(value):
                node.replace_input_with(
                    index, b.const(array_of(value) * made, f"{value.name}/equal")
                )
    elif _takes_factors(node):
        x, weight, bias = node.inputs
        assert x is not None and weight is not None and bias is not None
        read = factors.get(x, np.ones(1, np.float32))
        if np.any(made != 1) or np.any(read != 1):
            node.replace_input_with(1, _scaled(b, weight, made, 1 / read))
            node.replace_input_with(2, b.const(array_of(bias) * made, f"{bias.name}/equal"))


def _scaled(b: Builder, weight: ir.Value, rows: np.ndarray, columns: np.ndarray) -> ir.Value:
    """Weights [O, I, ...] with each row and each column multiplied; of [C, 1, ...] the columns are
    the channels."""
    shape = shape_of(weight)
    if shape[1] != len(columns):
        rows, columns = rows * np.repeat(columns, len(rows) // len(columns)), np.ones(1, np.float32)

    def read(some: slice) -> np.ndarray:
        taken = rows_of(weight, some)
        over = [1] * (len(shape) - 2)
        return taken * rows[some].reshape(-1, 1, *over) * columns.reshape(1, -1, *over)

    return b.by_rows(read, shape, f"{weight.name}/equal")
