"""What the float model shows of activations on the samples, and ranges for them, chosen by an
observer."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.errors import CalibrationError, OptionError
from compiler.graph import all_activations, element_count, shape_of
from compiler.graph.reference import Reference
from compiler.ops.common import channels
from compiler.quantize.samples import Sample

PERCENTILE = 99.99
# Parts of a range that values are counted in.
BINS = 2048
# Bytes of activations that are looked at in one run.
BATCH_BYTES = 64 << 20

# (lowest, highest) of activations, by name.
Ranges = dict[str, tuple[float, float]]
# A range from counts of values in BINS parts of [low, high].
Clip = Callable[[np.ndarray, float, float], tuple[float, float]]


def _percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range that leaves out an equal share at both ends, 100 - PERCENTILE in all."""
    total = counts.sum()
    if not total:
        return low, high
    cumulative = np.cumsum(counts) / total
    edges = np.linspace(low, high, BINS + 1)
    share = (100 - PERCENTILE) / 200
    first = int(np.searchsorted(cumulative, share))
    last = int(np.searchsorted(cumulative, 1 - share))
    return float(edges[first]), float(edges[min(last + 1, BINS)])


def _mse(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range of least expected squared error: step^2 / 12 inside, the distance to the end
    outside."""
    if not counts.sum():
        return low, high
    edges = np.linspace(low, high, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    least = float("inf")
    best = (low, high)
    for share in np.linspace(0.3, 1.0, 71):
        # Ranges hold zero; those of one sign do not begin before their values do.
        first = min(low, 0) * float(share)
        last = max(high, 0) * float(share)
        if low > 0:
            first = max(first, low)
        if high < 0:
            last = min(last, high)
        step = (last - first) / 255
        # Inside, errors spread evenly over a step; outside, they are the distance to the end.
        outside = np.maximum(centres - last, 0) + np.maximum(first - centres, 0)
        error = float((counts * (outside**2 + step**2 / 12)).sum())
        if error < least:
            least = error
            best = (first, last)
    return best


# How each observer narrows the range that was seen; `minmax` leaves it.
_CLIPS: Mapping[str, Clip] = {"percentile": _percentile, "mse": _mse}
OBSERVERS = ("minmax", *_CLIPS)


@dataclass(frozen=True)
class Observers:
    """Which observer each activation gets: the first pattern that matches its name, else `default`.

    `patterns` are (pattern, observer), with * and ? as in file names.
    """

    default: str = "minmax"
    patterns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, options: Sequence[str]) -> Observers:
        """From `minmax`, `percentile`, `mse` or `PATTERN=OBSERVER`, e.g. `conv*=mse`. Raises
        OptionError."""
        default = "minmax"
        patterns = []
        for option in options:
            pattern, _, name = option.rpartition("=")
            if name not in OBSERVERS:
                known = ", ".join(OBSERVERS)
                raise OptionError(f"{option}: '{name}' is none of {known}", "observers")
            if pattern:
                patterns.append((pattern, name))
            else:
                default = name
        return cls(default, tuple(patterns))

    def check(self, names: Collection[str]) -> None:
        """Raises OptionError for a pattern that matches none of the activations of these names."""
        for pattern, observer in self.patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise OptionError(
                    f"{pattern}={observer}: no activation has this name; `inspect --netron` "
                    "writes the graph with all names",
                    "observers",
                )

    def of(self, name: str) -> str:
        """The observer of the activation of this name."""
        for pattern, observer in self.patterns:
            if fnmatch.fnmatchcase(name, pattern):
                return observer
        return self.default


@dataclass(frozen=True)
class ChannelStats:
    """What an activation shows, by channel (last axis): lowest and highest over the samples of even
    and of odd number [2, C], mean and mean square over all [C]. A number has one channel."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    square: np.ndarray

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest of all channels."""
        return float(self.low.min()), float(self.high.max())

    def times(self, factors: np.ndarray) -> ChannelStats:
        """What it would show if each channel were multiplied by a positive factor."""
        return ChannelStats(
            self.low * factors, self.high * factors, self.mean * factors, self.square * factors**2
        )


def calibrate(
    model: ir.Model,
    values: Iterable[ir.Value],
    stats: Mapping[str, ChannelStats],
    samples: Iterable[Sample],
    observers: Observers,
) -> Ranges:
    """(lowest, highest) of each of `values`, which `stats` has; percentile and mse look at the
    samples once more."""
    watched = {str(value.name): value for value in values}
    ranges = {name: stats[name].range for name in watched}
    clipped = {name: value for name, value in watched.items() if observers.of(name) in _CLIPS}
    if clipped:
        for name, counts in _histograms(model, ranges, clipped, samples).items():
            clip = _CLIPS[observers.of(name)]
            ranges[name] = clip(counts, *ranges[name])
    return ranges


def observe(
    model: ir.Model,
    values: Iterable[ir.Value],
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, ChannelStats]:
    """What each of `values` shows over the samples, by name.

    It is found inside the graph, so that not all activations are in memory at once. `progress` is
    called behind each sample. Raises CalibrationError where a value becomes NaN or infinite.
    """
    watched = {str(value.name): value for value in values}
    seen: dict[str, _Seen] = {name: _Seen() for name in watched}
    with Reference(_reducing(model, watched)) as reference:
        for sample in samples:
            results = reference.run(sample)
            for name, value in watched.items():
                seen[name].add(_reduced(results, name, value))
            progress()
    found = {}
    for name, value in watched.items():
        if seen[name].count:
            positions = element_count(value) // channels(value)
            found[name] = seen[name].joined(positions)
    return found


def _reduced(results: Mapping[str, np.ndarray], name: str, value: ir.Value) -> ChannelStats:
    """The reductions of one sample: lowest, highest, mean, and sum of squares [C] each."""
    reductions = [np.atleast_1d(results[f"{name}/{kind}"]) for kind in _REDUCTIONS]
    found = ChannelStats(*reductions)
    if not np.isfinite([found.low, found.high, found.mean]).all():
        raise CalibrationError(
            f"tensor '{name}' {list(shape_of(value))} becomes NaN or infinite in the float "
            "model: check the samples and the weights"
        )
    return found


class _Seen:
    """Adds up what an activation shows, apart for samples of even and of odd number.

    Lowest and highest are kept for each half, mean and sum of squares are added up.
    """

    def __init__(self) -> None:
        self.count = 0
        self._halves: list[ChannelStats] = []

    def add(self, sample: ChannelStats) -> None:
        if self.count < 2:
            self._halves.append(sample)
        else:
            half = self._halves[self.count % 2]
            self._halves[self.count % 2] = ChannelStats(
                np.minimum(half.low, sample.low),
                np.maximum(half.high, sample.high),
                half.mean + sample.mean,
                half.square + sample.square,
            )
        self.count += 1

    def joined(self, positions: int) -> ChannelStats:
        """Both halves, of an activation with so many values in each channel; of a single sample,
        the same twice."""
        first, last = self._halves[0], self._halves[-1]
        mean = np.sum([half.mean for half in self._halves], axis=0)
        square = np.sum([half.square for half in self._halves], axis=0)
        return ChannelStats(
            np.stack([first.low, last.low]),
            np.stack([first.high, last.high]),
            mean / self.count,
            square / (self.count * positions),
        )


# The mean also notices NaN, which minimum and maximum may pass over.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean", "ReduceSumSquare")


def _reducing(model: ir.Model, watched: Iterable[str]) -> ir.Model:
    """A copy of the model whose outputs are the reductions of the watched tensors, to one number
    for each channel."""
    copy = model.clone()
    graph = copy.graph
    values = {str(value.name): value for value in all_activations(graph)}
    while graph.outputs:
        graph.outputs.pop()
    for name in watched:
        value = values[name]
        rank = len(shape_of(value))
        others = np.arange(max(rank - 1, 0), dtype=np.int64)
        axes = ir.Value(name=f"{name}/axes", const_value=ir.tensor(others))
        graph.register_initializer(axes)
        for kind in _REDUCTIONS:
            _add_reduction(graph, kind, value, axes)
    return copy


def _add_reduction(graph: ir.Graph, kind: str, value: ir.Value, axes: ir.Value) -> None:
    """Make the reduction of a value over `axes` an output of the graph."""
    node = ir.node(
        kind,
        [value, axes],
        {"keepdims": 0, "noop_with_empty_axes": 1},
        num_outputs=1,
        name=f"{value.name}/{kind}",
    )
    output = node.outputs[0]
    output.name = node.name
    output.type = ir.TensorType(ir.DataType.FLOAT)
    output.shape = ir.Shape(shape_of(value)[-1:])
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        # At once, so that the tensor can be freed.
        graph.insert_after(producer, node)
    graph.outputs.append(output)


def _histograms(
    model: ir.Model,
    ranges: Ranges,
    watched: Mapping[str, ir.Value],
    samples: Iterable[Sample],
) -> dict[str, np.ndarray]:
    """How often each activation falls into each of BINS parts of its range; a few tensors at a
    time."""
    counts = {name: np.zeros(BINS, np.int64) for name in watched}
    inner = [value for value in watched.values() if not value.is_graph_input()]
    with Reference(model, inner) as reference:
        for sample in samples:
            for names in batches(watched):
                made = [name for name in names if name not in sample]
                found = {**sample, **reference.run(sample, made)}
                for name in names:
                    low, high = ranges[name]
                    if high > low:
                        counts[name] += np.histogram(found[name], BINS, (low, high))[0]
    return counts


def batches(watched: Mapping[str, ir.Value]) -> list[list[str]]:
    """Names in groups whose tensors take at most BATCH_BYTES together."""
    groups: list[list[str]] = []
    room = 0
    for name, value in watched.items():
        size = 4 * element_count(value)
        if not groups or size > room:
            groups.append([])
            room = BATCH_BYTES
        groups[-1].append(name)
        room -= size
    return groups
