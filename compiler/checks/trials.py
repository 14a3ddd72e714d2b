"""Tries roundings of a program on a few samples: all that a plan leaves, or groups of them, to find
those that contribute most.

Groups of neighbours are measured with all others silent, the worst one is halved as long as it
matters. Noises of roundings nearly add up. Work is counted in runs of samples.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from compiler.checks.agreement import known_channels
from compiler.checks.difference import Difference
from compiler.checks.simulation import Rounding, Simulation
from compiler.checks.verify import HeldOut, Outputs
from compiler.quantize.samples import Sample
from compiler.runtime.manifest import MeasuredEntry

# Of the samples that whole plans are tried on, groups of roundings are on the first few: one of
# SHARE, but FEW at the least where a sample's outputs do not have many values.
FEW = 2
SHARE = 16
MANY_VALUES = 256
# What NaN and infinities count as; the square fits a float.
WILD = 1e15
# Parts that the roundings are measured in at first.
PARTS = 8
# A group of less than this share of all noise is not looked into.
SMALL = 0.01
# Noise below this, as a share of what varies (40 dB), matters to nobody.
SILENT = 1e-4


@dataclass(frozen=True)
class Trial:
    """What a plan gives on calibration samples: its noise beside what varies, summed over outputs,
    and the figures of its outputs."""

    noise: float
    quality: MeasuredEntry


class _Yardstick:
    """How much each part of an output varies over all samples, by which its noise is measured."""

    def __init__(self, difference: Difference, samples: int) -> None:
        self._found = difference.variations()
        self._samples = samples

    def noise(self, got: np.ndarray, want: np.ndarray) -> float:
        """The noise of one sample beside what varies in one, summed over the parts."""
        if self._found is None:
            return 0.0
        if got.shape != want.shape:
            # How many rows there are depends on data: as bad as if all were wrong.
            return 1.0
        axis, parts = self._found
        # int8 has no NaN: a bundle that computes one fails.
        numbers = np.nan_to_num(got.astype(np.float64), nan=WILD, posinf=WILD, neginf=-WILD)
        wanted = np.nan_to_num(want.astype(np.float64), nan=WILD, posinf=WILD, neginf=-WILD)
        squares = np.square(np.atleast_1d(numbers - wanted))
        others = tuple(i for i in range(squares.ndim) if i != axis)
        by_channel = squares.sum(axis=others)
        total = 0.0
        for part, variation in parts:
            total += float(by_channel[part].sum()) * self._samples / variation
        return total


class Trials:
    """Runs plans of one program in simulation, on the same few samples.

    `like` tells what is known of the outputs. `runs` counts the runs of samples.
    """

    def __init__(self, simulation: Simulation, samples: Sequence[Sample], like: HeldOut) -> None:
        self.simulation = simulation
        self.samples = samples
        self._expected = [simulation.run(sample, ()) for sample in samples]
        self.truth = HeldOut(samples, self._expected, like.layers, like.rounded, like.told)
        self._yardsticks = self._measured()
        self.runs = len(samples)

    @property
    def values(self) -> int:
        """Numbers that the outputs of a sample hold."""
        return sum(np.size(self._expected[0][name]) for name in self._yardsticks)

    @property
    def can_tell(self) -> bool:
        """Whether any output holds floats, whose noise can be measured."""
        return bool(self._yardsticks)

    def trial(self, on: Collection[Rounding]) -> Trial:
        """What the outputs are with some roundings."""
        outputs = Outputs(self.truth)
        found = self._noise(on, len(self.samples), outputs)
        return Trial(found, outputs.report())

    def noise(self, on: Collection[Rounding], count: int) -> float:
        """The noise of some roundings on the first `count` samples."""
        return self._noise(on, count, None)

    def _measured(self) -> dict[str, _Yardstick]:
        known = known_channels(self.truth.readings())
        differences: dict[str, Difference] = {}
        for result in self._expected:
            for name, array in result.items():
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    difference = differences.setdefault(name, Difference(known.get(name)))
                    difference.add(array, array)
        count = len(self._expected)
        return {name: _Yardstick(found, count) for name, found in differences.items()}

    def _noise(self, on: Collection[Rounding], count: int, outputs: Outputs | None) -> float:
        total = 0.0
        for sample, wanted in zip(self.samples[:count], self._expected, strict=False):
            got = self.simulation.run(sample, on)
            if outputs is not None:
                outputs.add(got, wanted, sample)
            for name, yardstick in self._yardsticks.items():
                total += yardstick.noise(got[name], wanted[name])
        self.runs += count
        return total / count


@dataclass(frozen=True)
class Noises:
    """What roundings contribute: of each that was measured by itself, and of all others."""

    single: Mapping[str, float]
    rest: float

    @property
    def total(self) -> float:
        return sum(self.single.values()) + self.rest


def measure(trials: Trials, most_runs: int, step: Callable[[], None] = lambda: None) -> Noises:
    """Find the roundings that contribute most, with at most so many runs of samples.

    Groups of neighbours are measured with all others silent; the worst one is halved as long as it
    matters.
    """
    least = 1 if trials.values >= MANY_VALUES else FEW
    few = min(max(least, len(trials.samples) // SHARE), len(trials.samples))
    enough = trials.runs + most_runs
    waiting: list[tuple[float, int, int]] = []
    everything = trials.simulation.roundings

    def look(begin: int, end: int) -> None:
        if begin < end:
            noise = trials.noise(everything[begin:end], few)
            heapq.heappush(waiting, (-noise, begin, end))
            step()

    bounds = np.linspace(0, len(everything), PARTS + 1).astype(int)
    for begin, end in pairwise(bounds):
        look(int(begin), int(end))
    single: dict[str, float] = {}
    left: list[float] = []
    while waiting:
        negative, begin, end = heapq.heappop(waiting)
        noise = -negative
        if end - begin == 1:
            single[everything[begin].name] = noise
            continue
        total = noise + sum(single.values()) + sum(left) - sum(entry[0] for entry in waiting)
        is_small = noise <= max(SILENT, SMALL * min(total, 1.0))
        if is_small or trials.runs + 2 * few > enough:
            left.append(noise)
            continue
        middle = (begin + end) // 2
        look(begin, middle)
        look(middle, end)
    return Noises(single, sum(left))
