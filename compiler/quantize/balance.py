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
# The least half range, as a share of what most channels stay below, if channels differ by their
# weights only: a channel that hardly moves on few samples may yet. Single ones may be far larger.
FLOOR = 0.1
MOST = 0.9
# Keeps divisions by the half range of channels that are zero finite.
TINY = 1e-30
# The range of balanced outputs and of normalised rows: symmetric, so that 1 is 127 steps of 1/127.
UNIT = (-128 / 127, 1.0)
STEPS = 127
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
    stats = observe(model, [product.z for product in chosen], samples, progress)
    for product in chosen:
        seen = stats[str(product.z.name)]
        half, middle = _half_and_middle(seen.low, seen.high)
        if product.has_second_row:
            # The range that a row at half its size reaches; its offset is not halved.
            half = (half + np.abs(middle)) / 2
        else:
            half, middle = _in_steps(half, middle)
        factors = array_of(product.factors)
        product.set(
            ir.tensor((half * factors).astype(np.float32)),
            ir.tensor((middle * factors).astype(np.float32)),
        )
    return known(chosen)


def known(chosen: Collection[Product]) -> Ranges:
    """The ranges around balanced products."""
    ranges: Ranges = {}
    for product in chosen:
        ranges |= dict.fromkeys(_around(product), UNIT)
    return ranges


def _half_and_middle(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(half range with margin, middle) [C] of channels that showed [low, high] in either half of
    the samples [2, C]."""
    reached = np.maximum(-low, high).max(axis=0)
    floor = FLOOR * float(np.quantile(reached, MOST))
    needed = np.quantile(_needed(low, high, floor), COVERED)
    margin = float(np.clip(needed, MARGIN, WIDEST))
    lowest = low.min(axis=0)
    highest = high.max(axis=0)
    half = np.maximum((highest - lowest) / 2 * margin, floor)
    return np.where(half > 0, half, 1), (lowest + highest) / 2


def _in_steps(half: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half ranges and middles that are whole numbers of int8 steps, within the range.

    The host can then take a middle for a zero point. Margins are far wider than what this moves.
    """
    half = np.maximum(half, np.abs(middle))
    return half, np.round(middle / half * STEPS) / STEPS * half


def _needed(low: np.ndarray, high: np.ndarray, floor: float) -> np.ndarray:
    """How many times wider the ranges of each half of the samples [2, C] have to be to hold those
    of the other."""
    half = np.maximum((high - low) / 2, max(floor, TINY))
    middle = (low + high) / 2
    above = high[::-1] - middle
    below = middle - low[::-1]
    needed: np.ndarray = np.maximum(above, below) / half
    return needed


def _around(product: Product) -> list[str]:
    """Names of what the Edge TPU makes, of the tiles that it is joined from, and of the rows that
    they multiply where these are normalised.

    Partial sums, where a layer is divided along its inputs, are left to calibration.
    """
    names = []
    for value in joined_from(product.made):
        if is_constant(value):
            continue
        names.append(str(value.name))
        node = value.producer()
        if not product.has_unit_rows or node is None or node.domain != DIALECT:
            continue
        if node.inputs[0] is not None:
            names.append(str(node.inputs[0].name))
    return names
