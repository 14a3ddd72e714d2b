"""Weights as symmetric int8 per output channel, biases as int32 of scale (input scale x weight
scale)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import ModelError

# Half of int32: room for the accumulated products on top of the bias.
BIAS_LIMIT = 2**30
BIAS_RANGE = (-(2**31), 2**31 - 1)
# Kernels multiply sums by (input scale x weight scale / output scale); XNNPACK takes factors from
# 2^-32 to 256. A smaller one cannot change the output, a larger one lets the smallest step of the
# input fill its whole range.
LEAST_FACTOR = 2.0**-31
MOST_FACTOR = 255.0


@dataclass(frozen=True)
class Surroundings:
    """What quantizing a weight depends on: its name, the scales around it, the grid [O] that it may
    come on, and the mean of each input channel [I] where it is known."""

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
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    wanted_bias = bias.astype(np.float64)
    largest = np.maximum(rows.max(axis=1, initial=0), -rows.min(axis=1, initial=0))
    if not np.isfinite(largest).all() or not np.isfinite(bias).all():
        raise ModelError(
            f"weights '{around.name}' {list(weight.shape)} are not finite: repair or export the "
            "model again"
        )
    scales = _scales(largest, wanted_bias, around)
    steps = scales.astype(np.float64)
    quantized = np.clip(np.round(rows / steps[:, None]), -127, 127).astype(np.int8)
    if around.means is not None:
        lost = rows - quantized * steps[:, None]
        by_input = lost.reshape(*weight.shape[:2], -1).sum(axis=2)
        wanted_bias = wanted_bias + _mean_loss(by_input, around.means)
    biases = np.clip(np.round(wanted_bias / (steps * around.input_scale)), *BIAS_RANGE)
    return quantized.reshape(weight.shape), scales, biases.astype(np.int32)


def _scales(largest: np.ndarray, bias: np.ndarray, around: Surroundings) -> np.ndarray:
    """The float32 scale of each output channel [O], by its largest weight and its bias."""
    for_weights = largest / 127 if around.grid is None else around.grid
    for_bias = np.abs(bias) / (around.input_scale * BIAS_LIMIT)
    least = LEAST_FACTOR * around.output_scale / around.input_scale
    most = MOST_FACTOR * around.output_scale / around.input_scale
    smallest = max(least, float(np.finfo(np.float32).tiny))
    scales: np.ndarray = np.clip(np.maximum(for_weights, for_bias), smallest, most)
    return scales.astype(np.float32)


def _mean_loss(lost: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What the rounding of weights [O, I] takes from the mean of each output; of [C, 1] the inputs
    are the channels."""
    loss: np.ndarray
    if lost.shape[1] == len(means):
        loss = lost @ means
    else:
        outputs_each = len(lost) // len(means)
        loss = lost[:, 0] * np.repeat(means, outputs_each)
    return loss
