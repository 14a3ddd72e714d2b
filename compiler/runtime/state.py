"""Carries the state of a model from one step of a sequence to the next, and cuts arrays into
sequences."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from compiler.runtime.inputs import Arrays, stacked
from compiler.runtime.manifest import Manifest, StateEntry, fixed_shape

if TYPE_CHECKING:
    from types import TracebackType

Results = dict[str, np.ndarray]
Shape = tuple[int, ...]


class State:
    """What goes from the outputs of one step into the inputs of the next, zeros at first.

    A tensor is handed on as the model gives it. One that leaves an Edge TPU as int8 goes back in
    with the same scale, so that it becomes the same int8 again: nothing is lost on the way.
    """

    def __init__(self, entries: Sequence[StateEntry], inputs: Mapping[str, np.ndarray]) -> None:
        """`inputs` are zeros of the shape and type of each input that a state goes into."""
        self._entries = entries
        self._zeros = inputs
        self._carried: dict[str, np.ndarray] = dict(inputs)

    @classmethod
    def of(cls, manifest: Manifest) -> State:
        """The state of a bundle; none for a model without."""
        entries = manifest.get("state", [])
        names = {entry["input"] for entry in entries}
        zeros = {}
        for tensor in manifest["inputs"]:
            if tensor["name"] in names:
                zeros[tensor["name"]] = np.zeros(fixed_shape(tensor), np.dtype(tensor["dtype"]))
        return cls(entries, zeros)

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the inputs that it goes into."""
        return list(self._zeros)

    def reset(self) -> None:
        """Begin a new sequence."""
        self._carried = dict(self._zeros)

    def with_state(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """All inputs of a step; a state among `arrays` takes the place of the carried one."""
        return {**self._carried, **arrays}

    def following(self, sample: Arrays) -> dict[str, np.ndarray]:
        """A sample with the carried state in place of its own."""
        return {**sample, **self._carried}

    def take(self, results: Arrays) -> None:
        """Take over what a step gave."""
        for entry in self._entries:
            self._carried[entry["input"]] = results[entry["output"]]


class Session:
    """One sequence on a `Runner`, whose state it carries. `Runner.session` gives one.

        with runner.session() as session:
            for frame in frames:
                outputs = session.run({"input": frame})

    Several sessions may run on one runner at a time. Steps of one session follow each other, also
    where several threads call it.
    """

    def __init__(self, run: Callable[[Arrays], Results], state: State) -> None:
        self._run = run
        self._state = state
        self._lock = threading.Lock()

    def run(self, inputs: Arrays) -> Results:
        """The outputs of the next step, state included. Inputs of the state may be left out; one
        that is given is used instead of what the last step gave.

        Raises what `Runner.run` raises; the state is then as it was.
        """
        with self._lock:
            results = self._run(self._state.with_state(inputs))
            self._state.take(results)
        return results

    def stream(self, inputs: Iterable[Arrays]) -> Iterator[Results]:
        """The outputs of many steps, one after the other."""
        for step in inputs:
            yield self.run(step)

    def reset(self) -> None:
        """Begin a new sequence: the state is zeros again."""
        with self._lock:
            self._state.reset()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.reset()


@dataclass(frozen=True)
class Steps:
    """A sequence: inputs [T, *shape] by name, and the state [*shape] that the first step takes."""

    inputs: Mapping[str, np.ndarray]
    first: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return min(map(len, self.inputs.values()), default=0)

    def step(self, index: int) -> dict[str, np.ndarray]:
        """The inputs of a step, without the state."""
        return {name: np.asarray(array[index]) for name, array in self.inputs.items()}


def sequences(arrays: Arrays, shapes: Mapping[str, Shape], states: Iterable[str]) -> list[Steps]:
    """The sequences in arrays of the inputs that have `shapes`.

    Arrays of inputs are [T, *shape] for one sequence of T steps, or [N, T, *shape] for N of them; a
    leading 1 of the shape may be left out. Those in `states` are absent, [*shape] for the first
    step of one sequence, or [N, *shape] for the first steps of N. Raises ValueError for what does
    not fit.
    """
    wanted = set(states)
    for name in arrays:
        if name not in shapes:
            known = ", ".join(shapes) or "no inputs"
            raise ValueError(f"array '{name}' is no input of the model; it has {known}")
    first = {}
    for name in wanted.intersection(arrays):
        found = stacked(arrays[name], shapes[name])
        if found is None:
            raise ValueError(
                f"array '{name}' {list(arrays[name].shape)}: the state of the first step is "
                f"{list(shapes[name])}, or several stacked along the first axis, one per sequence"
            )
        first[name] = found
    count = max(map(len, first.values()), default=0)
    inputs = {}
    for name, shape in shapes.items():
        if name in wanted:
            continue
        if name not in arrays:
            raise ValueError(f"array '{name}' {list(shape)} is missing")
        inputs[name] = _cut(name, arrays[name], shape, count)
    _check_alike({name: len(array) for name, array in {**first, **inputs}.items()}, "sequences")
    _check_alike({name: array.shape[1] for name, array in inputs.items()}, "steps")
    number = len(next(iter(inputs.values())))
    cut = []
    for index in range(number):
        own = {name: array[index] for name, array in inputs.items()}
        cut.append(Steps(own, {name: array[index] for name, array in first.items()}))
    return cut


def _cut(name: str, array: np.ndarray, shape: Shape, count: int) -> np.ndarray:
    """An array as [N, T, *shape]; `count` is N where states tell it, else 0."""
    one = stacked(array, shape)
    if one is not None and count < 2:
        return one[None]
    if array.shape[2:] == shape and array.ndim > 1:
        return array
    if shape[:1] == (1,) and array.ndim == len(shape) + 1 and array.shape[2:] == shape[1:]:
        return array[:, :, None]
    if one is not None and len(one) == count:
        # States of many sequences, each of a single step.
        return one[:, None]
    raise ValueError(
        f"array '{name}' {list(array.shape)}: the model takes {list(shape)} at each step: stack "
        "the steps of a sequence along the first axis"
        + (f", behind one of {count} sequences, as the state has them" if count > 1 else "")
    )


def _check_alike(counts: Mapping[str, int], what: str) -> None:
    if len(set(counts.values())) > 1:
        raise ValueError(f"the arrays hold different numbers of {what}: {dict(counts)}")
