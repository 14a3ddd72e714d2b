"""The commands of docs/cookbook.md, in their order, with small models under its names."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import helper, numpy_helper
from PIL import Image

from fixtures.networks import Net, transformer
from tests import eyes
from tests.conftest import Cli, save

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "cookbook.md").read_text()


def convolutions(quantized: bool) -> onnx.ModelProto:
    """Two convolutions on an image; with QuantizeLinear and DequantizeLinear between them as QAT
    leaves them."""
    rng = np.random.default_rng(0)
    weights = {
        f"w{i}": rng.standard_normal((8, c, 3, 3)).astype(np.float32) / 5
        for i, c in enumerate((3, 8))
    }
    weights |= {"scale": np.float32(0.05), "zero": np.uint8(128)}
    middle = ["c0"]
    nodes = [helper.make_node("Conv", ["x", "w0"], ["c0"], "first")]
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["c0", "scale", "zero"], ["q"], "quantize"))
        nodes.append(
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize")
        )
        middle = ["d"]
    nodes += [
        helper.make_node("Conv", [*middle, "w1"], ["c1"], "second"),
        helper.make_node("Relu", ["c1"], ["y"], "relu"),
    ]
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", (1, 3, 16, 16)), ("y", None))
    ]
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items() if n in used]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def encoder(folder: Path) -> Path:
    """A small BERT on embedded tokens, with random weights."""
    net = Net((1, 16, 64))
    model = onnx.load(net.save(folder / "made" / "bert.onnx", transformer(net, 2, 64, 4, 256), 20))
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = (rng.standard_normal(tuple(tensor.dims)) / np.sqrt(tensor.dims[0])).astype(
                np.float32
            )
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    np.savez(
        folder / "sentences.npz",
        **{model.graph.input[0].name: rng.standard_normal((8, 16, 64), np.float32)},
    )
    return save(folder / "bert.onnx", model)


@pytest.fixture
def kitchen(
    tmp_path: Path,
    edgetpu_compiler: Path,
    small_bundle: Path,
    compiled_segment: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    rng = np.random.default_rng(0)
    save(tmp_path / "mobilenet.onnx", convolutions(False))
    save(tmp_path / "qat.onnx", convolutions(True))
    np.savez(tmp_path / "samples.npz", x=rng.standard_normal((8, 3, 16, 16)).astype(np.float32))
    (tmp_path / "photos").mkdir()
    for index in range(8):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "made").mkdir()
    eyes.build(tmp_path / "made", eyes.detector(), eyes.DETECT).rename(tmp_path / "yolo.bundle")
    eyes.street().save(tmp_path / "photo.jpg")
    shutil.copytree(tmp_path / "photos", tmp_path / "frames")
    encoder(tmp_path)
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    library.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(ROOT / "fixtures" / "language.gguf", tmp_path / "smollm2.gguf")
    shutil.copy(small_bundle / "segments" / "01.tflite", tmp_path / "detector.tflite")
    (tmp_path / "detector_edgetpu.tflite").write_bytes(compiled_segment)
    (target,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "slow.toml").write_text(target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
def test_commands_of_the_cookbook(kitchen: Path, run_cli: Cli) -> None:
    commands = re.findall(r"^\$ python -m compiler (.*)$", PAGE, re.MULTILINE)
    assert len(commands) > 15
    for command in commands:
        code, _, err = run_cli(*shlex.split(command))
        assert code == 0, f"{command}: {err}"
    assert {p.name for p in kitchen.glob("*.bundle")} == {
        "mobilenet.bundle",
        "pixels.bundle",
        "cut.bundle",
        "bert.bundle",
        "smollm2.bundle",
        "qat.bundle",
        "yolo.bundle",
    }
