"""Checks every step that changes the graph: the model is still valid and computes what it computed.

Every activation that the imported model has too is compared with that of the imported model, and
outputs with those of the user's file, which onnxruntime reads by itself, where it runs that.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from compiler.checks import baseline
from compiler.checks.distance import finite_values, nudge
from compiler.errors import InternalError
from compiler.graph import all_activations
from compiler.graph.reference import Reference
from compiler.importer import pixels
from compiler.quantize.samples import random_sample

# Passes are exact rewrites: float rounding alone, relative to the largest value of a tensor.
# Rounding adds up over the layers of a network; the deepest tested here, DenseNet-121, stays below
# 1e-6.
TOLERANCE = 1e-4
# Some networks blow rounding up. How far shows where inputs differ by NUDGE, relative to their
# largest value; a pass may be off by MOST times the difference that this makes.
NUDGE = 1e-6
MOST = 10


class Checker:
    """Holds what the imported model computes for random inputs against what passes make of it.

    `wanted` are its activations by name, the outputs from the file in `path` where there is one;
    `allowed` are relative errors. Activations in `rescaled` were multiplied by factors on purpose.
    """

    def __init__(self, original: ir.Model, seed: int, path: Path | None = None) -> None:
        self.sample = random_sample(original.graph.inputs, seed, pixels.of(original))
        self.rescaled: set[str] = set()
        self.wanted: dict[str, np.ndarray] = {}
        self.allowed: dict[str, float] = {}
        self._take_model(original, seed)
        if path is not None:
            self._take_file(path, original)

    def _take_model(self, original: ir.Model, seed: int) -> None:
        nudged_sample = nudge(self.sample, np.random.default_rng(seed), NUDGE)
        activations = list(all_activations(original.graph))
        with Reference(original, activations) as reference:
            found = reference.run(self.sample)
        with pixels.nudged(original, NUDGE), Reference(original, activations) as reference:
            nudged = reference.run(nudged_sample)
        for name, array in found.items():
            # Sequences are not compared.
            if not isinstance(array, np.ndarray):
                continue
            self.wanted[name] = array
            error = _error(nudged[name], array)
            if error < np.inf:
                self.allowed[name] = max(TOLERANCE, MOST * error)

    def _take_file(self, path: Path, original: ir.Model) -> None:
        least = baseline.tolerance(original)
        for name, array in baseline.outputs(path, original, self.sample).items():
            if isinstance(array, np.ndarray):
                self.wanted[name] = array
                self.allowed[name] = max(self.allowed.get(name, TOLERANCE), least)

    def check(self, name: str, model: ir.Model, rescaled: Collection[str] = ()) -> None:
        """Raises InternalError that names the step and the first tensor that differs.

        Tensors in `rescaled` may differ from here on: they were multiplied by factors that their
        readers undo.
        """
        self.rescaled.update(rescaled)
        _check_valid(name, model)
        shared = [value for value in all_activations(model.graph) if self._is_held(value)]
        with Reference(model, shared) as reference:
            found = reference.run(self.sample)
        for value in shared:
            tensor = str(value.name)
            array = found.get(tensor)
            if not isinstance(array, np.ndarray):
                continue
            error = _error(array, self.wanted[tensor])
            if error > self.allowed.get(tensor, TOLERANCE):
                raise InternalError(
                    name, f"tensor '{tensor}' differs from the original by {error:.1e}"
                )

    def _is_held(self, value: ir.Value) -> bool:
        return value.name in self.wanted and value.name not in self.rescaled


def _check_valid(name: str, model: ir.Model) -> None:
    """Raises InternalError where ONNX's checker refuses the model."""
    # It insists on shapes of outputs, which some models do not have.
    if any(value.shape is None for value in model.graph.outputs):
        return
    try:
        common.CheckerPass()(model)
    except Exception as error:
        raise InternalError(name, f"the model is not valid after this pass: {error}") from error


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest value.

    Infinite where shapes differ, or what is not finite; arrays of other types than numbers are
    equal (0) or not (infinite).
    """
    if got.shape != want.shape:
        return float("inf")
    if got.dtype.kind not in "fiu" or not got.size:
        return 0.0 if np.array_equal(got, want) else float("inf")
    pair = finite_values(got, want)
    if pair is None:
        return float("inf")
    got, want = pair
    difference = np.abs(got - want).max(initial=0)
    return float(difference / max(np.abs(want).max(initial=0), 1e-6))
