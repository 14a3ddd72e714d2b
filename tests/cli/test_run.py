"""The command `run`: what it writes, and what it says of its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.runtime.conversion import quantize
from compiler.runtime.inputs import Inputs
from tests.conftest import Cli, save

SIZED_BY_DATA = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1,6] x) => (int64[2,n] y, float[1,6] file) {
        file = Relu (x) y = NonZero (file) }"""


def test_outputs_whose_shape_differs_between_samples(tmp_path: Path, run_cli: Cli) -> None:
    """Each sample against onnxruntime. An output of one shape stays one array, also with a name
    that np.savez cannot take."""
    model = save(tmp_path / "m.onnx", onnx.parser.parse_model(SIZED_BY_DATA))
    building.build(model, tmp_path / "b", BuildOptions())
    x = np.random.default_rng(3).standard_normal((5, 1, 6)).astype(np.float32)
    x[0] = 1  # some are sure to differ
    x[1] = -1
    np.savez(tmp_path / "x.npz", x=x)
    code, out, err = run_cli(
        "run", tmp_path / "b", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz"
    )
    assert code == 0 and "y/4" in out
    notes = [line for line in err.splitlines() if "shape differs" in line]
    assert len(notes) == 1 and "written as y/0 to y/4" in notes[0]
    session = ort.InferenceSession(model)
    with np.load(tmp_path / "y.npz") as found:
        assert sorted(found) == ["file", "y/0", "y/1", "y/2", "y/3", "y/4"]
        for index, sample in enumerate(x):
            wanted = session.run(["y"], {"x": sample})[0]
            np.testing.assert_array_equal(found[f"y/{index}"], wanted)
        assert found["file"].shape == (5, 6)


def test_results_are_no_npy_file(small_bundle: Path, tmp_path: Path, run_cli: Cli) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    code, _, err = run_cli(
        "run", small_bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"
    )
    assert code == 2 and "name an .npz file" in err and not (tmp_path / "y.npy").exists()


@pytest.mark.parametrize("is_infinite", [True, False])
def test_infinity_is_noted_once(
    is_infinite: bool, small_bundle: Path, tmp_path: Path, run_cli: Cli
) -> None:
    x = np.zeros((3, 3, 16, 16), np.float32)
    if is_infinite:
        x[1:, 0, 0, 0] = np.inf
    np.save(tmp_path / "x.npy", x)
    code, _, err = run_cli(
        "run", small_bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz"
    )
    assert code == 0 and err.count("input 'x' holds infinity") == is_infinite


@pytest.mark.filterwarnings("error")
def test_huge_values_saturate_in_silence() -> None:
    huge = np.array([3e38, -3e38, np.inf], np.float32)
    assert quantize(huge, 1e-3, 5).tolist() == [127, -128, 127]


def test_a_model_without_inputs_says_so() -> None:
    with pytest.raises(ValueError, match="'x' is no input of the model; it has no inputs"):
        Inputs([]).checked({"x": np.zeros(1, np.float32)})
