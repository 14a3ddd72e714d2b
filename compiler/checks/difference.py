"""How far a tensor is from its float reference, over samples: of what varies, part by part, and in
the plain sense.

A constant is not signal. The signal of a channel is how much the float tensor varies around that
channel's mean, over samples and positions; the noise is the whole error, a constant offset
included:

    SQNR = 10 log10(sum (want - mean of its channel)^2 / sum (got - want)^2)

Parts of different size do not hide each other. Channels whose largest magnitudes differ by more
than `APART` times, such as boxes in pixels beside scores in [0, 1], are measured each by itself,
and the worst part counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# A perfect match has no noise; JSON has no infinity.
PERFECT_DB = 200.0
# What an infinity on one side only counts as, and the most that counts: its square fits float64.
HUGE = 1e100
# A tensor that varies by less, as a share of its energy, does not vary: std below 1e-5 of its size.
LEAST_VARIATION = 1e-10
# Channels whose magnitudes differ by more than this belong to different parts.
APART = 4.0
# A part of small values with a smaller share of the channels is a few quiet channels, not a part.
LEAST_PART = 1 / 8
# Values per channel that a figure for a single channel needs, and how much it varies beside its
# part.
LEAST_VALUES = 8
LEAST_SHARE = 0.01
# More channels than this are not looked at one by one.
MOST_CHANNELS = 4096


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), within +-PERFECT_DB."""
    if noise == 0:
        return PERFECT_DB
    if signal == 0:
        return -PERFECT_DB
    ratio = 10 * (math.log10(signal) - math.log10(noise))
    return round(min(max(ratio, -PERFECT_DB), PERFECT_DB), 2)


@dataclass
class _Axis:
    """Sums for each index along one axis, over samples and all other axes [K].

    Float values are taken relative to `shift`, their mean in the first sample: large means would
    cancel all digits of a small variation.
    """

    axis: int
    shift: np.ndarray
    count: np.ndarray
    total: np.ndarray
    square: np.ndarray
    energy: np.ndarray
    noise: np.ndarray
    peak: np.ndarray
    low: np.ndarray

    @classmethod
    def of(cls, axis: int, want: np.ndarray, valid: np.ndarray) -> _Axis:
        others = tuple(i for i in range(want.ndim) if i != axis)
        count = valid.sum(axis=others)
        shift = want.sum(axis=others) / np.maximum(count, 1)
        return cls(axis, shift, *(np.zeros(want.shape[axis]) for _ in range(7)))

    def add(self, got: np.ndarray, want: np.ndarray, valid: np.ndarray) -> None:
        others = tuple(i for i in range(want.ndim) if i != self.axis)
        shape = [-1 if i == self.axis else 1 for i in range(want.ndim)]
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
        """Of each index, sum (want - mean)^2."""
        return np.maximum(self.square - self.total**2 / np.maximum(self.count, 1), 0)

    @property
    def explained(self) -> float:
        """The share of all variation that the means of the indices explain, adjusted for their
        number; -inf where every index has one value only, so that its mean explains anything."""
        size, count = len(self.shift), float(self.count.sum())
        if count <= size:
            return -math.inf
        raised = self.total + self.count * self.shift
        mean = raised.sum() / count
        between = float((self.count * (raised / np.maximum(self.count, 1) - mean) ** 2).sum())
        within = float(self.variation.sum())
        if within + between == 0:
            return 0.0
        return 1 - (within / (count - size)) / ((within + between) / max(count - 1, 1))


@dataclass(frozen=True)
class Channels:
    """What is known of a tensor's channels: their axis, and at which of them parts of another kind
    begin."""

    axis: int
    splits: tuple[int, ...] = ()


class Difference:
    """Accumulates the difference between a tensor and its float reference over samples.

    Where nothing is `known` of its channels, they are along the axis whose means explain most, and
    parts go by size.
    """

    def __init__(self, known: Channels | None = None) -> None:
        self.known = known
        self.signal = self.noise = self.product = self.energy = self.largest = 0.0
        self._axes: list[_Axis] | None = None

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        """Add one sample.

        Where the float model itself gives NaN or infinity, the same is right; elsewhere they are an
        error. So is what one of them lacks, where the shape depends on data.
        """
        if got.shape != want.shape:
            got, want = _same_shape(got, want)
        if got.ndim == 0:
            got, want = got.reshape(1), want.reshape(1)
        got, want = got.astype(np.float64), want.astype(np.float64)
        alike = ~np.isfinite(want) & ((got == want) | (np.isnan(got) & np.isnan(want)))
        got[alike] = want[alike] = 0
        got, want = (np.clip(np.nan_to_num(array), -HUGE, HUGE) for array in (got, want))
        error = got - want
        self.signal += float((want**2).sum())
        self.noise += float((error**2).sum())
        self.product += float((got * want).sum())
        self.energy += float((got**2).sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0)))
        self._add_axes(got, want, ~alike)

    def _add_axes(self, got: np.ndarray, want: np.ndarray, valid: np.ndarray) -> None:
        if not want.size:
            return
        if self._axes is None:
            axes = (
                channel_axes(want.shape) if self.known is None else (self.known.axis % want.ndim,)
            )
            self._axes = [_Axis.of(axis, want, valid) for axis in axes]
        # An axis whose size depends on data has no channels.
        self._axes = [a for a in self._axes if _fits(a, want)]
        for axis in self._axes:
            axis.add(got, want, valid)

    @property
    def _channels(self) -> _Axis | None:
        """The axis whose indices have means that explain most; the first of equals."""
        return max(self._axes or (), key=lambda axis: axis.explained, default=None)

    @property
    def plain_sqnr_db(self) -> float:
        """Signal to quantization noise with the mean as signal, 10 log10(sum want^2 / sum (got -
        want)^2)."""
        return decibel(self.signal, self.noise)

    @property
    def sqnr_db(self) -> float | None:
        """That of what varies, in the worst part; None where the samples do not vary enough to
        tell."""
        if self.noise == 0:
            return PERFECT_DB
        return min((db for db, _ in self._parts()), default=None)

    @property
    def relative_noise(self) -> float:
        """Noise as a share of what varies; of all signal where nothing does."""
        channels = self._channels
        variation = float(channels.variation.sum()) if channels is not None else 0.0
        if variation <= LEAST_VARIATION * self.signal:
            variation = self.signal
        return self.noise / (variation or 1.0)

    @property
    def cosine(self) -> float:
        norm = math.sqrt(self.signal) * math.sqrt(self.energy)
        return round(self.product / norm, 6) if norm else float(self.signal == self.energy)

    def parts(self) -> tuple[int, list[np.ndarray]] | None:
        """(axis of the channels, their indices by parts); None for a tensor without channels."""
        channels = self._channels
        if channels is None:
            return None
        if self.known is not None and self.known.splits:
            return channels.axis, np.split(np.arange(len(channels.peak)), self.known.splits)
        shares = (channels.low >= 0) & (channels.peak <= 1 + 1e-6)
        return channels.axis, parts_by_size(channels.peak, shares)

    def _parts(self) -> list[tuple[float, np.ndarray]]:
        """(SQNR, channels) of the parts that vary."""
        found = self.parts()
        channels = self._channels
        if found is None or channels is None:
            return []
        return [(db, part) for part in found[1] if (db := _sqnr(channels, part)) is not None]

    @property
    def variation(self) -> float:
        """How much the worst part varies, as a share of its size: root of sum (want - mean)^2 / sum
        want^2."""
        channels, measured = self._channels, self._parts()
        if channels is None or not measured:
            return 0.0
        _, part = min(measured, key=lambda entry: entry[0])
        energy = float(channels.energy[part].sum())
        return (
            round(math.sqrt(float(channels.variation[part].sum()) / energy), 4) if energy else 0.0
        )

    def worst(self) -> dict[str, Any] | None:
        """`slice` and `sqnr_db` of the worst part, or of the worst channel where there is one part
        only.

        Channels that hardly vary beside the others are left out.
        """
        channels, measured = self._channels, self._parts()
        if channels is None or not measured or self.noise == 0:
            return None
        if len(measured) > 1:
            db, part = min(measured, key=lambda entry: entry[0])
            return {"slice": slice_text(channels.axis, part), "sqnr_db": db}
        if not 1 < len(channels.peak) <= MOST_CHANNELS or channels.count.min() < LEAST_VALUES:
            return None
        variation = channels.variation
        varying = np.flatnonzero(variation >= LEAST_SHARE * variation.mean())
        single = [(_sqnr(channels, varying[i : i + 1]), index) for i, index in enumerate(varying)]
        told = [(db, int(index)) for db, index in single if db is not None]
        if not told:
            return None
        db, index = min(told)
        return {"slice": slice_text(channels.axis, np.array([index])), "sqnr_db": db}

    def report(self) -> dict[str, Any]:
        """The figures as the manifest has them; `sqnr_db` is null where the samples do not vary
        enough to tell."""
        entry: dict[str, Any] = {"sqnr_db": self.sqnr_db, "variation": self.variation}
        entry |= {"plain_sqnr_db": self.plain_sqnr_db, "cosine": self.cosine}
        entry |= {"max_error": float(f"{self.largest:.6g}")}
        worst = self.worst()
        return entry if worst is None else entry | {"worst": worst}


def _fits(axis: _Axis, array: np.ndarray) -> bool:
    return axis.axis < array.ndim and array.shape[axis.axis] == len(axis.shift)


def _sqnr(channels: _Axis, part: np.ndarray) -> float | None:
    """SQNR of the variation of some channels; None where they do not vary."""
    noise = float(channels.noise[part].sum())
    variation = float(channels.variation[part].sum())
    if variation <= LEAST_VARIATION * float(channels.energy[part].sum()):
        return PERFECT_DB if noise == 0 else None
    return decibel(variation, noise)


def channel_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes that may be the channels of a tensor: of a vector its own, of rows and columns either,
    beyond two dimensions the second and the last (NCHW, NHWC, [N, C, L], [N, L, C])."""
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    last = len(shape) - 1
    if len(wide) < 2:
        return tuple(wide) or (last,)
    if len(shape) == 2:
        return (1, 0)
    if len(shape) > 3:
        # A picture of one channel.
        if shape[1] == 1:
            return (1,)
        if shape[last] == 1:
            return (last,)
    return (1, last)


def parts_by_size(peaks: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """Indices of channels [K], in parts whose largest magnitudes are more than APART times apart,
    largest first.

    Channels that are always zero go with the smallest. A part of small values that has less than
    LEAST_PART of the channels joins the next larger one. So do channels that lie in [0, 1], as
    `shares` says [K], where those of the next larger part do: they have one unit, however rare what
    they tell is.
    """
    order = np.argsort(-peaks, kind="stable")
    alive = order[peaks[order] > 0]
    if not len(alive):
        return [np.sort(order)]
    ratios = peaks[alive[:-1]] / peaks[alive[1:]]
    found = np.split(alive, np.flatnonzero(ratios > APART) + 1)
    found[-1] = np.concatenate([found[-1], order[peaks[order] == 0]])
    parts = [found[0]]
    for part in found[1:]:
        one_unit = shares[part].all() and shares[parts[-1]].all()
        if one_unit or len(part) < LEAST_PART * len(peaks):
            parts[-1] = np.concatenate([parts[-1], part])
        else:
            parts.append(part)
    return [np.sort(part) for part in parts]


def slice_text(axis: int, indices: np.ndarray) -> str:
    """Sorted indices along an axis as Python writes them: [:, 4:22]; beyond three runs, the first
    two and how many."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    texts = [str(r[0]) if len(r) == 1 else f"{r[0]}:{r[-1] + 1}" for r in runs]
    shown = texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
    if len(texts) > 3:
        shown = f"({', '.join(texts[:2])}, ... {len(indices)} in all)"
    return f"[{':, ' * axis}{shown}]"


def _same_shape(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with zeros behind what they have, along each axis."""
    if got.ndim != want.ndim:
        got, want = got.reshape(-1), want.reshape(-1)
    most = np.maximum(got.shape, want.shape)
    padded = [np.pad(a, [(0, n) for n in most - a.shape]) for a in (got, want)]
    return padded[0], padded[1]
