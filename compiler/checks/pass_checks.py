"""Checks every pass: the model is still valid and computes what the imported one computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

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
    """Holds the imported model's own results on random inputs."""

    def __init__(self, original: ir.Model, seed: int) -> None:
        self.sample = random_sample(original.graph.inputs, seed)
        values = [v for v in all_activations(original.graph) if v.dtype is not None]
        rng = np.random.default_rng(seed)
        with Reference(original, values) as reference:
            self.wanted = reference.run(self.sample)
            nudged = reference.run(
                {name: _nudged(array, rng) for name, array in self.sample.items()}
            )
        self.allowed = {
            name: max(TOLERANCE, MOST * error)
            for name, wanted in self.wanted.items()
            if (error := _error(nudged[name], wanted)) < np.inf
        }

    def check(self, name: str, model: ir.Model) -> None:
        """Raises InternalError that names the pass and the first tensor that differs."""
        try:
            if all(
                v.shape is not None for v in model.graph.outputs
            ):  # else the checker has no words for it
                common.CheckerPass()(model)
        except Exception as error:
            raise InternalError(name, f"the model is not valid after this pass: {error}") from error
        shared = [v for v in all_activations(model.graph) if v.name in self.wanted]
        with Reference(model, shared) as reference:
            found = reference.run(self.sample)
        for value in shared:
            if value.name not in found:
                continue
            off = _error(found[value.name], self.wanted[value.name])
            if off > self.allowed.get(str(value.name), TOLERANCE):
                raise InternalError(
                    name, f"tensor '{value.name}' differs from the original by {off:.1e}"
                )


def _nudged(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Floats with relative noise, other numbers as they are."""
    if array.dtype.kind != "f":
        return array
    return (array * (1 + NUDGE * rng.standard_normal(array.shape))).astype(array.dtype)


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite where shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    if got.dtype.kind not in "fiu" or not got.size:
        return 0.0 if np.array_equal(got, want) else float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(got.astype(np.float64) - want.astype(np.float64)))
        scale = np.nan_to_num(np.abs(want.astype(np.float64)), posinf=0).max()
    return float(difference.max() / max(scale, 1e-6))
