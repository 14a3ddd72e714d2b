"""Sequences that models with state are calibrated and verified on, and samples of single steps that
a float model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from compiler import files
from compiler.errors import CalibrationError
from compiler.graph import shape_of
from compiler.quantize import samples as sampling
from compiler.quantize.samples import Form, Loader, Sample, Samples
from compiler.runtime import arrays
from compiler.runtime.arrays import ArrayError
from compiler.runtime.folders import Folder
from compiler.runtime.state import sequences

# Without samples of the user: so many sequences, of so many steps.
RANDOM_SEQUENCES = 8
RANDOM_STEPS = 4

# Runs the float model on one step.
Run = Callable[[Sample], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Recording:
    """One sequence: the inputs of each step without the state, and the state of the first one."""

    steps: Sequence[Loader]
    first: Sample


@dataclass(frozen=True)
class Sequences:
    """Sequences, read when they are needed. `random` tells that they are not the user's."""

    recordings: Sequence[Recording]
    random: bool = False

    @property
    def steps(self) -> int:
        """How many steps they have together."""
        return sum(len(sequence.steps) for sequence in self.recordings)


def load(
    path: Path | None,
    inputs: Sequence[ir.Value],
    states: Sequence[str],
    form: Form | None = None,
    seed: int = 0,
) -> Sequences:
    """Sequences for a model whose inputs in `states` take its state.

    Each file of arrays in `path` holds one or more, pictures of a folder are one; where `path` is
    None, the data are random. Raises CalibrationError.
    """
    zeros = {}
    for value in inputs:
        if value.name in states:
            zeros[str(value.name)] = np.zeros(shape_of(value), sampling.dtype_of(value))
    free = [value for value in inputs if value.name not in zeros]
    if path is None:
        numbers = range(seed, seed + RANDOM_SEQUENCES * RANDOM_STEPS, RANDOM_STEPS)
        return Sequences([_random(free, zeros, number, form) for number in numbers], random=True)
    if sampling.holds_pictures(path):
        frames = sampling.load(path, free, form, seed)
        return Sequences([Recording(frames.loaders, zeros)])
    room = arrays.largest()
    found: list[Recording] = []
    for file in sampling.array_files(path):
        loaded = _read(file, room, free)
        room -= sum(array.nbytes for array in loaded.values())
        found += _recordings(loaded, inputs, zeros, str(file))
    return Sequences(found)


def _random(free: Sequence[ir.Value], first: Sample, seed: int, form: Form | None) -> Recording:
    pixels = None if form is None else form.pixels
    numbers = range(seed, seed + RANDOM_STEPS)
    steps = [partial(sampling.random_sample, free, number, pixels) for number in numbers]
    return Recording(steps, first)


def unrolled(
    given: Sequences, pairs: Mapping[str, str], run: Run, progress: Callable[[], None]
) -> Samples:
    """The steps of all sequences as samples of their own, each with the state that `run` gave
    behind the step before it.

    States wait on disk. `pairs` are {output: input}. Raises CalibrationError where an output does
    not fit the input that it goes into.
    """
    folder = files.temporary("sequences")
    loaders: list[Loader] = []
    starts = []
    for sequence in given.recordings:
        starts.append(len(loaders))
        state = dict(sequence.first)
        for load_step in sequence.steps:
            place = _States(folder, len(loaders))
            place.save(state)
            results = run({**load_step(), **state})
            for output, name in pairs.items():
                state[name] = _taken(output, name, results[output], state[name])
            loaders.append(partial(_step, load_step, place, tuple(state)))
            progress()
    return Samples(loaders, given.random, tuple(starts))


@dataclass(frozen=True)
class _States:
    """The state in front of one step, on disk; `folder` lives as long as anything here does."""

    folder: Folder
    number: int

    @property
    def _path(self) -> Path:
        return self.folder.path / f"{self.number}.npz"

    def save(self, state: Mapping[str, np.ndarray]) -> None:
        names = [f"{index}" for index in range(len(state))]
        with files.writing(self._path):
            np.savez(self._path, **dict(zip(names, state.values(), strict=True)))  # type: ignore[arg-type]

    def load(self, names: Sequence[str]) -> Sample:
        with np.load(self._path) as saved:
            return {name: saved[f"{index}"] for index, name in enumerate(names)}


def _step(load_step: Loader, place: _States, names: Sequence[str]) -> Sample:
    return {**load_step(), **place.load(names)}


def _taken(output: str, name: str, array: np.ndarray, before: np.ndarray) -> np.ndarray:
    """What an output gives for the next step. Raises CalibrationError where it does not fit."""
    if array.shape != before.shape or array.dtype != before.dtype:
        raise CalibrationError(
            f"output '{output}' is {list(array.shape)} {array.dtype} and goes back into input "
            f"'{name}' {list(before.shape)} {before.dtype}: name another pair with --state, or "
            "--state none"
        )
    return array


def _read(file: Path, room: int, free: Sequence[ir.Value]) -> Sample:
    """The arrays of a file by the inputs that they are for."""
    try:
        loaded = arrays.read(file, room)
    except ArrayError as error:
        raise CalibrationError(f"{file}: {error}") from error
    if not isinstance(loaded, np.ndarray):
        return loaded
    if len(free) != 1:
        names = ", ".join(f"'{value.name}'" for value in free)
        raise CalibrationError(
            f"{file}: one array for {len(free)} inputs ({names}): use an .npz file"
        )
    return {str(free[0].name): loaded}


def _recordings(
    loaded: Sample, inputs: Sequence[ir.Value], zeros: Sample, where: str
) -> list[Recording]:
    """The sequences in arrays."""
    shapes = {str(value.name): shape_of(value) for value in inputs}
    known = {str(value.name): value for value in inputs}
    try:
        cut = sequences(loaded, shapes, list(zeros))
    except ValueError as error:
        raise CalibrationError(f"{where}: {error}") from error
    found = []
    for steps in cut:
        if not len(steps):
            raise CalibrationError(f"{where}: holds a sequence without steps")
        stacks = {n: sampling.typed(a, known[n], where) for n, a in steps.inputs.items()}
        first = {n: sampling.typed(a, known[n], where) for n, a in steps.first.items()}
        loaders = [partial(_at, stacks, index) for index in range(len(steps))]
        found.append(Recording(loaders, {**zeros, **first}))
    return found


def _at(stacks: Mapping[str, np.ndarray], index: int) -> Sample:
    return {name: np.asarray(array[index]) for name, array in stacks.items()}
