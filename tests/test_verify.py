"""What is said of the difference between two results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.checks.verify import PERFECT_DB, Difference
from compiler.driver import build as building
from tests.conftest import save


def difference(got: object, want: object) -> Difference:
    found = Difference()
    found.add(np.asarray(got, np.float32), np.asarray(want, np.float32))
    return found


def test_equal_results_have_no_noise() -> None:
    assert difference([1, 2], [1, 2]).sqnr_db == PERFECT_DB
    assert difference([np.inf, np.nan], [np.inf, np.nan]).sqnr_db == PERFECT_DB


@pytest.mark.parametrize(
    ("got", "want"), [([3, 4], [3]), ([3], [3, 4]), ([[3], [4]], [[3, 0, 0]]), ([3, 4], [[3]])]
)
def test_what_one_lacks_is_an_error(got: object, want: object) -> None:
    found = difference(got, want)
    assert found.noise == 16 and found.largest == 4


def test_numbers_are_samples_and_outputs_too(tmp_path: Path) -> None:
    """Inputs and outputs without axes."""
    text = (
        "g (float[1,4] x, float s) => (float y) { m = Mul (x, s) y = ReduceSum <keepdims = 0> (m) }"
    )
    model = save(
        tmp_path / "m.onnx",
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 18]> ' + text),
    )
    data = tmp_path / "samples.npz"
    np.savez(data, x=np.ones((8, 1, 4), np.float32), s=np.arange(8, dtype=np.float32))
    manifest = building.build(model, tmp_path / "b", building.Options(calibration=data))
    assert manifest["quality"]["outputs"]["y"]["sqnr_db"] > 100
