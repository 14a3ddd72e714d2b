"""Lets each output channel of a normalised product fill its int8 range, by what calibration shows.

`normalise_linears` leaves, per output channel, a factor and an offset that may be any numbers
without changing what the model computes. Here they get the half range and the middle of what the
channel shows, with room for what it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compiler.graph import BALANCED, DIALECT, ROWS, activations_of, array_of, only_consumer
from compiler.quantize.calibrate import Ranges, observe
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
# Keeps divisions by the half range of channels that are zero finite.
TINY = 1e-30
# The range of balanced outputs and of normalised rows: symmetric, so that 1 is 127 steps of 1/127.
UNIT = (-128 / 127, 1.0)
# What is nearer to zero than this is not at the end of that range.
LARGEST_STEP = 126.5 / 127


@dataclass(frozen=True)
class Product:
    """A normalised product: z is what is multiplied by `factors` and shifted by `offsets`. `made`
    is what the Edge TPU makes: z, or what z is read from by two rows for one
    (passes/second_row.py)."""

    z: ir.Value
    factors: ir.Value
    offsets: ir.Value
    made: ir.Value

    @property
    def halved(self) -> bool:
        """Whether z is read from two rows, one at half the size of the other."""
        return self.made is not self.z

    def set(self, factors: ir.TensorProtocol, offsets: ir.TensorProtocol) -> None:
        """Give it other factors and offsets [C]."""
        self.factors.const_value = factors
        self.offsets.const_value = offsets
        # Rows that were to be read from the old constants.
        self.factors.meta.pop(ROWS, None)
        self.offsets.meta.pop(ROWS, None)


def products(graph: ir.Graph) -> dict[str, Product]:
    """The normalised products of a graph, by the names of their factors."""
    found = {}
    for node in graph:
        if BALANCED not in node.metadata_props:
            continue
        z, factors = node.inputs
        add = only_consumer(node.outputs[0])
        assert z is not None and factors is not None and add is not None
        offsets = add.inputs[1]
        assert offsets is not None
        found[str(factors.name)] = Product(z, factors, offsets, _made(z))
    return found


def _made(z: ir.Value) -> ir.Value:
    """What the Edge TPU makes: z, or the joined rows that `second_row` reads z from."""
    value = z
    is_halved = False
    node = z.producer()
    while node is not None and node.op_type in ("Reshape", "Where", "Split"):
        # Where chooses between the row at its full size and twice the other one.
        is_choice = node.op_type == "Where"
        is_halved = is_halved or is_choice
        source = node.inputs[1 if is_choice else 0]
        assert source is not None
        value = source
        node = value.producer()
    return value if is_halved else z


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
        if product.halved:
            # The range that a row at half its size reaches; its offset is not halved.
            half = (half + np.abs(middle)) / 2
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
        ranges |= dict.fromkeys(_around(product.made), UNIT)
    return ranges


def _half_and_middle(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(half range with margin, middle) [C] of channels that showed [low, high] in either half of
    the samples [2, C]."""
    floor = FLOOR * float(np.maximum(-low, high).max())
    needed = np.quantile(_needed(low, high, floor), COVERED)
    margin = float(np.clip(needed, MARGIN, WIDEST))
    lowest = low.min(axis=0)
    highest = high.max(axis=0)
    half = np.maximum((highest - lowest) / 2 * margin, floor)
    return np.where(half > 0, half, 1), (lowest + highest) / 2


def _needed(low: np.ndarray, high: np.ndarray, floor: float) -> np.ndarray:
    """How many times wider the ranges of each half of the samples [2, C] have to be to hold those
    of the other."""
    half = np.maximum((high - low) / 2, max(floor, TINY))
    middle = (low + high) / 2
    above = high[::-1] - middle
    below = middle - low[::-1]
    needed: np.ndarray = np.maximum(above, below) / half
    return needed


def _around(z: ir.Value) -> list[str]:
    """Names of z, of the tiles that it is joined from, and of the rows that they multiply.

    Partial sums, where a layer is divided along its inputs, are left to calibration.
    """
    names = []
    waiting = [z]
    while waiting:
        value = waiting.pop()
        names.append(str(value.name))
        node = value.producer()
        if node is None:
            continue
        if node.op_type in ("Concat", "Reshape"):
            waiting += activations_of(node)
        elif node.domain == DIALECT and node.inputs[0] is not None:
            names.append(str(node.inputs[0].name))
    return names
