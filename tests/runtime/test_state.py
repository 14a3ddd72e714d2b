"""Sequences in arrays, and sessions that carry a state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compiler.runtime import Bundle, Runner
from compiler.runtime.state import State, sequences
from tests.streaming import closed_loop, recording

SHAPES = {"x": (1, 3), "n": (), "h": (2, 1)}


def array(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("x", "n", "h", "count", "steps"),
    [
        ((5, 1, 3), (5,), None, 1, 5),
        ((5, 3), (5,), (2, 1), 1, 5),
        ((4, 5, 1, 3), (4, 5), None, 4, 5),
        ((4, 5, 3), (4, 5), (4, 2, 1), 4, 5),
        # Single steps, each with a state of its own.
        ((4, 1, 3), (4,), (4, 2, 1), 4, 1),
        ((1, 3), (), (2, 1), 1, 1),
    ],
)
def test_arrays_are_cut_into_sequences(
    x: tuple[int, ...],
    n: tuple[int, ...],
    h: tuple[int, ...] | None,
    count: int,
    steps: int,
) -> None:
    arrays = {"x": array(*x), "n": array(*n)}
    if h is not None:
        arrays["h"] = array(*h)
    found = sequences(arrays, SHAPES, ["h"])
    assert [len(sequence) for sequence in found] == [steps] * count
    together = [sequence.step(index)["x"] for sequence in found for index in range(steps)]
    assert all(step.shape == (1, 3) for step in together)
    np.testing.assert_array_equal(np.ravel(together), arrays["x"].ravel())
    if h is not None:
        first = [sequence.first["h"] for sequence in found]
        np.testing.assert_array_equal(np.ravel(first), arrays["h"].ravel())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": array(5, 1, 3)}, "array 'n' [] is missing"),
        ({"x": array(5, 1, 3), "n": array(4)}, "different numbers of steps"),
        ({"x": array(5, 1, 4), "n": array(5)}, "the model takes [1, 3] at each step"),
        ({"x": array(5, 1, 3), "n": array(5), "h": array(3, 1)}, "the state of the first step"),
        ({"x": array(5, 1, 3), "n": array(5), "h": array(4, 2, 1)}, "one of 4 sequences"),
        ({"x": array(5, 1, 3), "y": array(5)}, "array 'y' is no input of the model"),
    ],
)
def test_arrays_that_do_not_fit(arrays: Mapping[str, np.ndarray], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        sequences(arrays, SHAPES, ["h"])
    assert said in str(raised.value)


def test_sessions_carry_their_own_state(detector: Bundle) -> None:
    """Two that take turns give what each gives alone, from zeros; a reset begins anew."""
    frames = recording(12, (1, 16), 1), recording(12, (1, 16), 2)
    with Runner(detector, "cpu") as runner:
        alone = []
        for given in frames:
            with runner.session() as session:
                alone.append(list(session.stream({"frame": frame} for frame in given)))
        first, second = runner.session(), runner.session()
        for index, pair in enumerate(zip(*frames, strict=True)):
            for session, frame, wanted in zip((first, second), pair, alone, strict=True):
                found = session.run({"frame": frame})
                for name, value in wanted[index].items():
                    np.testing.assert_array_equal(found[name], value)
        first.reset()
        again = first.run({"frame": frames[0][0]})
        np.testing.assert_array_equal(again["hn"], alone[0][0]["hn"])
        assert not np.array_equal(alone[0][0]["hn"], alone[0][1]["hn"])


def test_a_stream_is_one_sequence(detector: Bundle) -> None:
    frames = recording(6, (1, 16), 3)
    with Runner(detector, "cpu") as runner, runner.session() as session:
        wanted = [session.run({"frame": frame})["speech"] for frame in frames]
        found = [step["speech"] for step in runner.stream({"frame": frame} for frame in frames)]
        first = runner.run(runner.first_step({"frame": frames[0]}))["speech"]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(first, wanted[0])


def test_sessions_follow_the_file(detector: Bundle) -> None:
    frames = recording(40, (1, 16), 7)
    wanted = closed_loop(detector.path.with_suffix(".onnx"), {"frame": frames}, {"hn": "h"})
    with Runner(detector, "cpu") as runner, runner.session() as session:
        found = [session.run({"frame": frame})["speech"] for frame in frames]
    assert np.abs(np.stack(found) - wanted["speech"]).max() < 0.03


def test_a_given_state_replaces_the_carried_one(detector: Bundle) -> None:
    frame = recording(1, (1, 16))[0]
    state = np.full((1, 24), 0.5, np.float32)
    with Runner(detector, "cpu") as runner, runner.session() as session:
        given = session.run({"frame": frame, "h": state})
        np.testing.assert_array_equal(given["hn"], runner.run({"frame": frame, "h": state})["hn"])
        with pytest.raises(ValueError, match=r"NaN"):
            session.run({"frame": frame * np.nan})
        # A step that failed leaves the state as it was.
        after = session.run({"frame": frame})
        wanted = runner.run({"frame": frame, "h": given["hn"]})
        np.testing.assert_array_equal(after["hn"], wanted["hn"])
        with pytest.raises(ValueError, match=r"input 'h' .* is missing: `session` carries"):
            runner.run({"frame": frame})


def test_models_without_state_have_no_sessions(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    with Runner(bundle, "cpu") as runner, pytest.raises(ValueError, match="has no state"):
        runner.session()


def test_state_begins_with_zeros(detector: Bundle) -> None:
    state = State.of(detector.manifest)
    assert state.inputs == ["h"]
    np.testing.assert_array_equal(state.with_state({})["h"], np.zeros((1, 24), np.float32))
