"""The audit of compiled files: on public pairs of plain and compiled ones, and on what a program of
ours lays out that stands for edgetpu_compiler."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import helper, numpy_helper

from compiler.device.tflite_file import file_bytes, unpacked
from compiler.emit import bundle as bundles
from compiler.errors import ModelError
from compiler.vendor import darwinn
from compiler.vendor.audit import audit
from compiler.vendor.constants import Graph
from tests.conftest import Cli, save
from tests.device.test_legality import GROUNDTRUTH
from tests.standins import layout

PAIRS = GROUNDTRUTH / "pairs"
STANDIN = Path(__file__).parents[1] / "standins" / "edgetpu_compiler.py"

needs_pairs = pytest.mark.skipif(not PAIRS.is_dir(), reason="needs ../shared/groundtruth")


def pair(name: str) -> tuple[Path, Path]:
    """The compiled and the plain file of the public pair whose folder ends with `name`."""
    folder = next(path for path in sorted(PAIRS.iterdir()) if path.name.endswith(name))
    return folder / "model_edgetpu.tflite", folder / "model.tflite"


def blobs(compiled: Path) -> list[bytes]:
    """The parameters in a compiled file."""
    found: list[bytes] = []
    for name, operator in Graph.of(unpacked(file_bytes(compiled))).operators:
        if name == darwinn.CUSTOM:
            found += darwinn.stored(bytes(operator.customOptions)).parameters
    return found


def with_flipped(compiled: Path, blob: bytes, place: int, made: Path) -> Path:
    """A copy of a compiled file with a bit flipped of its parameters `blob`."""
    content = bytearray(compiled.read_bytes())
    content[content.index(blob) + place] ^= 1
    made.write_bytes(content)
    return made


def compiled_by_standin(plain: Path, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, STANDIN, "--out_dir", out, plain], check=True, capture_output=True
    )
    return out / f"{plain.stem}_edgetpu.tflite"


@needs_pairs
def test_every_layer_of_the_public_pairs_is_found() -> None:
    """Those of min_runtime 10, 12 and 14: uint8 and int8, one scale and one per channel."""
    layers: Counter[str] = Counter()
    for folder in PAIRS.iterdir():
        found = audit(folder / "model_edgetpu.tflite", folder / "model.tflite")
        assert found.status == "equal", (folder.name, found.first_difference)
        layers.update(layer.operator for layer in found.layers)
    assert layers == {
        "CONV_2D": 36,
        "DEPTHWISE_CONV_2D": 20,
        "FULLY_CONNECTED": 18,
        "MUL": 6,
        "ADD": 6,
    }


# Pairs with weights, biases, scales and zero points of their own, and constants of MUL and ADD.
TAMPERED = (
    "dense_256",
    "gabor_64x64_p4",
    "mobilenet_v1_0.25_128_quant",
    "ASR_Model",
    "bright_16x16",
)


@needs_pairs
@pytest.mark.parametrize("name", TAMPERED)
def test_a_flipped_bit_anywhere_is_found(name: str, tmp_path: Path) -> None:
    compiled, plain = pair(name)
    rng = np.random.default_rng(0)
    # Tables of SOFTMAX at the end of a file are not read.
    tables = 192 if name.startswith("bright") else 0
    for blob in blobs(compiled):
        for place in rng.integers(0, len(blob) - tables, 8):
            tampered = with_flipped(compiled, blob, int(place), tmp_path / "tampered.tflite")
            found = audit(tampered, plain)
            assert found.status == "differs", (name, place)
            assert len(found.of("differs")) == 1, (name, place)


@needs_pairs
def test_factors_and_summands_that_are_stored_otherwise_are_not_judged(tmp_path: Path) -> None:
    """Too few compiled files have such constants to refuse one for them."""
    compiled, plain = pair("ASR_Model")
    streamed, _ = blobs(compiled)
    content = compiled.read_bytes()
    other = tmp_path / "other.tflite"
    other.write_bytes(content.replace(streamed, bytes(len(streamed))))
    found = audit(other, plain)
    assert found.status == "not judged"
    assert Counter(layer.operator for layer in found.of("not judged")) == {"MUL": 2, "ADD": 2}


@needs_pairs
def test_files_of_another_model_are_found() -> None:
    """Both are networks of the same layers: colours of a tracker, sizes of a filter."""
    for one, other in (("gabor_64x64_p4", "gabor_64x64_7k_4o_2s"), ("dense_256", "dense_512")):
        assert audit(pair(one)[0], pair(other)[1]).status == "differs"
        assert audit(pair(other)[0], pair(one)[1]).status == "differs"


@needs_pairs
def test_layers_that_were_exchanged_are_found(tmp_path: Path) -> None:
    """Two layers of the same form with a single scale: each is in the compiled file, in the place
    of the other."""
    compiled, plain = pair("mobilenet_v1_0.25_128_quant")
    model = unpacked(file_bytes(plain))
    graph = Graph.of(model)
    first, second = [o for n, o in graph.operators if n == "CONV_2D"][7:9]
    for one, other in zip(graph.inputs(first)[1:], graph.inputs(second)[1:], strict=True):
        assert list(one.shape) == list(other.shape)
        one.buffer, other.buffer = other.buffer, one.buffer
    found = audit(compiled, written(model, tmp_path / "exchanged.tflite"))
    assert found.status == "differs"
    assert "in front of those of a layer that it depends on" in found.first_difference


@needs_pairs
@pytest.mark.parametrize("name", ["dense_256", "dense_512", "gabor_64x64_p4", "gabor_128x128_p4"])
def test_the_standin_lays_out_what_the_compiler_does(name: str) -> None:
    compiled, plain = pair(name)
    model = unpacked(file_bytes(plain))
    assert [layout.blob(model, model.subgraphs[0].operators)] == blobs(compiled)


def network() -> onnx.ModelProto:
    """Layers of every form that is stored in a way of its own: three and 70 channels, filters of
    1x1 and 3x3, depthwise ones, one output, no bias, a dense layer that reads an image."""
    rng = np.random.default_rng(1)
    shapes = {
        "wide": (70, 3, 3, 3),
        "depthwise": (70, 1, 3, 3),
        "pointwise": (24, 70, 1, 1),
        "deep": (6, 24, 3, 3),
        "dense": (9, 6 * 4 * 4),
        "single": (1, 9),
    }
    weights = {name: rng.standard_normal(shape) / 5 for name, shape in shapes.items()}
    weights["bias"] = rng.standard_normal(70) / 5
    weights["dense_bias"] = rng.standard_normal(9) / 5
    nodes = [
        helper.make_node("Conv", ["x", "wide", "bias"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], pads=[1] * 4, group=70),
        helper.make_node("Conv", ["c", "pointwise"], ["d"]),
        helper.make_node("Conv", ["d", "deep"], ["e"], pads=[1] * 4),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "dense", "dense_bias"], ["g"], transB=1),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "single"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "forms",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (1, 1))],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segment of our writer with layers of every form."""
    from compiler.driver import build as building
    from compiler.driver.options import BuildOptions

    folder = tmp_path_factory.mktemp("forms")
    model = save(folder / "forms.onnx", network())
    building.build(model, folder / "b", BuildOptions())
    paths = [s["files"][0]["path"] for s in bundles.load(folder / "b").manifest["segments"]]
    return folder / "b" / next(path for path in paths if path.endswith(".tflite"))


def test_layers_of_our_writer_are_found(plain: Path, tmp_path: Path) -> None:
    found = audit(compiled_by_standin(plain, tmp_path), plain)
    assert found.status == "equal"
    assert len(found.layers) >= 6


def test_a_flipped_bit_of_our_layers_is_found_where_it_is(plain: Path, tmp_path: Path) -> None:
    compiled = compiled_by_standin(plain, tmp_path)
    (blob,) = blobs(compiled)
    # The first layer: two blocks of 64 outputs, each with scales, biases and zero points in front.
    expected = {
        0: "1 of 70 scales differ, first of output 0",
        256 + 4: "1 of 70 biases differ, first of output 1",
        512 + 8: "1 of 70 zero points differ, first of output 2: 129, not 128",
        768 + 4: "1 of 1890 weights differ, first of output 1, y 0, x 0, input 0",
        768 + 64 * 4 + 2: "1 of 1890 weights differ, first of output 0, y 0, x 1, input 2",
        768 + 3: "what fills it up differs",
    }
    for place, words in expected.items():
        tampered = with_flipped(compiled, blob, place, tmp_path / "tampered.tflite")
        (differing,) = audit(tampered, plain).of("differs")
        assert words in differing.detail


def test_stale_files_are_found(plain: Path, tmp_path: Path) -> None:
    """The plain file was made anew: with other weights, other scales, or another input."""
    compiled = compiled_by_standin(plain, tmp_path)
    for change, words in (
        (_other_weights, "nowhere in the compiled file"),
        (_other_scale, "scales differ"),
        (_other_input, "tensor"),
    ):
        model = unpacked(file_bytes(plain))
        change(model)
        stale = audit(compiled, written(model, tmp_path / "new.tflite"))
        assert stale.status == "differs"
        assert words in " ".join([stale.first_difference, *stale.complaints])


def _first(graph: Graph, name: str) -> Any:
    """The first operator of a kind."""
    return next(operator for other, operator in graph.operators if other == name)


def _other_weights(model: Any) -> None:
    graph = Graph.of(model)
    buffer = graph.buffers[graph.inputs(_first(graph, "CONV_2D"))[1].buffer]
    buffer.data = np.random.default_rng(2).permutation(np.asarray(buffer.data))


def _other_scale(model: Any) -> None:
    """Of what the first layer gives."""
    graph = Graph.of(model)
    quantization = graph.outputs(_first(graph, "CONV_2D"))[0].quantization
    quantization.scale = quantization.scale * np.float32(1.01)


def _other_input(model: Any) -> None:
    graph = Graph.of(model)
    quantization = graph.tensors[model.subgraphs[0].inputs[0]].quantization
    quantization.zeroPoint = quantization.zeroPoint + 1


def written(model: Any, path: Path) -> Path:
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def test_parameters_of_no_layer_are_told(plain: Path, tmp_path: Path) -> None:
    """The compiled file was made of more than the plain one: its last layer is gone there."""
    compiled = compiled_by_standin(plain, tmp_path)
    model = unpacked(file_bytes(plain))
    graph = model.subgraphs[0]
    graph.operators = graph.operators[:-1]
    found = audit(compiled, written(model, tmp_path / "shorter.tflite"))
    assert found.status == "differs"
    assert "are of no layer of the plain file" in found.first_difference


def test_layers_on_the_cpu_are_compared_too(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", "cpu:FULLY_CONNECTED")
    compiled = compiled_by_standin(plain, tmp_path)
    found = audit(compiled, plain)
    assert found.status == "equal"
    assert [v.detail for v in found.layers if v.operator == "FULLY_CONNECTED"] == [
        "left on the CPU",
        "left on the CPU",
    ]
    model = unpacked(file_bytes(compiled))
    graph = Graph.of(model)
    buffer = graph.buffers[graph.inputs(_first(graph, "FULLY_CONNECTED"))[1].buffer]
    buffer.data = buffer.data ^ 1
    (differing,) = audit(written(model, tmp_path / "t.tflite"), plain).of("differs")
    assert differing.detail == "left on the CPU with other constants"


def test_a_layer_may_give_the_scale_of_a_quantize_behind_it(plain: Path, tmp_path: Path) -> None:
    compiled = compiled_by_standin(plain, tmp_path)
    model = unpacked(file_bytes(plain))
    _insert_quantize(model, 2.0)
    apart = written(model, tmp_path / "apart.tflite")
    found = audit(compiled, apart)
    assert found.status == "equal"
    assert "on the Edge TPU, with the QUANTIZE behind it" in [v.detail for v in found.layers]
    assert audit(compiled_by_standin(apart, tmp_path), apart).status == "equal"


def test_twins_may_be_stored_once(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = unpacked(file_bytes(plain))
    graph = model.subgraphs[0]
    twin = copy.deepcopy(_first(Graph.of(model), "CONV_2D"))
    tensor = copy.deepcopy(graph.tensors[twin.outputs[0]])
    tensor.name = "twin"
    graph.tensors.append(tensor)
    twin.outputs = np.asarray([len(graph.tensors) - 1], np.int32)
    graph.operators.append(twin)
    twins = written(model, tmp_path / "twins.tflite")
    apart = audit(compiled_by_standin(twins, tmp_path), twins)
    assert {layer.detail for layer in apart.layers} == {"on the Edge TPU"}
    monkeypatch.setenv("STANDIN_COMPILER", "once")
    once = audit(compiled_by_standin(twins, tmp_path), twins)
    assert once.status == "equal"
    assert once.layers[-1].detail == "on the Edge TPU, stored once for several layers"


def _insert_quantize(model: Any, factor: float) -> None:
    """Let the first layer give a tensor of its own, at another scale, and a QUANTIZE the former."""
    graph = model.subgraphs[0]
    layer = _first(Graph.of(model), "CONV_2D")
    (given,) = layer.outputs
    tensor = copy.deepcopy(graph.tensors[given])
    tensor.name = "apart"
    tensor.quantization.scale = tensor.quantization.scale * np.float32(factor)
    graph.tensors.append(tensor)
    layer.outputs = np.asarray([len(graph.tensors) - 1], np.int32)
    quantize = schema.OperatorT()
    quantize.opcodeIndex = len(model.operatorCodes)
    quantize.inputs, quantize.outputs = layer.outputs, np.asarray([given], np.int32)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    model.operatorCodes.append(code)
    place = next(i for i, operator in enumerate(graph.operators) if operator is layer)
    graph.operators.insert(place + 1, quantize)


def test_what_is_stored_in_an_unknown_way_is_not_judged(plain: Path, tmp_path: Path) -> None:
    model = unpacked(file_bytes(plain))
    graph = Graph.of(model)
    code = model.operatorCodes[_first(graph, "CONV_2D").opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.PRELU
    other = written(model, tmp_path / "other.tflite")
    found = audit(compiled_by_standin(other, tmp_path), other)
    assert found.status == "not judged"
    assert "PRELU is stored in compiled files is not known" in found.of("not judged")[0].detail


def test_the_command(plain: Path, tmp_path: Path, run_cli: Cli) -> None:
    compiled = compiled_by_standin(plain, tmp_path)
    code, out, _ = run_cli("inspect", compiled, "--against", plain)
    assert code == 0
    assert "equal, on the Edge TPU" in out.splitlines()[0]
    assert "holds the parameters of" in out.splitlines()[-1]
    (blob,) = blobs(compiled)
    tampered = with_flipped(compiled, blob, 0, tmp_path / "tampered.tflite")
    code, out, _ = run_cli("inspect", tampered, "--against", plain)
    assert code == 1
    assert "differs, 1 of 70 scales differ" in out
    assert "was not made of" in out.splitlines()[-1]
    code, out, _ = run_cli("inspect", tampered, "--against", plain, "--json")
    assert code == 1
    assert json.loads(out)["status"] == "differs"


def test_bad_input_takes_one_line(
    plain: Path, tmp_path: Path, small_model: Path, run_cli: Cli
) -> None:
    compiled = compiled_by_standin(plain, tmp_path)
    text = tmp_path / "text.tflite"
    text.write_text("no flatbuffer at all")
    for path, against, words in (
        (plain, plain, "not compiled for the Edge TPU"),
        (compiled, compiled, "is compiled itself"),
        (compiled, tmp_path / "nothing.tflite", "no such file"),
        (compiled, text, "not a TFLite model: it has no TFL3 mark"),
        (text, plain, "not a compiled TFLite model: it has no TFL3 mark"),
        (small_model, plain, "--against takes .tflite files that were compiled"),
    ):
        code, _, err = run_cli("inspect", path, "--against", against)
        assert code == 2
        assert words in " ".join(err.split())


def test_a_cut_off_file_is_refused(plain: Path, tmp_path: Path) -> None:
    compiled = compiled_by_standin(plain, tmp_path)
    short = tmp_path / "short.tflite"
    short.write_bytes(compiled.read_bytes()[:3000])
    with pytest.raises(ModelError):
        audit(short, plain)


def test_a_bundle_says_that_it_was_audited(
    small_bundle: Path, tmp_path: Path, edgetpu_compiler: Path, run_cli: Cli
) -> None:
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    code, out, err = run_cli("compile", path, "--edgetpu-compiler", edgetpu_compiler)
    assert code == 0, err
    entries = [s["compiled"] for s in bundles.load(path).manifest["segments"] if s["compiled"]]
    assert [(entry["audited"], entry["not_judged"]) for entry in entries] == [(True, [])] * 2
    assert "The parameters of 2 of 2 compiled segments are those of" in " ".join(out.split())


@pytest.mark.parametrize("trouble", ["swap", "flip:300"])
def test_compile_refuses_what_is_not_made_of_a_segment(
    trouble: str,
    small_bundle: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    files = sorted(path.rglob("*"))
    manifest = (path / "manifest.json").read_bytes()
    monkeypatch.setenv("STANDIN_COMPILER", trouble)
    # Segments of one Edge TPU are compiled together, and so may be mixed up.
    monkeypatch.setattr("compiler.emit.compilation.groups", _together)
    code, _, err = run_cli("compile", path, "--edgetpu-compiler", edgetpu_compiler)
    text = " ".join(err.split())
    assert code == 2
    assert "E-TOOLCHAIN: segment 1 (segments/01.tflite): what edgetpu_compiler gave" in text
    assert "CONV_2D 'first/Conv2D" in text
    assert "compile once more" in text
    assert sorted(path.rglob("*")) == files
    assert (path / "manifest.json").read_bytes() == manifest


def _together(programs: object, folder: Path) -> list[list[Path]]:
    return [sorted((folder / "segments").glob("*.tflite"))]


def test_build_refuses_it_too(
    small_model: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_COMPILER", "flip:300")
    output = tmp_path / "b"
    code, _, err = run_cli(
        "build", small_model, "-o", output, "--edgetpu-compiler", edgetpu_compiler
    )
    assert code == 2
    assert "what edgetpu_compiler gave is not made of it: CONV_2D" in " ".join(err.split())
    assert not output.exists()


def test_a_trusted_compiler_is_kept_and_not_called_audited(
    small_bundle: Path,
    tmp_path: Path,
    edgetpu_compiler: Path,
    run_cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    monkeypatch.setenv("STANDIN_COMPILER", "flip:300")
    arguments = ("compile", path, "--edgetpu-compiler", edgetpu_compiler, "--trust-compiler")
    code, out, _ = run_cli(*arguments)
    assert code == 0
    assert "parameters of 0 of 2 compiled segments" in " ".join(out.split())
    entries = [s["compiled"] for s in bundles.load(path).manifest["segments"] if s["compiled"]]
    assert not any(entry["audited"] for entry in entries)
    assert all("differ" in entry["not_judged"][0]["reason"] for entry in entries)
