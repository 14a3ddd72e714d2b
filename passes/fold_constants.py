"""Evaluate what depends on constants only, drop what nobody reads, infer every shape."""

from __future__ import annotations

import contextlib
import logging

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from compiler.targets import Target

# Up to this many bytes a folded constant is kept; weights made by ConstantOfShape are larger than most.
LARGEST = 1 << 30


def run(model: ir.Model, target: Target) -> None:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    common.ShapeInferencePass()(model)
    with contextlib.suppress(RuntimeError):  # an operator that the folder cannot evaluate stays as it is
        optimizer.fold_constants(model, input_size_limit=LARGEST, output_size_limit=LARGEST)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    tidy(model)
    common.ShapeInferencePass()(model)


def tidy(model: ir.Model) -> None:
    """Remove nodes, initializers and opsets that nothing uses."""
    common.RemoveUnusedNodesPass()(model)
