"""ONNX's own node tests through the whole compiler: each builds and runs as in float, or is refused in one line.

Their operands are inputs, not constants, so most run on the host; what counts here is that any model builds.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler import build as building
from compiler.errors import CalibrationError, CompilerError, InternalError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests

    CASES = {case.name: case for case in load_model_tests(kind="node")}

# Cases that fail, each with its reason. One that starts to pass fails here, so that the list only shrinks.
EXCLUDED = {
    "test_if_opt": "onnxruntime refuses the optional type of the segment's output",
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_node(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    onnx.save(case.model, tmp_path / "model.onnx")
    try:
        quality = build(case, tmp_path)
    except InternalError:
        if name in EXCLUDED:
            pytest.xfail(EXCLUDED[name])
        raise
    except CompilerError as error:
        assert "\n" not in str(error)
        return
    assert name not in EXCLUDED, "it passes now: take it off the list"
    for output, entry in quality["outputs"].items():
        assert entry["sqnr_db"] >= 20, output


def build(case: Any, folder: Path) -> dict[str, Any]:
    """Build with the case's own inputs as the sample; with random ones where they are no samples."""
    path, output = folder / "model.onnx", folder / "bundle"
    try:
        options = building.Options(calibration=sample(case, folder))
        return dict(building.build(path, output, options)["quality"])
    except CalibrationError:
        return dict(building.build(path, output, building.Options())["quality"])


def sample(case: Any, folder: Path) -> Path | None:
    names = [value.name for value in case.model.graph.input]
    arrays = case.data_sets[0][0] if case.data_sets else []
    if len(arrays) != len(names) or not all(isinstance(a, np.ndarray | np.generic) for a in arrays):
        return None
    path = folder / "sample.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in zip(names, arrays, strict=True)})
    return path
