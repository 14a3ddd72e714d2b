"""What is said of the difference between two tensors; every figure here is worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compiler.checks.difference import (
    PERFECT_DB,
    Channels,
    Difference,
    channel_axes,
    parts_by_size,
    slice_text,
)


def difference(pairs: list[tuple[object, object]], known: Channels | None = None) -> Difference:
    found = Difference(known)
    for got, want in pairs:
        found.add(np.asarray(got, np.float32), np.asarray(want, np.float32))
    return found


def test_equal_results_have_no_noise() -> None:
    assert difference([([1, 2], [1, 2])]).sqnr_db == PERFECT_DB
    found = difference([([np.inf, np.nan], [np.inf, np.nan])])
    assert found.sqnr_db == found.plain_sqnr_db == PERFECT_DB


@pytest.mark.parametrize(
    ("got", "want"), [([3, 4], [3]), ([3], [3, 4]), ([[3], [4]], [[3, 0, 0]]), ([3, 4], [[3]])]
)
def test_what_one_lacks_is_an_error(got: object, want: object) -> None:
    found = difference([(got, want)])
    assert found.noise == 16 and found.largest == 4


def test_a_constant_is_not_signal() -> None:
    """101, 99, 101, 99 and 0.1 more: the plain signal is 10001 a value, what varies 1, the noise
    0.01."""
    wants = [np.full((1, 1, 2, 2), 100.0 + sign) for sign in (1, -1, 1, -1)]
    found = difference([(want + np.float32(0.125), want) for want in wants])
    assert found.plain_sqnr_db == round(10 * math.log10(10001 / 0.015625), 2)
    assert found.sqnr_db == round(10 * math.log10(1 / 0.015625), 2) == 18.06
    assert found.variation == round(math.sqrt(1 / 10001), 4)


def test_a_constant_error_is_an_error() -> None:
    """Means are taken of each channel, 5 and -5, and the error is counted in full."""
    rows = np.array([[6, -4], [4, -6]])
    want = rows[:, :, None, None] * np.ones((2, 2, 3, 3))
    found = difference([(want + 2, want)])
    assert found.sqnr_db == round(10 * math.log10(1 / 4), 2)


def test_a_variation_far_below_the_mean_keeps_its_digits() -> None:
    """1,000,000 +- 16 in float64: sums of squares would cancel to a few digits. The noise is 1."""
    found = Difference()
    for sign in (1, -1):
        want = np.full((1, 4, 8, 8), 1e6 + sign * 16.0)
        found.add(want + 1, want)
    assert found.sqnr_db == round(10 * math.log10(256), 2)


def boxes_and_scores() -> tuple[np.ndarray, np.ndarray]:
    """[1, 4 + 2, 100]: boxes up to 300 pixels, scores of 0 and 1, and both in int8 of one scale of
    300 / 127."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(20, 300, (1, 4, 100))
    scores = np.tile([0.0, 1.0], (1, 2, 50))
    want = np.concatenate([boxes, scores], axis=1)
    scale = 300 / 127
    return np.rint(want / scale) * scale, want


def test_boxes_in_pixels_do_not_hide_scores() -> None:
    """All scores come out as 0: of a variation of 1/4 a value, the error is 1/2, which is -3.01 dB."""
    got, want = boxes_and_scores()
    assert not got[:, 4:].any()
    found = difference([(got, want)])
    assert found.plain_sqnr_db > 40
    assert found.sqnr_db == -3.01
    assert found.worst() == {"slice": "[:, 4:6]", "sqnr_db": -3.01}


def test_rows_of_boxes_and_scores_are_the_same() -> None:
    got, want = (np.swapaxes(array, 1, 2) for array in boxes_and_scores())
    found = difference([(got, want)])
    assert found.worst() == {"slice": "[:, :, 4:6]", "sqnr_db": -3.01}


def test_probabilities_are_one_part_however_rare() -> None:
    """A class that is never above 0.001 beside one of 0.9 has the same unit."""
    want = np.tile([0.0, 0.9, 0.001], (1, 16, 1)) * np.linspace(0.5, 1, 16)[:, None]
    found = difference([(want, want)])
    _, parts = found.parts() or (0, [])
    assert len(parts) == 1


def test_the_worst_channel_is_named_in_a_part_that_is_one() -> None:
    want = np.tile([8.0, -8.0], (1, 4, 8, 4))
    got = want.copy()
    got[0, 2] += 8  # as much as it varies: 0 dB
    found = difference([(got, want)], Channels(1))
    assert found.worst() == {"slice": "[:, 2]", "sqnr_db": 0.0}
    assert found.sqnr_db == round(10 * math.log10(4), 2)


def test_one_sample_of_a_vector_cannot_tell() -> None:
    found = difference([([[1.0, 5, 3]], [[1.1, 5, 3]])])
    assert found.sqnr_db is None and found.plain_sqnr_db > 20
    assert found.report()["sqnr_db"] is None


def test_samples_that_do_not_vary_cannot_tell() -> None:
    found = difference([([[1.0, 5, 3]], [[1.1, 5, 3]])] * 4)
    assert found.sqnr_db is None and found.variation == 0


def test_noise_is_relative_to_what_varies() -> None:
    wants = [np.full((1, 1, 2, 2), 100.0 + sign) for sign in (1, -1)]
    assert difference([(want + 0.5, want) for want in wants]).relative_noise == pytest.approx(0.25)
    still = difference([([[4.0]], [[2.0]])] * 3)
    assert still.relative_noise == pytest.approx(1.0)


def test_shapes_that_depend_on_data_have_no_rows() -> None:
    """Three and five boxes: coordinates are the channels whatever their number."""
    rng = np.random.default_rng(0)
    wants = [rng.uniform(0, 100, (count, 4)) for count in (3, 5)]
    found = difference([(want, want + 1) for want in wants])
    assert (found.parts() or (None, []))[0] == 1


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), (-1,)),
        ((7,), (0,)),
        ((1, 7), (1,)),
        ((1, 7, 1, 1), (1,)),
        ((1, 1, 1, 7), (3,)),
        ((5, 7), (1, 0)),
        ((1, 5, 7), (1, 2)),
        ((1, 1, 5, 7), (1,)),
        ((1, 5, 7, 1), (3,)),
        ((1, 3, 5, 7), (1, 3)),
        ((1, 3, 4, 5, 7), (1, 4)),
    ],
)
def test_channel_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert channel_axes(shape) == axes


@pytest.mark.parametrize("axis", [1, 3])
def test_channels_are_where_means_differ(axis: int) -> None:
    """Channels first or last."""
    rng = np.random.default_rng(0)
    shape = [-1 if i == axis else 1 for i in range(4)]
    want = rng.standard_normal((1, 6, 6, 6)) + np.arange(6).reshape(shape) * 10
    assert (difference([(want, want)]).parts() or (None,))[0] == axis


def test_parts_are_more_than_four_times_apart() -> None:
    def parts(*peaks: float) -> list[list[int]]:
        return [
            part.tolist() for part in parts_by_size(np.array(peaks), np.zeros(len(peaks), bool))
        ]

    assert parts(300, 200, 1, 0.5) == [[0, 1], [2, 3]]
    assert parts(4, 1, 4, 1) == [[0, 1, 2, 3]]
    assert parts(4.1, 1, 4.1, 1) == [[0, 2], [1, 3]]
    assert parts(640, 640, 79, 1) == [[0, 1], [2], [3]]
    assert parts(0, 0) == [[0, 1]]
    assert parts(300, 0, 1) == [[0], [1, 2]]
    # One quiet channel of nine is no part, two of nine are.
    assert parts(*[5.0] * 8, 1) == [[*range(9)]]
    assert parts(*[5.0] * 7, 1, 1) == [[*range(7)], [7, 8]]


def test_channels_in_0_to_1_are_one_part() -> None:
    """Boxes, scores of classes that are found, and of one that hardly is."""
    peaks = np.array([320, 320, 320, 320, 0.9, 0.8, 0.01])
    found = parts_by_size(peaks, peaks <= 1)
    assert [part.tolist() for part in found] == [[0, 1, 2, 3], [4, 5, 6]]


def test_known_parts_are_kept() -> None:
    _, want = boxes_and_scores()
    _, parts = difference([(want, want)], Channels(1, (2, 5))).parts() or (0, [])
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3, 4], [5]]


def test_slices_are_pythons() -> None:
    assert slice_text(1, np.arange(4, 22)) == "[:, 4:22]"
    assert slice_text(0, np.array([3])) == "[3]"
    assert slice_text(2, np.array([0, 1, 5])) == "[:, :, (0:2, 5)]"
    assert slice_text(1, np.arange(0, 20, 2)) == "[:, (0, 2, ... 10 in all)]"


def test_a_tensor_without_values_has_no_figures_that_say_something() -> None:
    difference = Difference()
    difference.add(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert difference.parts() is None
    assert difference.report()["sqnr_db"] == PERFECT_DB
