"""NaN never becomes a finite number on its way through a bundle: not in the input, nor where the
host makes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.partition import PartitionOptions, PlacePolicy
from compiler.runtime import Bundle, Pipeline, SegmentError
from compiler.runtime.pipeline import quantize
from tests.conftest import Cli, save


@pytest.mark.parametrize("place", ["tpu", "host"])
def test_nan_in_the_input_is_refused(
    place: PlacePolicy, small_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """Wherever the first segment runs: int8 and some operators of the host would make finite
    numbers of it."""
    building.build(
        small_model, tmp_path / "b", BuildOptions(partitioning=PartitionOptions(place=place))
    )
    x = np.zeros((1, 3, 16, 16), np.float32)
    x[0, 2, 7, 3] = np.nan
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    with pytest.raises(ValueError, match=r"input 'x' \[1, 3, 16, 16\] holds NaN"):
        pipeline.run({"x": x})
    np.save(tmp_path / "x.npy", x)
    code, _, err = run_cli(
        "run", tmp_path / "b", "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz"
    )
    assert code == 2 and "E-INPUT" in err and "'x'" in err and not (tmp_path / "y.npz").exists()
    # One that gets past that, as from another program, does not get into int8 either.
    with pytest.raises(ValueError, match="NaN"):
        quantize(x, 0.1, 3)
    assert quantize(np.array([np.inf, -np.inf], np.float32), 0.1, 3).tolist() == [127, -128]


def logarithm(inputs: str, front: str) -> onnx.ModelProto:
    """A convolution behind what the host computes of the input."""
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g ({inputs}) => (float[1,8,6,6] y)
    <float[1] zero = {{0.0}}> {{ {front} c = Conv (l, w) y = Relu (c) }}"""
    proto = onnx.parser.parse_model(text)
    w = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return proto


@pytest.mark.parametrize("opset", [20, 25])
def test_nan_that_the_host_makes_does_not_become_a_number(opset: int, tmp_path: Path) -> None:
    """Opset 25 has its values quantized by the runtime, the other one inside the host's segment."""
    proto = logarithm("float[1,3,8,8] x", "l = Log (x)")
    proto.opset_import[0].version = opset
    path = save(tmp_path / "m.onnx", proto)
    x = np.random.default_rng(1).uniform(0.5, 2, (4, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    building.build(path, tmp_path / "b", BuildOptions(calibration=tmp_path / "c.npz"))
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    assert [s["device"] for s in pipeline.segments][:2] == ["host", "tpu"]
    assert np.isfinite(pipeline.run({"x": x[:1]})["y"]).all()
    x[0, 1, 7, 2] = 0  # whose logarithm is infinite: int8 saturates
    assert np.isfinite(pipeline.run({"x": x[:1]})["y"]).all()
    x[0, 1, 7, 2] = -1
    with pytest.raises(SegmentError, match=r"segment [01].*tensor '.*' holds NaN"):
        pipeline.run({"x": x[:1]})


def test_a_model_that_looks_for_nan_takes_it(tmp_path: Path) -> None:
    proto = logarithm("float[1,3,8,8] x", "n = IsNaN (x) l = Where (n, zero, x)")
    path = save(tmp_path / "m.onnx", proto)
    building.build(path, tmp_path / "b", BuildOptions())
    pipeline = Pipeline(Bundle.open(tmp_path / "b"))
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    x[0, 0, 0, 0] = 0
    want = pipeline.run({"x": x})["y"]
    x[0, 0, 0, 0] = np.nan
    assert np.array_equal(pipeline.run({"x": x})["y"], want)
