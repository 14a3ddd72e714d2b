"""The sampler gives a token whatever it is asked: numbers at the end of their range, logits that
are not numbers."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from compiler.runtime.sampling import MAX_SEED, Sampler, Sampling

TINY, HUGE = 5e-324, 1.7e308
LOGITS = {
    "usual": np.array([0.0, 3.0, 2.0, -1.0]),
    "float32's ends": np.array([3.4e38, -3.4e38, 0, 1], np.float32),
    "float64's ends": np.array([HUGE, -HUGE, 0, 1]),
    "infinite": np.array([np.inf, -np.inf, 0, np.inf]),
    "one NaN": np.array([np.nan, 1, 2, 3]),
    "all NaN": np.full(4, np.nan),
    "all minus infinity": np.full(4, -np.inf),
    "all equal": np.zeros(4),
    "one": np.array([1.0]),
}


@pytest.mark.parametrize("name", LOGITS)
def test_any_logits_and_any_numbers_give_a_token(name: str) -> None:
    logits = LOGITS[name]
    temperatures = (0, -0.0, TINY, 1e-308, 1e-3, 1, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature, top_k, top_p, min_p, penalty in itertools.product(
            temperatures, (0, 1, 1 << 30), (0, TINY, 1), (0, TINY, 1), (1e-3, 1, 100)
        ):
            how = Sampling(temperature, top_k, top_p, min_p, penalty, seed=MAX_SEED)
            for text in ([], [0], [3, 3, 2, 1 << 40, -1]):
                assert 0 <= Sampler(how).next(logits, text) < len(logits)


def test_a_tiny_temperature_takes_the_likeliest() -> None:
    for temperature in (TINY, 1e-308, 1e-30):
        assert Sampler(Sampling(temperature)).next(LOGITS["usual"], []) == 1


def test_what_is_no_number_is_not_drawn() -> None:
    assert {
        Sampler(Sampling(1.0, seed=seed)).next(LOGITS["one NaN"], []) for seed in range(50)
    } == {1, 2, 3}


def test_draws_with_the_probabilities_of_softmax() -> None:
    logits = np.array([0.0, 1.0, 2.0])
    sampler = Sampler(Sampling(2.0, seed=3))
    found = np.bincount([sampler.next(logits, []) for _ in range(4000)]) / 4000
    wanted = np.exp(logits / 2) / np.exp(logits / 2).sum()
    # Four standard deviations of a share of 4000 draws are at most 0.032.
    np.testing.assert_allclose(found, wanted, atol=0.032)


def test_numbers_out_of_range_are_refused() -> None:
    nan, inf = float("nan"), float("inf")
    for name, values in {
        "temperature": (nan, inf, -1e-9, 101),
        "top_k": (-1, nan, 1 << 31),
        "top_p": (nan, -inf, 1.5),
        "min_p": (nan, 2),
        "repetition_penalty": (nan, 0, inf),
        "seed": (-1, 1 << 64),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                Sampling(**{name: value})
