"""Checks every step that changes the graph: the model is still valid and computes what the imported
one computes.

Its outputs are held against those of the user's file, which onnxruntime reads by itself, where it
runs that.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compiler.checks import baseline
from compiler.errors import InternalError
from compiler.graph import all_activations
from compiler.graph.reference import Reference
from compiler.quantize.samples import random_sample

# Passes are exact rewrites: float rounding alone, relative to the largest value of a tensor.
# Rounding adds up over the layers of a network; the deepest tested here, DenseNet-121, stays below
# 1e-6.
TOLERANCE = 1e-4
# Some networks blow rounding up: how far it goes shows by inputs that differ by NUDGE, and may be
# so many times that.
NUDGE, MOST = 1e-6, 10


class Checker:
    """Holds the imported model's own results on random inputs, and for its outputs those of the
    file in `path`."""

    def __init__(self, original: ir.Model, seed: int, path: Path | None = None) -> None:
        self.sample = random_sample(original.graph.inputs, seed)
        self.scaled: set[str] = set()
        rng = np.random.default_rng(seed)
        with Reference(original, list(all_activations(original.graph))) as reference:
            found = reference.run(self.sample)
            self.wanted = {
                name: array for name, array in found.items() if isinstance(array, np.ndarray)
            }
            nudged = reference.run(baseline.nudge(self.sample, rng, NUDGE))
        self.allowed = {
            name: max(TOLERANCE, MOST * error)
            for name, wanted in self.wanted.items()
            if (error := _error(nudged[name], wanted)) < np.inf
        }
        if path is not None:
            self._take_file(path, original)

    def _take_file(self, path: Path, original: ir.Model) -> None:
        least = baseline.tolerance(original)
        for name, array in baseline.outputs(path, original, self.sample).items():
            if isinstance(array, np.ndarray):
                self.wanted[name] = array
                self.allowed[name] = max(self.allowed.get(name, TOLERANCE), least)

    def check(self, name: str, model: ir.Model, scaled: Collection[str] = ()) -> None:
        """Raises InternalError that names the step and the first tensor that differs.

        Tensors in `scaled` may from here on: they were multiplied by factors that their readers
        undo.
        """
        self.scaled.update(scaled)
        try:
            if all(
                v.shape is not None for v in model.graph.outputs
            ):  # else the checker has no words for it
                common.CheckerPass()(model)
        except Exception as error:
            raise InternalError(name, f"the model is not valid after this pass: {error}") from error
        shared = [
            v
            for v in all_activations(model.graph)
            if v.name in self.wanted and v.name not in self.scaled
        ]
        with Reference(model, shared) as reference:
            found = reference.run(self.sample)
        for tensor in (str(value.name) for value in shared):
            if not isinstance(found.get(tensor), np.ndarray):
                continue
            off = _error(found[tensor], self.wanted[tensor])
            if off > self.allowed.get(tensor, TOLERANCE):
                raise InternalError(
                    name, f"tensor '{tensor}' differs from the original by {off:.1e}"
                )


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite where shapes differ, or what is
    not finite."""
    if got.shape != want.shape:
        return float("inf")
    if got.dtype.kind not in "fiu" or not got.size:
        return 0.0 if np.array_equal(got, want) else float("inf")
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    if (
        not np.array_equal(got[~finite], want[~finite], equal_nan=True)
        or not np.isfinite(got[finite]).all()
    ):
        return float("inf")
    difference = np.abs(got[finite] - want[finite]).max(initial=0)
    return float(difference / max(np.abs(want[finite]).max(initial=0), 1e-6))
