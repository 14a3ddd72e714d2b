"""What the float model shows of activations on the samples, and ranges for them, chosen by an
observer."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.errors import CalibrationError, OptionError
from compiler.graph import all_activations, element_count, shape_of
from compiler.graph.reference import Reference
from compiler.ops.common import channels
from compiler.quantize.samples import Sample

OBSERVERS = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
BINS = 2048
BATCH_BYTES = 64 << 20

Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Observers:
    """Which observer each activation gets: the first pattern that matches its name, else `default`."""

    default: str = "minmax"
    patterns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, options: Sequence[str]) -> Observers:
        """From `minmax`, `percentile`, `mse` or `PATTERN=OBSERVER`, e.g. `conv*=mse`. Raises
        OptionError."""
        default, patterns = "minmax", []
        for option in options:
            pattern, _, name = option.rpartition("=")
            if name not in OBSERVERS:
                raise OptionError(
                    f"--observer {option}: '{name}' is none of {', '.join(OBSERVERS)}"
                )
            if pattern:
                patterns.append((pattern, name))
            else:
                default = name
        return cls(default, tuple(patterns))

    def of(self, name: str) -> str:
        return next(
            (o for pattern, o in self.patterns if fnmatch.fnmatchcase(name, pattern)), self.default
        )


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
    """(lowest, highest) of each of `values`, which `shown` has; percentile and mse look at the
    samples once more."""
    watched = {str(v.name): v for v in values}
    ranges = {name: stats[name].range for name in watched}
    clipped = {name: value for name, value in watched.items() if observers.of(name) != "minmax"}
    if clipped:
        for name, counts in _histograms(model, ranges, clipped, samples).items():
            ranges[name] = _CLIP[observers.of(name)](counts, *ranges[name])
    return ranges


def observe(
    model: ir.Model,
    values: Iterable[ir.Value],
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, ChannelStats]:
    """What each of `values` shows over the samples, by name. It is found inside the graph, so that
    not all activations are in memory at once. Raises CalibrationError where one becomes NaN or
    infinite."""
    watched = {str(v.name): v for v in values}
    seen: dict[str, list[ChannelStats]] = {name: [] for name in watched}
    count = 0
    with Reference(_reducing(model, watched)) as reference:
        for sample in samples:
            results = reference.run(sample)
            for name, value in watched.items():
                now = ChannelStats(
                    *(np.atleast_1d(results[f"{name}/{kind}"]) for kind in _REDUCTIONS)
                )
                if not all(np.isfinite(a).all() for a in (now.low, now.high, now.mean)):
                    raise CalibrationError(
                        f"tensor '{name}' {list(shape_of(value))} becomes NaN or infinite in the float model: "
                        "check the samples and the weights"
                    )
                _add(seen[name], now, count)
            count += 1
            progress()
    return {
        name: _joined(halves, count, element_count(watched[name]) // channels(watched[name]))
        for name, halves in seen.items()
        if halves
    }


def _add(halves: list[ChannelStats], now: ChannelStats, number: int) -> None:
    """Let one half of the samples show what its next one does; mean and square are summed."""
    if number < 2:
        halves.append(now)
        return
    half = halves[number % 2]
    low, high = np.minimum(half.low, now.low), np.maximum(half.high, now.high)
    halves[number % 2] = ChannelStats(low, high, half.mean + now.mean, half.square + now.square)


def _joined(halves: Sequence[ChannelStats], count: int, positions: int) -> ChannelStats:
    """Both halves; of a single sample, the same twice."""
    first, last = halves[0], halves[-1]
    mean, square = (sum(getattr(half, name) for half in halves) for name in ("mean", "square"))
    return ChannelStats(
        np.stack([first.low, last.low]),
        np.stack([first.high, last.high]),
        mean / count,
        square / (count * positions),
    )


# The mean also notices NaN, which minimum and maximum may pass over.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean", "ReduceSumSquare")


def _reducing(model: ir.Model, watched: Mapping[str, ir.Value]) -> ir.Model:
    """A copy of the model whose outputs are the reductions of the watched tensors, to one number
    for each channel."""
    copy = model.clone()
    graph = copy.graph
    values = {str(v.name): v for v in all_activations(graph)}
    while graph.outputs:
        graph.outputs.pop()
    for name in watched:
        rest = max(len(shape_of(values[name])) - 1, 0)
        axes = ir.Value(name=f"{name}/axes", const_value=ir.tensor(np.arange(rest, dtype=np.int64)))
        graph.register_initializer(axes)
        for kind in _REDUCTIONS:
            node = ir.node(
                kind,
                [values[name], axes],
                {"keepdims": 0, "noop_with_empty_axes": 1},
                num_outputs=1,
                name=f"{name}/{kind}",
            )
            (out,) = node.outputs
            shape = shape_of(values[name])[-1:]
            out.name, out.type, out.shape = (
                node.name,
                ir.TensorType(ir.DataType.FLOAT),
                ir.Shape(shape),
            )
            producer = values[name].producer()
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(producer, node)  # at once, so that the tensor can be freed
            graph.outputs.append(out)
    return copy


def _histograms(
    model: ir.Model,
    ranges: Ranges,
    watched: Mapping[str, ir.Value],
    samples: Iterable[Sample],
) -> dict[str, np.ndarray]:
    """How often each activation falls into each of BINS parts of its range; a few tensors at a
    time."""
    counts = {name: np.zeros(BINS, np.int64) for name in watched}
    inner = [v for v in watched.values() if not v.is_graph_input()]
    with Reference(model, inner) as reference:
        for sample in samples:
            for names in batches(watched):
                found = {**sample, **reference.run(sample, [n for n in names if n not in sample])}
                for name in names:
                    low, high = ranges[name]
                    if high > low:
                        counts[name] += np.histogram(found[name], BINS, (low, high))[0]
    return counts


def batches(watched: Mapping[str, ir.Value]) -> list[list[str]]:
    """Names in groups whose tensors take at most BATCH_BYTES together."""
    found: list[list[str]] = []
    room = 0
    for name, value in watched.items():
        room -= 4 * element_count(value)
        if room < 0 or not found:
            found.append([])
            room = BATCH_BYTES - 4 * element_count(value)
        found[-1].append(name)
    return found


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
    """The range of least expected squared error: step^2 / 12 inside, the distance to the border
    outside."""
    if not counts.sum():
        return low, high
    edges = np.linspace(low, high, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    best, chosen = float("inf"), (low, high)
    for share in np.linspace(0.3, 1.0, 71):
        first, last = min(low, 0) * float(share), max(high, 0) * float(share)
        first, last = max(first, low) if low > 0 else first, min(last, high) if high < 0 else last
        step = (last - first) / 255
        outside = np.maximum(centres - last, 0) + np.maximum(first - centres, 0)
        error = float((counts * (outside**2 + step**2 / 12)).sum())
        if error < best:
            best, chosen = error, (first, last)
    return chosen


_CLIP = {"percentile": _percentile, "mse": _mse}
