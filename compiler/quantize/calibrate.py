"""Ranges of activations: what the float model shows on the samples, seen by an observer."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.errors import CalibrationError, OptionError
from compiler.quantize.samples import Sample
from compiler.reference import Reference

OBSERVERS = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
BINS = 2048

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
    with Reference(model, list(watched.values())) as reference:
        ranges = _extremes(reference, watched, samples, progress)
        clipped = [name for name in watched if observers.of(name) != "minmax"]
        if clipped:
            histograms = _histograms(reference, ranges, clipped, samples, progress)
            for name, counts in histograms.items():
                ranges[name] = _CLIP[observers.of(name)](counts, *ranges[name])
    return ranges


def _arrays(reference: Reference, sample: Sample) -> dict[str, np.ndarray]:
    return {**sample, **reference.run(sample)}


def _extremes(
    reference: Reference, watched: Mapping[str, ir.Value], samples: Iterable[Sample], progress: Callable[[], None]
) -> Ranges:
    ranges: Ranges = {}
    for sample in samples:
        found = _arrays(reference, sample)
        for name in watched:
            low, high = float(found[name].min()), float(found[name].max())
            if not np.isfinite(low) or not np.isfinite(high):
                raise CalibrationError(
                    f"tensor '{name}' {list(found[name].shape)} becomes NaN or infinite in the float model: "
                    "check the samples and the weights"
                )
            before = ranges.get(name, (low, high))
            ranges[name] = (min(before[0], low), max(before[1], high))
        progress()
    return ranges


def _histograms(
    reference: Reference,
    ranges: Ranges,
    names: Sequence[str],
    samples: Iterable[Sample],
    progress: Callable[[], None],
) -> dict[str, np.ndarray]:
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for sample in samples:
        found = _arrays(reference, sample)
        for name in names:
            low, high = ranges[name]
            if high > low:
                counts[name] += np.histogram(found[name], BINS, (low, high))[0]
        progress()
    return counts


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
    best, chosen = np.inf, (low, high)
    for share in np.linspace(0.3, 1.0, 71):
        first, last = min(low, 0) * share, max(high, 0) * share
        first, last = max(first, low) if low > 0 else first, min(last, high) if high < 0 else last
        step = (last - first) / 255
        outside = np.maximum(centres - last, 0) + np.maximum(first - centres, 0)
        error = float((counts * (outside**2 + step**2 / 12)).sum())
        if error < best:
            best, chosen = error, (first, last)
    return chosen


_CLIP = {"percentile": _percentile, "mse": _mse}
