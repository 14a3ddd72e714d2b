"""Chooses one option for each region of a model: least time within a budget of error, and the
frontier from the fastest choice to the most accurate one.

Times add up, and so do errors: noise powers of sources that know nothing of each other. This is the
multiple-choice knapsack problem. Regions are joined one after the other, and of the sums only those
are kept that no other sum beats in both; where they become too many, they are thinned out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Sums that are kept of the regions joined so far. With fewer the result is exact.
MOST_SUMS = 4096


@dataclass(frozen=True)
class Option:
    """One way to run a region: predicted seconds, and the noise power that it adds at the end, as a
    share of how much the outputs vary. Either may be infinite, for what cannot be had."""

    seconds: float
    error: float


@dataclass(frozen=True)
class Selection:
    """The number of the option chosen for each region, and what the choice costs in all."""

    choice: tuple[int, ...]
    seconds: float
    error: float


def frontier(regions: Sequence[Sequence[Option]], most: int = MOST_SUMS) -> list[Selection]:
    """All choices that no other beats in both time and error, the fastest first.

    Each has less error than the one before. Exact as long as no more than `most` sums are needed on
    the way; beyond that, choices of nearly equal error are left out, never the fastest or the most
    accurate one. Empty where a region has no option that can be had.
    """
    seconds = np.zeros(1)
    errors = np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for options in regions:
        own_seconds = np.array([option.seconds for option in options], float)
        own_errors = np.array([option.error for option in options], float)
        all_seconds = (seconds[:, None] + own_seconds).reshape(-1)
        all_errors = (errors[:, None] + own_errors).reshape(-1)
        kept = _unbeaten(all_seconds, all_errors)
        kept = kept[_thinned(all_errors[kept], most)]
        seconds, errors = all_seconds[kept], all_errors[kept]
        steps.append((kept // max(len(options), 1), kept % max(len(options), 1)))
    found = []
    for place in range(len(seconds)):
        choice = _traced(steps, place)
        found.append(Selection(choice, float(seconds[place]), float(errors[place])))
    return found


def fastest_within(
    regions: Sequence[Sequence[Option]], budget: float, most: int = MOST_SUMS
) -> Selection | None:
    """The choice of least time whose errors are at most `budget` in all; None if there is none."""
    for selection in frontier(regions, most):
        if selection.error <= budget:
            return selection
    return None


def spread(selections: Sequence[Selection], count: int) -> list[Selection]:
    """At most `count` (2 or more) of a frontier: its ends, and those nearest to equal steps of
    error in dB between them."""
    if len(selections) <= max(count, 2):
        return list(selections)
    levels = _decibels(np.array([selection.error for selection in selections]))
    wanted = np.linspace(levels[0], levels[-1], count)
    chosen = {0, len(selections) - 1}
    for level in wanted[1:-1]:
        chosen.add(int(np.abs(levels - level).argmin()))
    return [selections[place] for place in sorted(chosen)]


def _unbeaten(seconds: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Places of the sums that no other beats in both, the fastest first; of equals the first."""
    order: np.ndarray = np.lexsort((np.arange(len(seconds)), errors, seconds))
    order = order[np.isfinite(seconds[order]) & np.isfinite(errors[order])]
    if not len(order):
        return order
    before = np.minimum.accumulate(errors[order])
    is_better = np.concatenate([[True], errors[order][1:] < before[:-1]])
    kept: np.ndarray = order[is_better]
    return kept


def _thinned(errors: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` of errors that fall, evenly spread in dB, the ends among them.

    Of those in one step the last is kept, which has the least error.
    """
    if len(errors) <= most:
        return np.arange(len(errors))
    levels = _decibels(errors)
    width = (levels[0] - levels[-1]) / (most - 1)
    step = np.floor((levels[0] - levels) / width)
    is_last = np.concatenate([step[1:] != step[:-1], [True]])
    is_last[0] = True
    return np.flatnonzero(is_last)[-most:] if is_last.sum() > most else np.flatnonzero(is_last)


def _decibels(errors: np.ndarray) -> np.ndarray:
    """Errors in dB; none at all counts as 300 dB less than variation."""
    levels: np.ndarray = 10 * np.log10(np.maximum(errors, 1e-30))
    return levels


def _traced(steps: Sequence[tuple[np.ndarray, np.ndarray]], place: int) -> tuple[int, ...]:
    """The options that lead to a sum, followed back from the last region."""
    choice = []
    for sources, options in reversed(steps):
        choice.append(int(options[place]))
        place = int(sources[place])
    return tuple(reversed(choice))
