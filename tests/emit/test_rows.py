"""Host segments that quantize rows by their peaks and give results their factors at once, beside
the segments that onnxruntime runs operator by operator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.driver import build as building
from compiler.driver import picture, quantizing
from compiler.driver.options import BuildOptions
from compiler.emit import bundle, rows
from compiler.partition import PartitionOptions, Program
from compiler.quantize import samples as sampling
from compiler.runtime.onnx_segment import HostSegment
from tests.conftest import save

ROWS, INPUTS, OUTPUTS = 5, 24, 40
ARITHMETIC = {"Abs", "Div", "Sub", "Mul", "Add", "QuantizeLinear", "DequantizeLinear"}

Arrays = Mapping[str, np.ndarray]


def product(shape: str, rng: np.random.Generator) -> onnx.ModelProto:
    """A dense layer with a bias between operators of the host."""
    text = f"""
    <ir_version: 11, opset_import: ["" : 23]>
    g (float[{shape},{INPUTS}] x) => (float[{shape},{OUTPUTS}] y) {{
        s = Exp (x)
        d = MatMul (s, w)
        t = Add (d, b)
        y = Erf (t)
    }}"""
    proto = onnx.parser.parse_model(text)
    for name, size in (("w", (INPUTS, OUTPUTS)), ("b", (OUTPUTS,))):
        array = rng.standard_normal(size).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def quantized(proto: onnx.ModelProto, folder: Path, shape: tuple[int, ...]) -> Program:
    model_path = save(folder / "m.onnx", proto)
    samples = np.random.default_rng(1).standard_normal((4, *shape)).astype(np.float32)
    np.savez(folder / "c.npz", x=samples + 0.5)
    options = BuildOptions(calibration=folder / "c.npz", partitioning=PartitionOptions(place="tpu"))
    model = building.read(model_path, options)
    program = building.plan_program(model, options)
    loaded = sampling.load(options.calibration_path, model.graph.inputs, picture.form_of(model), 0)
    return quantizing.quantize(program, loaded, options)


def written(program: Program, folder: Path) -> list[tuple[HostSegment, onnx.ModelProto]]:
    """The host segments of a program, to run and to look at."""
    folder.mkdir()
    entries = bundle.write_segments({"": program}, folder)[""]
    paths = [folder / e["files"][0]["path"] for e in entries if e["device"] == "host"]
    return [(HostSegment(path, 1), onnx.load(path)) for path in paths]


@pytest.fixture(params=["1,5", "5", "1"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    shape = (*map(int, request.param.split(",")), INPUTS)
    return quantized(product(request.param, np.random.default_rng(0)), tmp_path, shape)


def test_fused_segments_give_what_plain_ones_give(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = written(program, tmp_path / "fused")
    for name in ("rows", "results"):
        monkeypatch.setattr(rows, name, lambda program, nodes: {})
    plain = written(program, tmp_path / "plain")
    rng = np.random.default_rng(2)
    (ahead, _), (behind, model) = fused
    x = 3 * rng.standard_normal(program.model.graph.inputs[0].shape.numpy())
    x = x.astype(np.float32)
    if ROWS in x.shape:
        x[..., 0, :] = -np.inf  # a row of zeros has no peak
    sent, wanted = ahead.run([x]), plain[0][0].run([x])
    names = [output.name for output in fused[0][1].graph.output[: len(sent)]]
    for name, got, want in zip(names, sent, wanted, strict=True):
        if got.dtype == np.int8:
            # 127 x / peak may be on either side of a half.
            assert np.abs(got.astype(int) - want.astype(int)).max() <= 1, name
            assert (got != want).mean() < 0.01 and got.any()
        else:
            np.testing.assert_allclose(got, want, rtol=1e-6)

    made = {v.name: v for v in model.graph.input}
    feeds = []
    for value in made.values():
        size = [d.dim_value for d in value.type.tensor_type.shape.dim]
        is_int8 = value.type.tensor_type.elem_type == onnx.TensorProto.INT8
        drawn = rng.integers(-128, 128, size) if is_int8 else np.abs(rng.standard_normal(size))
        feeds.append(drawn.astype(np.int8 if is_int8 else np.float32))
    for got, want in zip(behind.run(feeds), plain[1][0].run(feeds), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_product_takes_few_operators(program: Program, tmp_path: Path) -> None:
    """In front scales, rows and the sum that tells of NaN; behind the peaks and the bias."""
    (_, ahead), (_, behind) = written(program, tmp_path / "fused")
    kinds = [node.op_type for node in ahead.graph.node if node.op_type in ARITHMETIC]
    assert sorted(kinds) == ["Mul", "Mul", "QuantizeLinear"]
    kinds = [node.op_type for node in behind.graph.node if node.op_type in ARITHMETIC]
    assert sorted(kinds) == ["Add", "DequantizeLinear", "Mul"]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_rows_that_cannot_be_scaled_are_refused(
    wrong: float, program: Program, tmp_path: Path
) -> None:
    (ahead, _), _ = written(program, tmp_path / "fused")
    x = np.ones(program.model.graph.inputs[0].shape.numpy(), np.float32)
    ahead.run([x])
    x.flat[7] = wrong
    with pytest.raises(ValueError, match="NaN"):
        ahead.run([x])
