"""How TFLite writes a real number as int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.runtime import conversion


@dataclass(frozen=True)
class Quant:
    """real = scale * (int8 - zero_point)."""

    scale: float
    zero_point: int

    def quantize(self, array: np.ndarray) -> np.ndarray:
        return conversion.quantize(array, self.scale, self.zero_point)

    def dequantize(self, array: np.ndarray) -> np.ndarray:
        return conversion.dequantize(array, self.scale, self.zero_point)


def from_range(low: float, high: float) -> Quant:
    """The asymmetric int8 scale that holds [low, high] and zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Quant(1.0, 0)
    scale = float(np.float32(max((high - low) / 255, float(np.finfo(np.float32).tiny))))
    return Quant(scale, int(np.clip(round(-128 - low / scale), -128, 127)))
