"""Channels of a tensor: along which axis they are, which of them belong together, and how much each
varies over samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from compiler.graph import Shape

# Channels whose largest magnitudes are further apart belong to different parts. Int8 with one scale
# leaves channels of a quarter of the range 6 bits, which still tells something.
APART = 4.0
# A part of small values with a smaller share of the channels is a few quiet channels, not a part.
LEAST_PART = 1 / 8


@dataclass(frozen=True)
class Channels:
    """What is known of a tensor's channels: their axis, and at which of them parts of another kind
    begin."""

    axis: int
    splits: tuple[int, ...] = ()


@dataclass
class ChannelSums:
    """Sums for each index along one axis, over samples and all other axes, each [K] float64.

    Float values are taken relative to `shift`, their mean in the first sample: with the square of a
    large mean in it, a sum would lose all digits of a small variation.
    """

    axis: int
    shift: np.ndarray
    count: np.ndarray  # values that were added up
    total: np.ndarray  # sum (want - shift)
    square: np.ndarray  # sum (want - shift)^2
    energy: np.ndarray  # sum want^2
    noise: np.ndarray  # sum (got - want)^2
    peak: np.ndarray  # max |want|
    low: np.ndarray  # min want, at most 0

    @classmethod
    def of(cls, axis: int, want: np.ndarray, valid: np.ndarray) -> ChannelSums:
        """Empty sums for tensors like `want`; `valid` says which of its values count."""
        others = _other_axes(axis, want.ndim)
        size = want.shape[axis]
        mean = want.sum(axis=others) / np.maximum(valid.sum(axis=others), 1)
        return cls(
            axis=axis,
            shift=mean,
            count=np.zeros(size),
            total=np.zeros(size),
            square=np.zeros(size),
            energy=np.zeros(size),
            noise=np.zeros(size),
            peak=np.zeros(size),
            low=np.zeros(size),
        )

    def fits(self, array: np.ndarray) -> bool:
        """Whether an array has these channels; it may not where its shape depends on data."""
        return self.axis < array.ndim and array.shape[self.axis] == len(self.shift)

    def add(self, got: np.ndarray, want: np.ndarray, valid: np.ndarray) -> None:
        """Add one sample; values that are not `valid` have to be 0 in both."""
        others = _other_axes(self.axis, want.ndim)
        shape = [1] * want.ndim
        shape[self.axis] = -1
        offset = np.where(valid, want - self.shift.reshape(shape), 0)
        self.count += valid.sum(axis=others)
        self.total += offset.sum(axis=others)
        self.square += (offset**2).sum(axis=others)
        self.energy += (want**2).sum(axis=others)
        self.noise += ((got - want) ** 2).sum(axis=others)
        self.peak = np.maximum(self.peak, np.abs(want).max(axis=others, initial=0))
        self.low = np.minimum(self.low, want.min(axis=others, initial=0))

    @property
    def variation(self) -> np.ndarray:
        """sum (want - mean)^2 of each index [K]."""
        squared_offset = self.total**2 / np.maximum(self.count, 1)
        variation: np.ndarray = np.maximum(self.square - squared_offset, 0)
        return variation

    @property
    def explained(self) -> float:
        """The share of all variation that the means of the indices explain (adjusted R^2).

        -inf where every index has one value only, so that its mean explains anything.
        """
        size = len(self.shift)
        count = float(self.count.sum())
        if count <= size:
            return -math.inf
        sums = self.total + self.count * self.shift
        means = sums / np.maximum(self.count, 1)
        mean = sums.sum() / count
        between = float((self.count * (means - mean) ** 2).sum())
        within = float(self.variation.sum())
        if within + between == 0:
            return 0.0
        # Adjusted for the number of means, which grows with the axis.
        unexplained = within / (count - size)
        variance = (within + between) / max(count - 1, 1)
        return 1 - unexplained / variance

    def parts(self) -> list[np.ndarray]:
        """Indices of the channels in parts, by size."""
        are_shares = (self.low >= 0) & (self.peak <= 1 + 1e-6)
        return parts_by_size(self.peak, are_shares)


def _other_axes(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(index for index in range(rank) if index != axis)


def channel_axes(shape: Shape) -> tuple[int, ...]:
    """Axes that may be the channels of a tensor: of a vector its own, of rows and columns either,
    beyond two dimensions the second and the last (NCHW, NHWC, [N, C, L], [N, L, C])."""
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    last = len(shape) - 1
    if not wide:
        return (last,)
    if len(wide) == 1:
        return (wide[0],)
    if len(shape) == 2:
        return (1, 0)
    if len(shape) > 3:
        # A picture of one channel.
        if shape[1] == 1:
            return (1,)
        if shape[last] == 1:
            return (last,)
    return (1, last)


def parts_by_size(peaks: np.ndarray, are_shares: np.ndarray) -> list[np.ndarray]:
    """Indices of channels [K], in parts whose largest magnitudes are more than APART times apart,
    largest first.

    Channels that are always zero go with the smallest. A part of small values that has less than
    LEAST_PART of the channels joins the next larger one. So do channels of values in [0, 1]
    (`are_shares` [K]) where those of the next larger part are such too: they have one unit, however
    rare what they stand for is.
    """
    order = np.argsort(-peaks, kind="stable")
    alive = order[peaks[order] > 0]
    if not len(alive):
        return [np.sort(order)]
    ratios = peaks[alive[:-1]] / peaks[alive[1:]]
    groups = np.split(alive, np.flatnonzero(ratios > APART) + 1)
    zero = order[peaks[order] == 0]
    groups[-1] = np.concatenate([groups[-1], zero])
    parts = [groups[0]]
    for group in groups[1:]:
        has_one_unit = are_shares[group].all() and are_shares[parts[-1]].all()
        if has_one_unit or len(group) < LEAST_PART * len(peaks):
            parts[-1] = np.concatenate([parts[-1], group])
        else:
            parts.append(group)
    return [np.sort(part) for part in parts]


def slice_text(axis: int, indices: np.ndarray) -> str:
    """Sorted indices along an axis as Python writes them: [:, 4:22].

    Of more than three runs, the first two and how many indices there are in all.
    """
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    texts = [_run_text(run) for run in runs]
    if len(texts) == 1:
        shown = texts[0]
    elif len(texts) <= 3:
        shown = f"({', '.join(texts)})"
    else:
        shown = f"({', '.join(texts[:2])}, ... {len(indices)} in all)"
    return f"[{':, ' * axis}{shown}]"


def _run_text(run: np.ndarray) -> str:
    if len(run) == 1:
        return str(run[0])
    return f"{run[0]}:{run[-1] + 1}"
