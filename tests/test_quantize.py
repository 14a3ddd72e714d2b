"""Scales, observers, weights: the corner cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.driver import build as building
from compiler.driver.options import BuildOptions
from compiler.errors import CalibrationError, ModelError
from compiler.quant import Quant, from_range
from compiler.quantize import weights
from compiler.quantize.calibrate import Observers, _mse, _percentile
from compiler.runtime import Bundle, Pipeline
from tests.conftest import save


def test_range_holds_zero_exactly() -> None:
    for low, high in ((0.3, 5.0), (-4.0, -1.0), (-1.0, 3.0), (0.0, 1e-30)):
        quant = from_range(low, high)
        assert quant.dequantize(np.array([quant.zero_point]))[0] == 0
        for end in (low, high):
            assert (
                abs(quant.dequantize(quant.quantize(np.array([end])))[0] - end)
                <= quant.scale * 0.51
            )
    assert from_range(0, 0) == Quant(1.0, 0)


def around(input_scale: float, output_scale: float = 1.0) -> weights.Surroundings:
    return weights.Surroundings("w", input_scale, output_scale)


def test_channel_too_small_to_matter() -> None:
    """Its factor would be smaller than kernels take; it becomes zero."""
    w = np.array([[1.0, -1.0], [1e-20, 1e-21]], np.float32)
    quantized, scales, _ = weights.quantize(w, np.zeros(2, np.float32), around(0.5, 2.0))
    assert scales[1] * 0.5 / 2.0 >= 2.0**-32 and quantized.tolist() == [[127, -127], [0, 0]]
    _, scales, _ = weights.quantize(w * np.float32(1e9), np.zeros(2, np.float32), around(0.5, 1e-6))
    assert scales[0] * 0.5 / 1e-6 < 256


def test_weights_per_channel() -> None:
    w = np.array([[127.0, -3.0], [0.5, 0.25]], np.float32)
    quantized, scales, bias = weights.quantize(w, np.array([1.0, -1.0], np.float32), around(0.5))
    assert quantized.tolist() == [[127, -3], [127, 64]]
    assert np.allclose(scales, [1.0, 0.5 / 127]) and bias.tolist() == [2, -508]


def test_dead_channel_keeps_its_bias() -> None:
    quantized, scales, bias = weights.quantize(
        np.zeros((2, 3), np.float32), np.array([7.0, 0.0], np.float32), around(0.1)
    )
    assert not quantized.any() and scales[0] > 0 and scales[1] > 0
    assert np.isclose(bias[0] * np.float64(scales[0]) * 0.1, 7.0, rtol=1e-6) and bias[1] == 0


def test_bias_that_would_overflow_widens_the_scale() -> None:
    tiny = np.full((1, 4), 1e-9, np.float32)
    _, scales, bias = weights.quantize(tiny, np.array([1000.0], np.float32), around(1e-3))
    assert abs(int(bias[0])) <= 2**30 + 1024
    assert np.isclose(bias[0] * np.float64(scales[0]) * 1e-3, 1000.0, rtol=1e-6)


def test_infinite_weights_are_named() -> None:
    with pytest.raises(ModelError, match="'w'"):
        weights.quantize(np.array([[np.inf]], np.float32), np.zeros(1, np.float32), around(1.0))


def test_observers_cut_outliers() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(100_000), [40.0])
    counts = np.histogram(values, 2048, (-5, 40))[0]
    assert 3 < _percentile(counts, -5, 40)[1] < 6
    assert 3 < _mse(counts, -5, 40)[1] < 36
    assert _percentile(np.zeros(2048, np.int64), 1, 1) == (1, 1)


def test_observer_patterns() -> None:
    observers = Observers.parse(["mse", "conv*=percentile"])
    assert (observers.of("conv1"), observers.of("dense")) == ("percentile", "mse")


def built(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], x: np.ndarray
) -> Pipeline:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path = save(tmp_path / "m.onnx", proto)
    np.savez(tmp_path / "c.npz", x=np.stack([x, x]))
    building.build(path, tmp_path / "b", BuildOptions(calibration=tmp_path / "c.npz"))
    return Pipeline(Bundle.open(tmp_path / "b"))


def test_quantized_models_keep_their_scales(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "t": np.array(0.125, np.float32),
        "u": np.array(100, np.uint8),
        "wq": rng.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "wz": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "t", "u"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "t", "u"], ["y"]),
    ]
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    pipeline = built(tmp_path, nodes, constants, x)
    (segment,) = [s for s in pipeline.bundle.manifest["segments"] if s["device"] == "tpu"]
    (first,), (last,) = segment["inputs"], segment["outputs"]
    assert (np.float32(first["scale"]), first["zero_point"]) == (np.float32(0.05), 0)
    assert (np.float32(last["scale"]), last["zero_point"]) == (np.float32(0.125), -28)


def test_constant_activation(tmp_path: Path) -> None:
    """A channel that never moves, and a tensor that is always zero."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "v", "b"], ["y"]),
    ]
    constants = {
        "w": np.zeros((4, 3, 1, 1), np.float32),
        "v": np.ones((2, 4, 1, 1), np.float32),
        "b": np.array([3.0, -2.0], np.float32),
    }
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)
    got = built(tmp_path, nodes, constants, x).run({"x": x})["y"]
    assert np.allclose(got[0, 0], 3, atol=0.02) and np.allclose(got[0, 1], -2, atol=0.02)


def test_infinite_activation_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    big = {"w": np.full((1, 3, 1, 1), 3e38, np.float32)}
    with pytest.raises(CalibrationError, match="infinite"):
        built(tmp_path, nodes, big, np.full((1, 3, 4, 4), 100, np.float32))
