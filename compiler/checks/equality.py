"""How much of an output of integers, booleans or text is the same as in the float model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compiler.runtime.manifest import ExactQualityEntry

# A share is cut to so many steps, not rounded: only one that is whole counts as 1.
_STEPS = 10_000


class Equality:
    """Counts equal elements of an output of integers, booleans or text over samples.

    What indexes something, such as a class, is right or wrong, however near.
    """

    def __init__(self) -> None:
        self.equal = 0
        self.elements = 0

    def add(self, got: Any, want: Any) -> None:
        """Add one sample: two tensors, or two sequences of tensors.

        Elements of tensors whose shapes differ are all unequal, since none has a counterpart. So
        are those that only one sequence has.
        """
        got_tensors = tensors_of(got)
        want_tensors = tensors_of(want)
        for ours, theirs in zip(got_tensors, want_tensors, strict=False):
            self._add_tensor(ours, theirs)
        common = min(len(got_tensors), len(want_tensors))
        for left_over in [*got_tensors[common:], *want_tensors[common:]]:
            self.elements += max(left_over.size, 1)

    def _add_tensor(self, got: np.ndarray, want: np.ndarray) -> None:
        if got.shape == want.shape:
            self.elements += want.size
            self.equal += int(np.count_nonzero(got == want))
            return
        # Two tensors without elements may differ in shape too.
        self.elements += max(got.size, want.size, 1)

    def report(self) -> ExactQualityEntry:
        """`equal`: the share of equal elements, 1 where neither model gave any."""
        if self.elements == 0:
            return {"equal": 1.0}
        steps = math.floor(_STEPS * self.equal / self.elements)
        return {"equal": steps / _STEPS}


def tensors_of(result: Any) -> list[np.ndarray]:
    """The tensors of an output: those of a sequence, or the one that it is."""
    if isinstance(result, list | tuple):
        return [np.asarray(tensor) for tensor in result]
    return [np.asarray(result)]
