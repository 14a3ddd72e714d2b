"""Chooses the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_SEED = (1 << 64) - 1
# The smallest and the largest value of each number of `Sampling`. At these ends too, the sampler
# gives a token for any logits.
_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (0, 1 << 30),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1e-3, 100),
    "repetition_window": (0, 1 << 62),
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: divides the logits; 0 takes the likeliest token (greedy)
    top_k:       draws from so many of the likeliest tokens; 0 from all
    top_p:       draws from the likeliest tokens that together reach this probability
    min_p:       draws from tokens with at least this share of the likeliest one's probability
    repetition_penalty: above 1, tokens that the text has are less likely (Keskar et al., 2019,
                 CTRL)
    repetition_window: how many tokens at the end of the text that goes for; None: all of them
    seed:        draws the same tokens again from the same logits; None draws others each time

    Raises ValueError for a number out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} is {value}; it must be from {least} to {most}")
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to {MAX_SEED}")


class Sampler:
    """Draws the tokens of one text."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def next(self, logits: np.ndarray, text: Sequence[int]) -> int:
        """The token that follows `text`, from logits [V].

        Never raises: NaN counts as impossible, infinities as the largest numbers there are, and
        tokens of the text that have no logit do not count.
        """
        sampling = self.sampling
        scores = _finite(logits)
        if sampling.repetition_penalty != 1:
            _penalize(scores, self._repeatable(text), sampling.repetition_penalty)
        if sampling.temperature == 0:
            return int(np.argmax(scores))
        # The largest score is subtracted first: it stays 0 however small the temperature is, and
        # the others can only become minus infinity, which is a weight of 0.
        with np.errstate(over="ignore", under="ignore"):
            scores = (scores - scores.max()) / sampling.temperature
            likeliest = np.argsort(-scores, kind="stable")[: sampling.top_k or None]
            weights = np.exp(scores[likeliest])
        # The likeliest token has a weight of 1.
        kept = weights >= sampling.min_p
        probabilities = weights / weights.sum()
        likelier_ones = np.cumsum(probabilities) - probabilities
        # With a top_p of 0 the likeliest token is kept.
        kept &= likelier_ones < max(sampling.top_p, 1e-12)
        drawn = self._draw(probabilities[kept])
        return int(likeliest[kept][drawn])

    def _repeatable(self, text: Sequence[int]) -> Sequence[int]:
        """The tokens of a text that should not come again."""
        window = self.sampling.repetition_window
        return text if window is None else text[max(len(text) - window, 0) :]

    def _draw(self, probabilities: np.ndarray) -> int:
        """An index, by probabilities that need not add up to 1; the first one is above 0."""
        ends = np.cumsum(probabilities)
        ends /= ends[-1]
        index = int(np.searchsorted(ends, self._random.random(), side="right"))
        # Rounding may leave the last end a little below what was drawn.
        return min(index, len(ends) - 1)


@dataclass(frozen=True)
class Scored:
    """A token with natural logarithms of probabilities: its own, and those of the likeliest tokens,
    the likeliest first."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


def scored(token: int, logits: np.ndarray, count: int) -> Scored:
    """A token with its probability, and those of the `count` likeliest, by the model's own logits
    [V]: before temperature, penalties and cuts."""
    scores = _finite(logits)
    scores -= scores.max()
    with np.errstate(under="ignore"):
        scores -= np.log(np.exp(scores).sum())
    first = np.argsort(-scores, kind="stable")[:count]
    likeliest = tuple((int(index), float(scores[index])) for index in first)
    return Scored(token, float(scores[token]), likeliest)


def _finite(logits: np.ndarray) -> np.ndarray:
    """Scores in float64 that can be added, multiplied by a penalty and subtracted without becoming
    infinite."""
    largest = float(np.finfo(np.float32).max)
    scores = np.nan_to_num(logits.astype(np.float64), nan=-largest, posinf=largest, neginf=-largest)
    return np.clip(scores, -largest, largest)


def _penalize(scores: np.ndarray, text: Sequence[int], penalty: float) -> None:
    """Make tokens of the text less likely, in place."""
    seen = np.unique(np.asarray(text, np.int64))
    seen = seen[(seen >= 0) & (seen < len(scores))]
    old = scores[seen]
    # Dividing a negative score would make its token likelier.
    scores[seen] = np.where(old > 0, old / penalty, old * penalty)
