"""How far a tensor is from its float reference, over samples.

Two figures are given. The plain one has all of the float tensor as signal:

    plain SQNR = 10 log10(sum want^2 / sum (got - want)^2)    [dB]

It flatters tensors that hardly vary: a constant is not information. So the figure that counts has
as signal what varies around each channel's mean, over samples and positions, while the noise stays
the whole error, a constant offset included:

    SQNR = 10 log10(sum (want - mean of its channel)^2 / sum (got - want)^2)    [dB]

Parts of different size must not hide each other. Channels whose largest magnitudes are more than
`channels.APART` times apart, such as boxes in pixels beside scores in [0, 1], are measured each by
themselves, and the worst part counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.checks.channels import Channels, ChannelSums, channel_axes, slice_text

# A perfect match has no noise; JSON has no infinity.
PERFECT_DB = 200.0
# What an infinity on one side only counts as, and the most that counts: its square fits float64.
HUGE = 1e100
# A tensor that varies by less, as a share of its energy, does not vary: its standard deviation is
# below 1e-5 of its size, which rounding of float32 alone can make.
LEAST_VARIATION = 1e-10
# A figure for a single channel needs so many values of it, ...
LEAST_VALUES = 8
# ... and that it varies by this share of what channels of its part vary by on average.
LEAST_SHARE = 0.01
# More channels than this are not looked at one by one.
MOST_CHANNELS = 4096


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies, within +-PERFECT_DB."""
    if noise == 0:
        return PERFECT_DB
    if signal == 0:
        return -PERFECT_DB
    ratio = 10 * (math.log10(signal) - math.log10(noise))
    return round(min(max(ratio, -PERFECT_DB), PERFECT_DB), 2)


@dataclass(frozen=True)
class _Part:
    """Some channels that vary [K'], and their SQNR."""

    sqnr_db: float
    channels: np.ndarray


class Difference:
    """Accumulates the difference between a tensor and its float reference over samples.

    Where nothing is `known` of its channels, they are along the axis whose means explain most, and
    parts go by size.
    """

    def __init__(self, known: Channels | None = None) -> None:
        self.known = known
        self.signal = 0.0  # sum want^2
        self.energy = 0.0  # sum got^2
        self.noise = 0.0  # sum (got - want)^2
        self.product = 0.0  # sum got * want
        self.largest = 0.0  # max |got - want|
        # Sums along each axis that may be the channels; None before the first sample.
        self._sums: list[ChannelSums] | None = None

    def add(self, got: np.ndarray, want: np.ndarray) -> None:
        """Add one sample.

        Where the float model itself gives NaN or infinity, the same is right; elsewhere they are an
        error. So is what one of them lacks, where the shape depends on data.
        """
        if got.shape != want.shape:
            got, want = _padded_alike(got, want)
        if got.ndim == 0:
            got = got.reshape(1)
            want = want.reshape(1)
        got = got.astype(np.float64)
        want = want.astype(np.float64)
        is_same = (got == want) | (np.isnan(got) & np.isnan(want))
        is_right = ~np.isfinite(want) & is_same
        got = _finite(got, is_right)
        want = _finite(want, is_right)
        error = got - want
        self.signal += float((want**2).sum())
        self.energy += float((got**2).sum())
        self.noise += float((error**2).sum())
        self.product += float((got * want).sum())
        self.largest = max(self.largest, float(np.abs(error).max(initial=0)))
        self._add_channels(got, want, ~is_right)

    def _add_channels(self, got: np.ndarray, want: np.ndarray, valid: np.ndarray) -> None:
        if not want.size:
            return
        if self._sums is None:
            axes = channel_axes(want.shape)
            if self.known is not None:
                axes = (self.known.axis % want.ndim,)
            self._sums = [ChannelSums.of(axis, want, valid) for axis in axes]
        # An axis whose size depends on data has no channels.
        self._sums = [sums for sums in self._sums if sums.fits(want)]
        for sums in self._sums:
            sums.add(got, want, valid)

    @property
    def _channels(self) -> ChannelSums | None:
        """Those along the axis whose means explain most; the first of equals."""
        return max(self._sums or (), key=lambda sums: sums.explained, default=None)

    @property
    def plain_sqnr_db(self) -> float:
        """10 log10(sum want^2 / sum (got - want)^2)."""
        return decibel(self.signal, self.noise)

    @property
    def sqnr_db(self) -> float | None:
        """SQNR of what varies, in the worst part; None where the samples do not vary enough to
        tell."""
        if self.noise == 0:
            return PERFECT_DB
        worst = self._worst_part()
        return None if worst is None else worst.sqnr_db

    @property
    def relative_noise(self) -> float:
        """Noise as a share of what varies; of all signal where nothing does."""
        channels = self._channels
        variation = 0.0
        if channels is not None:
            variation = float(channels.variation.sum())
        if variation <= LEAST_VARIATION * self.signal:
            variation = self.signal
        return self.noise / (variation or 1.0)

    @property
    def cosine(self) -> float:
        """sum got * want / (|got| |want|); 1 where both are zero."""
        norms = math.sqrt(self.signal) * math.sqrt(self.energy)
        if norms == 0:
            return float(self.signal == self.energy)
        return round(self.product / norms, 6)

    @property
    def variation(self) -> float:
        """How much the worst part varies, as a share of its size: sqrt(sum (want - mean)^2 / sum
        want^2)."""
        channels = self._channels
        worst = self._worst_part()
        if channels is None or worst is None:
            return 0.0
        energy = float(channels.energy[worst.channels].sum())
        if energy == 0:
            return 0.0
        variation = float(channels.variation[worst.channels].sum())
        return round(math.sqrt(variation / energy), 4)

    def parts(self) -> tuple[int, list[np.ndarray]] | None:
        """(axis of the channels, their indices by parts); None for a tensor without channels."""
        channels = self._channels
        if channels is None:
            return None
        if self.known is not None and self.known.splits:
            indices = np.arange(len(channels.peak))
            return channels.axis, np.split(indices, self.known.splits)
        return channels.axis, channels.parts()

    def variations(self) -> tuple[int, list[tuple[np.ndarray, float]]] | None:
        """(axis of the channels, the indices of each part that varies with sum (want - mean)^2);
        None for a tensor without channels."""
        found = self.parts()
        channels = self._channels
        if found is None or channels is None:
            return None
        axis, parts = found
        varying = []
        for part in parts:
            variation = float(channels.variation[part].sum())
            if variation > LEAST_VARIATION * float(channels.energy[part].sum()):
                varying.append((part, variation))
        return axis, varying

    def _varying_parts(self) -> list[_Part]:
        channels = self._channels
        found = self.parts()
        if found is None or channels is None:
            return []
        _, parts = found
        varying = []
        for part in parts:
            sqnr_db = _sqnr(channels, part)
            if sqnr_db is not None:
                varying.append(_Part(sqnr_db, part))
        return varying

    def _worst_part(self) -> _Part | None:
        return min(self._varying_parts(), key=lambda part: part.sqnr_db, default=None)

    def worst(self) -> dict[str, Any] | None:
        """`slice` and `sqnr_db` of the worst part, or of the worst channel where there is one part
        only.

        None where there is nothing to tell apart.
        """
        channels = self._channels
        parts = self._varying_parts()
        if channels is None or not parts or self.noise == 0:
            return None
        worst = self._worst_part() if len(parts) > 1 else _worst_channel(channels)
        if worst is None:
            return None
        return {"slice": slice_text(channels.axis, worst.channels), "sqnr_db": worst.sqnr_db}

    def report(self) -> dict[str, Any]:
        """The figures as the manifest has them; `sqnr_db` is null where the samples do not vary
        enough to tell."""
        entry: dict[str, Any] = {
            "sqnr_db": self.sqnr_db,
            "variation": self.variation,
            "plain_sqnr_db": self.plain_sqnr_db,
            "cosine": self.cosine,
            "max_error": float(f"{self.largest:.6g}"),
        }
        worst = self.worst()
        if worst is not None:
            entry["worst"] = worst
        return entry


def _worst_channel(channels: ChannelSums) -> _Part | None:
    """The channel of lowest SQNR, of those that vary beside the others."""
    count = len(channels.peak)
    if not 1 < count <= MOST_CHANNELS or channels.count.min() < LEAST_VALUES:
        return None
    variation = channels.variation
    varying = np.flatnonzero(variation >= LEAST_SHARE * variation.mean())
    worst = None
    for index in varying:
        channel = np.array([index])
        sqnr_db = _sqnr(channels, channel)
        if sqnr_db is not None and (worst is None or sqnr_db < worst.sqnr_db):
            worst = _Part(sqnr_db, channel)
    return worst


def _sqnr(channels: ChannelSums, part: np.ndarray) -> float | None:
    """SQNR of the variation of some channels; None where they do not vary."""
    noise = float(channels.noise[part].sum())
    variation = float(channels.variation[part].sum())
    energy = float(channels.energy[part].sum())
    if variation <= LEAST_VARIATION * energy:
        return PERFECT_DB if noise == 0 else None
    return decibel(variation, noise)


def _finite(array: np.ndarray, is_right: np.ndarray) -> np.ndarray:
    """Zero where both are alike NaN or infinite; else nothing larger than HUGE."""
    array[is_right] = 0
    # nan_to_num makes NaN 0 and infinities the largest float64.
    clipped: np.ndarray = np.clip(np.nan_to_num(array), -HUGE, HUGE)
    return clipped


def _padded_alike(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with zeros behind what they have, along each axis."""
    if got.ndim != want.ndim:
        got = got.reshape(-1)
        want = want.reshape(-1)
    shape = np.maximum(got.shape, want.shape)
    return _padded(got, shape), _padded(want, shape)


def _padded(array: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.pad(array, [(0, missing) for missing in shape - array.shape])
