"""Rotary embeddings that were stretched for longer texts than a model was first trained on.

Source of all formulas: transformers, modeling_rope_utils.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scaling:
    """How the rotary embedding of a model differs from base^(-2i / rotary).

    factors:       what each frequency is divided by: one number, or one for each; none: they stay
    short_factors: the same for programs of up to `short_context` tokens, where given
    gain:          what cosines and sines are multiplied by
    """

    factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()
    short_context: int = 0
    gain: float = 1.0

    def factors_for(self, context: int) -> tuple[float, ...]:
        """What frequencies are divided by in a program for so many tokens."""
        has_short = bool(self.short_factors) and context <= self.short_context
        return self.short_factors if has_short else self.factors

    @property
    def numbers(self) -> tuple[float, ...]:
        return (*self.factors, *self.short_factors, self.gain)


def linear(factor: float) -> Scaling:
    """All frequencies divided by one number."""
    return Scaling() if factor == 1 else Scaling((factor,))


def llama3(scaling: Mapping[str, Any], base: float, rotary: int) -> Scaling:
    """Long waves are divided by `factor`, short ones by 1, and those between by something between.

    Raises ValueError for numbers that mean nothing.
    """
    factor = float(scaling["factor"])
    low = float(scaling["low_freq_factor"])
    high = float(scaling["high_freq_factor"])
    trained_context = float(scaling["original_max_position_embeddings"])
    if not (factor > 0 and high > low):
        raise ValueError(
            f"its rotary scaling has factor {factor}, and frequency factors {low} to {high}"
        )
    # Tokens that a channel pair takes for a full turn.
    wavelengths = 2 * math.pi * base ** (np.arange(0, rotary, 2) / rotary)
    share_short = np.clip((trained_context / wavelengths - low) / (high - low), 0, 1)
    return Scaling(_between(factor, share_short))


def yarn(scaling: Mapping[str, Any], base: float, rotary: int, context: int) -> Scaling:
    """As `llama3`, with another way between, and a gain. `context` is what the model was trained
    for where `scaling` does not say it. Raises ValueError for numbers that mean nothing."""
    factor = float(scaling["factor"])
    trained_context = float(scaling.get("original_max_position_embeddings") or context)
    if not (factor > 0 and trained_context > 0 and base > 1):
        raise ValueError(f"its rotary scaling has factor {factor} of {trained_context} tokens")

    def pair_of(turns: float) -> float:
        """The channel pair that makes so many turns in the context."""
        return rotary * math.log(trained_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = pair_of(float(scaling.get("beta_fast") or 32))
    last = pair_of(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary - 1)
    width = max(last - first, 0.001)
    share_short = 1 - np.clip((np.arange(rotary // 2) - first) / width, 0, 1)
    return Scaling(_between(factor, share_short), gain=_yarn_gain(scaling, factor))


def _between(factor: float, share_short: np.ndarray) -> tuple[float, ...]:
    kept_frequency = (1 - share_short) / factor + share_short
    return tuple((1 / kept_frequency).tolist())


def _yarn_gain(scaling: Mapping[str, Any], factor: float) -> float:
    given = scaling.get("attention_factor")
    if given is not None:
        return float(given)

    def gain(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    weight = float(scaling.get("mscale") or 0)
    whole_weight = float(scaling.get("mscale_all_dim") or 0)
    if weight and whole_weight:
        return gain(weight) / gain(whole_weight)
    return gain(1.0)


def longrope(
    short: Sequence[float], long: Sequence[float], trained: int, context: int, gain: float | None
) -> Scaling:
    """Two lists of factors: one for texts that are no longer than those of the first training.

    `trained` and `context` are the tokens of the first training and of the last. Without a `gain`
    it follows from these.
    """
    factor = context / trained
    if gain is None:
        gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return Scaling(tuple(map(float, long)), tuple(map(float, short)), trained, gain)
