"""The arrays that a caller gives: whether they fit a model's inputs, one sample or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.runtime.manifest import TensorEntry, fixed_shape

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Input:
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    may_hold_nan: bool

    def checked(self, given: np.ndarray) -> np.ndarray:
        """The array in the model's type. Raises ValueError for what does not fit."""
        array = np.asarray(given)
        if array.shape != self.shape or array.dtype.kind != self.dtype.kind:
            found = f"{list(array.shape)} {array.dtype}"
            expected = f"{list(self.shape)} {self.dtype}"
            raise ValueError(f"input '{self.name}' is {found}; the model takes {expected}")
        if array.dtype != self.dtype:
            # A float64 beyond float32 becomes infinity, which is taken as the largest number.
            with np.errstate(over="ignore"):
                array = array.astype(self.dtype)
        # The minimum of an array with NaN is NaN; unlike np.isnan it needs no array of its own.
        if not self.may_hold_nan and np.isnan(array.min(initial=0)):
            where = f"input '{self.name}' {list(self.shape)}"
            raise ValueError(f"{where} holds NaN; replace it before the model runs")
        return array


class Inputs:
    """What a model takes: for each input a name, a shape and a type."""

    def __init__(self, tensors: Sequence[TensorEntry]) -> None:
        self._inputs: dict[str, _Input] = {}
        for tensor in tensors:
            name = tensor["name"]
            dtype = np.dtype(tensor["dtype"])
            # Integers have no NaN; `nan` marks inputs in which the model looks for NaN itself.
            may_hold_nan = dtype.kind != "f" or bool(tensor.get("nan"))
            self._inputs[name] = _Input(name, fixed_shape(tensor), dtype, may_hold_nan)

    def checked(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """One sample, in the model's types; arrays that have them already are not copied.

        Raises ValueError for a name that is no input, an input that is missing, another shape or
        kind of number, and for NaN: int8 and some operators of the host would silently turn it into
        a finite number.
        """
        for name in arrays:
            if name not in self._inputs:
                known = ", ".join(sorted(self._inputs)) or "no inputs"
                raise ValueError(f"array '{name}' is no input of the model; it has {known}")
        values = {}
        for name, expected in self._inputs.items():
            if name not in arrays:
                raise ValueError(f"input '{name}' {list(expected.shape)} is missing")
            values[name] = expected.checked(arrays[name])
        return values

    def samples(self, arrays: Arrays) -> list[dict[str, np.ndarray]]:
        """The samples in arrays that hold one sample each, or several along the first axis.

        Raises ValueError for what does not fit.
        """
        stacks = {name: self._stack(name, array) for name, array in arrays.items()}
        counts = {len(stack) for stack in stacks.values() if stack is not None}
        fits = all(stack is not None for stack in stacks.values())
        if not fits or len(counts) != 1:
            return [self.checked(arrays)]  # which says what is wrong with them
        found = []
        for index in range(counts.pop()):
            sample = {name: stack[index] for name, stack in stacks.items() if stack is not None}
            found.append(self.checked(sample))
        return found

    def _stack(self, name: str, array: np.ndarray) -> np.ndarray | None:
        if name not in self._inputs:
            return array[None]  # refused by `checked`, which names it
        return stacked(array, self._inputs[name].shape)


def stacked(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """One sample of `shape`, or several along the first axis, as [samples, *shape]; None for
    anything else.

    Where the shape begins with a batch of 1, several samples may take its place: [8, 3, 224, 224]
    are 8 samples of [1, 3, 224, 224].
    """
    if array.shape == shape:
        return array[None]
    if shape[:1] == (1,) and array.shape[1:] == shape[1:]:
        return array[:, None]
    if array.shape[1:] == shape:
        return array
    return None
