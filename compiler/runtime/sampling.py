"""Chooses the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. A temperature of 0 takes the likeliest (greedy).

    `top_k` keeps so many of the likeliest, 0 all; `top_p` the likeliest that together reach this
    probability; `min_p` those with at least this share of the likeliest's. `repetition_penalty`
    above 1 makes tokens of the text less likely (Keskar et al., 2019). The same `seed` draws the
    same tokens from the same logits.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0, 100),
            ("top_k", 0, 1 << 30),
            ("top_p", 0, 1),
            ("min_p", 0, 1),
            ("repetition_penalty", 1e-3, 100),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")


class Sampler:
    """Draws the tokens of one text."""

    def __init__(self, how: Sampling) -> None:
        self.how, self._random = how, np.random.default_rng(how.seed)

    def next(self, logits: np.ndarray, text: Sequence[int]) -> int:
        """The next token behind `text`, from logits [V]."""
        how = self.how
        scores = logits.astype(np.float64)
        if how.repetition_penalty != 1 and text:
            seen = np.unique(text)
            scores[seen] = np.where(
                scores[seen] > 0,
                scores[seen] / how.repetition_penalty,
                scores[seen] * how.repetition_penalty,
            )
        if how.temperature == 0:
            return int(np.argmax(scores))
        scores /= how.temperature
        order = np.argsort(-scores, kind="stable")[: how.top_k or None]
        shares = np.exp(scores[order] - scores[order[0]])
        kept = shares >= how.min_p
        shares /= shares.sum()
        kept &= np.cumsum(shares) - shares < max(how.top_p, 1e-12)
        order, shares = order[kept], shares[kept]
        return int(self._random.choice(order, p=shares / shares.sum()))
