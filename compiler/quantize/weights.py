"""Weights as symmetric int8 per output channel, biases as int32 of scale (input scale x weight scale)."""

from __future__ import annotations

import numpy as np

from compiler.errors import ModelError

# Half of int32: room for the accumulated products on top of the bias.
BIAS_LIMIT = 2**30


def quantize(
    weight: np.ndarray, bias: np.ndarray, input_scale: float, name: str, grid: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int8 weights, float32 scale per output channel, int32 bias). Output channels are the first axis.

    `grid` gives the scales of weights that came as int8.

    A channel whose bias would overflow gets a larger weight scale; a dead channel (all zero) any that holds its bias.
    Raises ModelError for weights that are not finite.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.maximum(flat.max(axis=1, initial=0), -flat.min(axis=1, initial=0))
    if not np.isfinite(largest).all() or not np.isfinite(bias).all():
        raise ModelError(f"weights '{name}' {list(weight.shape)} are not finite: repair or export the model again")
    needed = np.abs(bias.astype(np.float64)) / (input_scale * BIAS_LIMIT)
    scales = np.maximum(largest / 127 if grid is None else grid, needed)
    scales = np.where(scales > 0, scales, 1.0)
    scales = np.maximum(scales, np.finfo(np.float32).tiny).astype(np.float32)
    steps = scales.astype(np.float64)
    quantized = np.clip(np.round(flat / steps[:, None]), -127, 127).astype(np.int8).reshape(weight.shape)
    biases = np.clip(np.round(bias.astype(np.float64) / (steps * input_scale)), -(2**31), 2**31 - 1)
    return quantized, scales, biases.astype(np.int32)
