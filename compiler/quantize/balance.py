"""Lets each output channel of a normalised product fill its int8 range, by what calibration shows.

`normalise_linears` leaves, per output channel, a factor and an offset that may be any numbers
without changing what the model computes. Here they get the half range and the middle of what the
channel shows, with room for what it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import onnx_ir as ir

from compiler.graph import DIALECT, array_of, is_constant
from compiler.quantize.calibrate import Ranges, observe
from compiler.quantize.products import Product, joined_from
from compiler.quantize.samples import Sample

# How much wider a channel's range is than calibration shows. Clipping costs far more than coarser
# steps: of SmolLM2's outputs alone, 1, 1.3, 1.6 and 2 raise the perplexity by 26, 2.7, 0.9 and 1.1%
# with 64 samples of 128 tokens.
MARGIN = 1.6
# Few samples show little of channels that hardly move within one of them, as where attention
# averages. How much wider their ranges would have to be for one half of the samples to hold the
# other says so: the margin is what this share of the channels needs, at most WIDEST.
COVERED = 0.98
WIDEST = 4.0
# The least half range, as a share of what the whole tensor's would be if channels differed by their
# weights only: a channel that hardly moved on few samples may yet.
FLOOR = 0.1
# The range of balanced outputs and of normalised rows: symmetric, so that 1 is 127 steps of 1/127.
UNIT = (-128 / 127, 1.0)
# What is nearer to zero than this is not at the end of that range.
LARGEST_STEP = 126.5 / 127


def balance(
    model: ir.Model,
    chosen: Collection[Product],
    samples: Iterable[Sample],
    progress: Callable[[], None] = lambda: None,
) -> Ranges:
    """Choose factors and offsets of some products by samples; returns the ranges that are known by
    that."""
    if not chosen:
        return {}
    stats = observe(model, [p.z for p in chosen], samples, progress)
    for product in chosen:
        z = stats[str(product.z.name)]
        half, middle = _half_and_middle(z.low, z.high)
        if (
            product.has_second_row
        ):  # the range that a row at half its size reaches, though not its offset
            half = (half + np.abs(middle)) / 2
        factors = array_of(product.factors)
        product.set(*(ir.tensor((part * factors).astype(np.float32)) for part in (half, middle)))
    return known(chosen)


def known(chosen: Collection[Product]) -> Ranges:
    """The ranges around balanced products."""
    return {name: UNIT for product in chosen for name in _around(product.made)}


def _half_and_middle(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(half range with margin, middle) of each channel that showed [low, high] [2, C]."""
    floor = FLOOR * float(np.maximum(-low, high).max())
    margin = float(np.clip(np.quantile(_needed(low, high, floor), COVERED), MARGIN, WIDEST))
    low, high = low.min(axis=0), high.max(axis=0)
    half = np.maximum((high - low) / 2 * margin, floor)
    return np.where(half > 0, half, 1), (low + high) / 2


def _needed(low: np.ndarray, high: np.ndarray, floor: float) -> np.ndarray:
    """How many times wider each half's ranges have to be to hold the other half's."""
    half, middle = np.maximum((high - low) / 2, max(floor, 1e-30)), (low + high) / 2
    return np.maximum(high[::-1] - middle, middle - low[::-1]) / half


def _around(made: ir.Value) -> list[str]:
    """Names of what the Edge TPU makes, of the tiles that it is joined from, and of the rows that
    they multiply.

    Partial sums, where a layer is divided along its inputs, are left to calibration.
    """
    found = []
    for value in joined_from(made):
        if is_constant(value):
            continue
        found.append(str(value.name))
        node = value.producer()
        if node is not None and node.domain == DIALECT and node.inputs[0] is not None:
            found.append(str(node.inputs[0].name))
    return found
