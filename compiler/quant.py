"""How TFLite writes a real number as int8."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.runtime import conversion

_LEAST, _MOST = -128, 127
_STEPS = _MOST - _LEAST
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Quant:
    """real = scale * (int8 - zero_point)."""

    scale: float
    zero_point: int

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest real number that int8 stands for."""
        return self.scale * (_LEAST - self.zero_point), self.scale * (_MOST - self.zero_point)

    def quantize(self, array: np.ndarray) -> np.ndarray:
        """Real numbers as int8; those beyond the range become its ends."""
        return conversion.quantize(array, self.scale, self.zero_point)

    def dequantize(self, array: np.ndarray) -> np.ndarray:
        """int8 as the real numbers that it stands for."""
        return conversion.dequantize(array, self.scale, self.zero_point)


def from_range(low: float, high: float) -> Quant:
    """The asymmetric int8 scale that holds [low, high] and zero exactly."""
    low = min(low, 0.0)
    high = max(high, 0.0)
    if high == low:
        return Quant(1.0, 0)
    # TFLite stores scales as float32, and a scale of 0 would divide by zero.
    scale = float(np.float32(max((high - low) / _STEPS, _LEAST_SCALE)))
    zero_point = round(_LEAST - low / scale)
    return Quant(scale, min(max(zero_point, _LEAST), _MOST))
