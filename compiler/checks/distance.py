"""How far two results of one computation are apart, and how far rounding alone takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compiler.quantize.samples import Sample


def distance(got: Any, want: Any) -> float:
    """How far an output is from what it should be.

    Of floats, |got - want| / |want| (Euclidean); of other types, the share of elements that differ;
    of sequences, the largest of their elements. Infinite where type or shape differ, or where NaN
    and infinities are not the same in both.
    """
    if isinstance(want, list):
        return _sequence_distance(got, want)
    if not _is_array(want) or not _is_array(got):
        return 0.0  # maps, which bundles do not give
    got = np.asarray(got)
    want = np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return np.inf
    if want.dtype.kind != "f":
        return float(np.mean(got != want)) if want.size else 0.0
    pair = finite_values(got, want)
    if pair is None:
        return np.inf
    got, want = pair
    size = float(np.linalg.norm(want))
    apart = float(np.linalg.norm(got - want))
    if size == 0:
        # A share of nothing: any positive number, so that 0 alone passes every limit.
        return float(np.sqrt(apart))
    return apart / size


def finite_values(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where `want` is finite, both as vectors of float64.

    None where they are not NaN or infinite in the same places. Their shapes have to be equal.
    """
    is_finite = np.isfinite(want)
    if not np.array_equal(got[~is_finite], want[~is_finite], equal_nan=True):
        return None
    if not np.isfinite(got[is_finite]).all():
        return None
    return got[is_finite].astype(np.float64), want[is_finite].astype(np.float64)


def nudge(sample: Mapping[str, np.ndarray], rng: np.random.Generator, by: float) -> Sample:
    """A sample whose floats have normal noise of `by` times their size.

    What a model gives for it shows how much the model amplifies rounding.
    """
    return {name: _nudged(array, rng, by) for name, array in sample.items()}


def _nudged(array: np.ndarray, rng: np.random.Generator, by: float) -> np.ndarray:
    if array.dtype.kind != "f":
        return array
    factors = 1 + by * rng.standard_normal(array.shape)
    return np.asarray(array * factors, array.dtype)


def _sequence_distance(got: Any, want: list[Any]) -> float:
    if not isinstance(got, list) or len(got) != len(want):
        return np.inf
    pairs = zip(got, want, strict=True)
    return max((distance(one, other) for one, other in pairs), default=0.0)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)
