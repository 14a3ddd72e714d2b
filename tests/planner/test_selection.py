"""Tests the choice of one option for each region against all choices there are."""

from itertools import product

import numpy as np
import pytest

from compiler.planner.selection import Option, fastest_within, frontier, spread


def drawn(seed, regions=5, options=3):
    rng = np.random.default_rng(seed)
    # Whole numbers, so that there are ties, and sums are exact in any order.
    values = rng.integers(0, 12, (regions, options, 2)).astype(float)
    return [[Option(*pair) for pair in region] for region in values]


def all_sums(regions):
    found = []
    for choice in product(*regions):
        seconds = sum(option.seconds for option in choice)
        found.append((seconds, sum(option.error for option in choice)))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_frontier_is_that_of_all_choices(seed):
    regions = drawn(seed)
    sums = all_sums(regions)
    unbeaten = set()
    for seconds, error in sums:
        others = [other for other in sums if other != (seconds, error)]
        if not any(s <= seconds and e <= error for s, e in others):
            unbeaten.add((seconds, error))
    found = frontier(regions)
    assert [(s.seconds, s.error) for s in found] == sorted(unbeaten)
    for selection in found:
        chosen = [options[i] for options, i in zip(regions, selection.choice, strict=True)]
        assert sum(option.seconds for option in chosen) == selection.seconds
        assert sum(option.error for option in chosen) == selection.error


@pytest.mark.parametrize("seed", range(20))
def test_least_time_within_a_budget(seed):
    regions = drawn(seed)
    sums = all_sums(regions)
    for budget in (0.0, 8.0, 15.0, 25.0, 60.0):
        within = [seconds for seconds, error in sums if error <= budget]
        found = fastest_within(regions, budget)
        assert (found.seconds if found else None) == min(within, default=None)


def test_thinned_out_sums_stay_near_the_exact_ones():
    rng = np.random.default_rng(3)
    values = rng.random((40, 3, 2))
    regions = [[Option(*pair) for pair in region] for region in values]
    exact = frontier(regions, most=10**6)
    few = frontier(regions, most=200)
    assert len(few) <= 200 < len(exact)
    assert few[0].seconds == pytest.approx(exact[0].seconds)
    assert few[-1].error == pytest.approx(exact[-1].error)
    for budget in (11.0, 14.0, 18.0):
        best = fastest_within(regions, budget, most=10**6)
        near = fastest_within(regions, budget, most=200)
        assert near.error <= budget
        assert near.seconds <= 1.02 * best.seconds


def test_no_regions_have_one_empty_choice():
    (only,) = frontier([])
    assert (only.choice, only.seconds, only.error) == ((), 0.0, 0.0)


def test_what_cannot_be_had_is_never_chosen():
    regions = [[Option(float("inf"), 0.0), Option(1.0, 2.0)], [Option(1.0, float("inf"))]]
    assert frontier(regions) == []
    assert [s.choice for s in frontier(regions[:1])] == [(1,)]


def test_spread_keeps_the_ends_and_steps_between():
    regions = [[Option(2.0**-i, 10.0 ** (i / 2)) for i in range(13)]]
    found = frontier(regions)
    few = spread(found, 7)
    assert len(few) == 7
    assert few[0] == found[0]
    assert few[-1] == found[-1]
    assert [round(np.log10(s.error)) for s in few] == [6, 5, 4, 3, 2, 1, 0]
    assert spread(found, 30) == found
