"""A second opinion on files that onnxruntime does not run: ONNX's own reference evaluator, in a
process of its own (evaluate.py), which can be ended."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from compiler.checks.distance import distance
from compiler.quantize.samples import Sample

# Seconds that the evaluator gets for one sample; it is written in numpy and Python.
EVALUATOR_SECONDS = 120
_EVALUATE = Path(__file__).parent / "evaluate.py"


def evaluated(path: Path, sample: Sample, wanted: Sample, tolerance: float) -> str:
    """What ONNX's evaluator gives for a file, in words: it agrees with `wanted` up to a distance of
    `tolerance`, or not, or cannot run it."""
    try:
        found = _run(path, sample)
    except subprocess.TimeoutExpired:
        return f"ONNX's evaluator took more than {EVALUATOR_SECONDS} s for a sample"
    if found is None:
        return "ONNX's evaluator does not run it either"
    distances = {}
    for name, array in found.items():
        if name in wanted:
            distances[name] = distance(wanted[name], array)
    if not distances:
        return "ONNX's evaluator gives no tensors to compare"
    worst = max(distances, key=lambda name: distances[name])
    off = distances[worst]
    if off <= tolerance:
        return "ONNX's evaluator agrees with the import"
    how = "of another type or shape" if np.isinf(off) else f"{off:.1%} off"
    return f"ONNX's evaluator does NOT agree with the import: output '{worst}' is {how}"


def _run(path: Path, sample: Sample) -> Sample | None:
    """The outputs that are tensors; None where the evaluator fails."""
    with tempfile.TemporaryDirectory(prefix="evaluator-") as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **sample)  # type: ignore[arg-type]
        command = [sys.executable, str(_EVALUATE), str(path.resolve()), folder]
        ran = subprocess.run(command, capture_output=True, timeout=EVALUATOR_SECONDS, check=False)
        if ran.returncode:
            return None
        with np.load(Path(folder) / "outputs.npz", allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
