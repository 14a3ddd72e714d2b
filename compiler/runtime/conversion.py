"""Conversion between real numbers and int8 where values pass from one segment to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def quantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Real numbers as int8, of the same shape: round(array / scale) + zero_point.

    Rounds to the nearest, ties to even, and saturates: infinities become -128 and 127. Raises
    ValueError where the array holds NaN, which int8 cannot represent.
    """
    # One float32 array serves all steps: on a Raspberry Pi memory traffic is most of the cost.
    steps = np.empty(array.shape, np.float32)
    # What overflows here becomes infinity, and saturates below as it should.
    with np.errstate(over="ignore"):
        np.multiply(array, np.float32(1 / scale), out=steps, casting="same_kind")
    np.rint(steps, out=steps)
    steps += np.float32(zero_point)
    np.minimum(steps, np.float32(127), out=steps)
    np.maximum(steps, np.float32(-128), out=steps)
    # NaN passes through all of the above, and the minimum of an array with NaN is NaN.
    if np.isnan(steps.min(initial=0)):
        raise ValueError("holds NaN, which int8 cannot represent")
    return steps.astype(np.int8)


def dequantize(array: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The float32 numbers that int8 stands for: scale * (array - zero_point)."""
    real = array.astype(np.float32)
    real -= np.float32(zero_point)
    real *= np.float32(scale)
    return real


def convert(
    array: np.ndarray, tensor: Mapping[str, Any], written: Mapping[str, Any] | None = None
) -> np.ndarray:
    """An array as the segment that reads it takes it: int8 of the reader's scale, or real numbers.

    `tensor` is the manifest's entry at the reader, `written` the one at the segment that wrote the
    array; without it int8 is taken to have the reader's scale. Arrays that fit are not copied.
    Raises ValueError where NaN would become int8.
    """
    if "scale" not in tensor:
        # Never quantized: floats, indices, and between two host segments sequences too.
        return array
    reads_int8 = tensor["dtype"] == "int8"
    if array.dtype == np.int8:
        source = tensor if written is None else written
        if reads_int8 and _has_same_scale(source, tensor):
            return array
        array = dequantize(array, source["scale"], source["zero_point"])
    if reads_int8:
        return quantize(array, tensor["scale"], tensor["zero_point"])
    return array


def _has_same_scale(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["scale"] == other["scale"] and one["zero_point"] == other["zero_point"])
