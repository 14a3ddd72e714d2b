"""Ranges of activations: what the float model shows on the samples, seen by an observer."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler import ir as cir
from compiler.errors import CalibrationError, OptionError
from compiler.quantize.samples import Sample
from compiler.reference import Reference

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
        """From `minmax`, `percentile`, `mse` or `PATTERN=OBSERVER`, e.g. `conv*=mse`. Raises OptionError."""
        default, patterns = "minmax", []
        for option in options:
            pattern, _, name = option.rpartition("=")
            if name not in OBSERVERS:
                raise OptionError(f"--observer {option}: '{name}' is none of {', '.join(OBSERVERS)}")
            if pattern:
                patterns.append((pattern, name))
            else:
                default = name
        return cls(default, tuple(patterns))

    def of(self, name: str) -> str:
        return next((o for pattern, o in self.patterns if fnmatch.fnmatchcase(name, pattern)), self.default)


def calibrate(
    model: ir.Model,
    values: Iterable[ir.Value],
    samples: Iterable[Sample],
    observers: Observers,
    progress: Callable[[], None] = lambda: None,
) -> Ranges:
    """(lowest, highest) of each of `values` over the samples; percentile and mse look at them a second time."""
    watched = {str(v.name): v for v in values}
    ranges = _extremes(model, watched, samples, progress)
    clipped = {name: value for name, value in watched.items() if observers.of(name) != "minmax"}
    if clipped:
        for name, counts in _histograms(model, ranges, clipped, samples, progress).items():
            ranges[name] = _CLIP[observers.of(name)](counts, *ranges[name])
    return ranges


def _extremes(
    model: ir.Model, watched: Mapping[str, ir.Value], samples: Iterable[Sample], progress: Callable[[], None]
) -> Ranges:
    """Lowest and highest, found inside the graph, so that not all activations are in memory at once."""
    found = _reductions(model, watched, samples, progress, channels=False)
    return {name: (float(low.min()), float(high.max())) for name, (low, high) in found.items()}


def channel_extremes(
    model: ir.Model,
    values: Iterable[ir.Value],
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(lowest, highest) [2, C] of each channel (last axis) of each of `values` over either half of the samples."""
    return _reductions(model, {str(v.name): v for v in values}, samples, progress, channels=True)


def _reductions(
    model: ir.Model,
    watched: Mapping[str, ir.Value],
    samples: Iterable[Sample],
    progress: Callable[[], None],
    channels: bool,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Extremes over the samples of even and of odd number, one row for each; of a single sample, the same twice."""
    halves: tuple[dict[str, tuple[np.ndarray, np.ndarray]], ...] = ({}, {})
    with Reference(_reducing(model, watched, channels)) as reference:
        for number, sample in enumerate(samples):
            found, half = reference.run(sample), halves[number % 2]
            for name, value in watched.items():
                low, high, mean = (found[f"{name}/{kind}"] for kind in _REDUCTIONS)
                if not all(np.isfinite(a).all() for a in (low, high, mean)):
                    raise CalibrationError(
                        f"tensor '{name}' {list(cir.shape(value))} becomes NaN or infinite in the float model: "
                        "check the samples and the weights"
                    )
                before = half.get(name, (low, high))
                half[name] = (np.minimum(before[0], low), np.maximum(before[1], high))
            progress()
    even, odd = halves[0], halves[1] or halves[0]
    return {n: (np.stack([even[n][0], odd[n][0]]), np.stack([even[n][1], odd[n][1]])) for n in even}


# The mean is there to notice NaN, which minimum and maximum may pass over.
_REDUCTIONS = ("ReduceMin", "ReduceMax", "ReduceMean")


def _reducing(model: ir.Model, watched: Mapping[str, ir.Value], channels: bool) -> ir.Model:
    """A copy of the model whose outputs are the reductions of the watched tensors, to one number or one per channel."""
    copy = model.clone()
    graph = copy.graph
    values = {str(v.name): v for v in cir.tensor_values(graph)}
    while graph.outputs:
        graph.outputs.pop()
    for name in watched:
        rank = len(cir.shape(values[name]))
        axes = ir.Value(name=f"{name}/axes", const_value=ir.tensor(np.arange(rank - channels, dtype=np.int64)))
        graph.register_initializer(axes)
        for kind in _REDUCTIONS:
            node = ir.node(kind, [values[name], axes], {"keepdims": 0}, num_outputs=1, name=f"{name}/{kind}")
            (out,) = node.outputs
            shape = cir.shape(values[name])[-1:] if channels else ()
            out.name, out.type, out.shape = node.name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
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
    progress: Callable[[], None],
) -> dict[str, np.ndarray]:
    """How often each activation falls into each of BINS parts of its range; a few tensors at a time."""
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
            progress()
    return counts


def batches(watched: Mapping[str, ir.Value]) -> list[list[str]]:
    """Names in groups whose tensors take at most BATCH_BYTES together."""
    found: list[list[str]] = []
    room = 0
    for name, value in watched.items():
        room -= 4 * cir.size(value)
        if room < 0 or not found:
            found.append([])
            room = BATCH_BYTES - 4 * cir.size(value)
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
    """The range of least expected squared error: step^2 / 12 inside, the distance to the border outside."""
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
