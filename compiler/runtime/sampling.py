"""Chooses the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SEED = (1 << 64) - 1


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
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")


class Sampler:
    """Draws the tokens of one text."""

    def __init__(self, how: Sampling) -> None:
        self.how, self._random = how, np.random.default_rng(how.seed)

    def next(self, logits: np.ndarray, text: Sequence[int]) -> int:
        """The next token behind `text`, from logits [V].

        Never raises: NaN counts as impossible, infinities as the largest numbers there are, and
        tokens of the text that have no logit do not count.
        """
        how = self.how
        scores = _finite(logits)
        if how.repetition_penalty != 1:
            _penalize(scores, text, how.repetition_penalty)
        if how.temperature == 0:
            return int(np.argmax(scores))
        # The largest score is taken off first: 0 stays 0 however small the temperature is, and the
        # rest can only become minus infinity, which is a share of 0.
        with np.errstate(over="ignore", under="ignore"):
            scores = (scores - scores.max()) / how.temperature
            order = np.argsort(-scores, kind="stable")[: how.top_k or None]
            shares = np.exp(scores[order])
        kept = shares >= how.min_p
        shares /= shares.sum()
        kept &= np.cumsum(shares) - shares < max(how.top_p, 1e-12)
        order, shares = order[kept], shares[kept]
        return int(order[self._drawn(shares)])

    def _drawn(self, shares: np.ndarray) -> int:
        """An index with the probability of its share; the first share is above 0."""
        ends = np.cumsum(shares)
        ends /= ends[-1]
        return min(int(np.searchsorted(ends, self._random.random(), side="right")), len(ends) - 1)


def _finite(logits: np.ndarray) -> np.ndarray:
    """Scores in float64 that can be added, multiplied by a penalty and subtracted without becoming
    infinite."""
    largest = float(np.finfo(np.float32).max)
    scores = np.nan_to_num(logits.astype(np.float64), nan=-largest, posinf=largest, neginf=-largest)
    return np.clip(scores, -largest, largest)


def _penalize(scores: np.ndarray, text: Sequence[int], penalty: float) -> None:
    seen = np.unique(np.asarray(text, np.int64))
    seen = seen[(seen >= 0) & (seen < len(scores))]
    own = scores[seen]
    scores[seen] = np.where(own > 0, own / penalty, own * penalty)
