"""Weights as symmetric int8 per output channel, biases as int32 of scale (input scale x weight
scale)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import ModelError

# Half of int32: room for the accumulated products on top of the bias.
BIAS_LIMIT = 2**30


# Kernels multiply sums by (input scale x weight scale / output scale); XNNPACK takes factors from
# 2^-32 to 256. A smaller one cannot change the output, a larger one lets the smallest step of the
# input fill its whole range.
LEAST_FACTOR, MOST_FACTOR = 2.0**-31, 255.0


@dataclass(frozen=True)
class Surroundings:
    """What quantizing a weight depends on: its name, the scales around it, the grid that it may
    come on, and the mean of each input channel where it is known."""

    name: str
    input_scale: float
    output_scale: float
    grid: np.ndarray | None = None
    means: np.ndarray | None = None


def quantize(
    weight: np.ndarray, bias: np.ndarray, around: Surroundings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int8 weights, float32 scale per output channel, int32 bias). Output channels are the first
    axis.

    Weights that came as int8 keep the scales of their grid. A channel whose bias would overflow
    gets a larger weight scale; a dead channel (all zero, or too small to change the output) any
    that holds its bias. Where means are known, the bias makes up for what rounded weights change of
    the mean result (Nagel et al., 2019). Raises ModelError for weights that are not finite.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.maximum(flat.max(axis=1, initial=0), -flat.min(axis=1, initial=0))
    if not np.isfinite(largest).all() or not np.isfinite(bias).all():
        shape = list(weight.shape)
        raise ModelError(
            f"weights '{around.name}' {shape} are not finite: repair or export the model again"
        )
    needed = np.abs(bias.astype(np.float64)) / (around.input_scale * BIAS_LIMIT)
    least, most = (
        f * around.output_scale / around.input_scale for f in (LEAST_FACTOR, MOST_FACTOR)
    )
    scales = np.maximum(largest / 127 if around.grid is None else around.grid, needed)
    scales = np.clip(scales, max(least, float(np.finfo(np.float32).tiny)), most).astype(np.float32)
    steps = scales.astype(np.float64)
    quantized = (
        np.clip(np.round(flat / steps[:, None]), -127, 127).astype(np.int8).reshape(weight.shape)
    )
    wanted = bias.astype(np.float64)
    if around.means is not None:
        flat -= quantized.reshape(len(flat), -1) * steps[:, None]
        wanted = wanted + _mean_loss(flat.reshape(*weight.shape[:2], -1).sum(axis=2), around.means)
    biases = np.clip(np.round(wanted / (steps * around.input_scale)), -(2**31), 2**31 - 1)
    return quantized, scales, biases.astype(np.int32)


def _mean_loss(rounding: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What the rounding of weights [O, I] takes from the mean of each output; of [C, 1] the inputs
    are the channels."""
    if rounding.shape[1] == len(means):
        return rounding @ means
    return rounding[:, 0] * np.repeat(means, len(rounding) // len(means))
