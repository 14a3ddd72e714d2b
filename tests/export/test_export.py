"""Exports, read back by stand-ins that were written from the other side's public sources."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import number_types
from flatbuffers.table import Table
from onnx import TensorProto, helper, numpy_helper

import compiler
from compiler.errors import OptionError, OutputError, ToolchainError
from compiler.export import trial
from compiler.runtime import Bundle
from tests.conftest import Cli

SIZE = 64
STRIDES = (8, 16, 32)
CELLS = sum((SIZE // stride) ** 2 for stride in STRIDES)
CLASSES = 5
# Joins in front of outputs are left on the Edge TPU.
JOINED = ("keep_tails",)
LABELS = ["person", "bicycle", "car", "traffic light", "dog"]


class Network:
    """Nodes and weights of an ONNX model, written one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, shape: Sequence[int], stride: int) -> str:
        filters = self._rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        bias = self._rng.standard_normal(shape[0]).astype(np.float32) / 4
        pad = shape[2] // 2
        inputs = [x, self.constant(filters.astype(np.float32)), self.constant(bias)]
        return self.add("Conv", inputs, strides=[stride, stride], pads=[pad] * 4)

    def save(self, path: Path, image: Sequence[int], outputs: Mapping[str, Sequence[int]]) -> Path:
        inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)]
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in outputs.items()
        ]
        graph = helper.make_graph(self.nodes, "network", inputs, infos, self.weights)
        opsets = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def detector(path: Path, classes: int = CLASSES) -> Path:
    """Raw heads of a YOLOv8: distributions of distances, and logits of classes."""
    network = Network()
    x = network.add("Relu", [network.conv("images", (8, 3, 3, 3), 4)])
    boxes: list[str] = []
    scores: list[str] = []
    for _ in STRIDES:
        x = network.add("Relu", [network.conv(x, (8, 8, 3, 3), 2)])
        for channels, found in ((64, boxes), (classes, scores)):
            head = network.conv(x, (channels, 8, 1, 1), 1)
            rows = network.add("Transpose", [head], perm=[0, 2, 3, 1])
            shape = network.constant(np.array([1, -1, channels], np.int64))
            found.append(network.add("Reshape", [rows, shape]))
    outputs = {
        network.add("Concat", boxes, axis=1): (1, CELLS, 64),
        network.add("Concat", scores, axis=1): (1, CELLS, classes),
    }
    return network.save(path, (1, 3, SIZE, SIZE), outputs)


def built(model: Path, **options: Any) -> Bundle:
    """A bundle that gives the Edge TPU all that it takes, calibrated on pixels from 0 to 1."""
    options.setdefault("partitioning", compiler.PartitionOptions(place="tpu"))
    rng = np.random.default_rng(1)
    values = rng.random((4, 3, SIZE, SIZE), np.float32)
    values[:, :, 0, 0] = 0
    values[:, :, 0, 1] = 1
    np.savez(model.with_suffix(".npz"), images=values)
    calibrated = compiler.BuildOptions(calibration=model.with_suffix(".npz"), **options)
    return compiler.build(model, calibrated)


def with_vision(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with a word on the pictures that it takes."""
    picture = {
        "input": "images",
        "layout": "NCHW",
        "size": [SIZE, SIZE],
        "colours": "RGB",
        "fit": "letterbox",
        "mean": [0.0],
        "std": [255.0],
    }
    file = bundle.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["vision"] = {"picture": picture, "task": None, "labels": LABELS} | changes
    file.write_text(json.dumps(manifest))
    return Bundle.open(bundle.path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(detector(tmp_path_factory.mktemp("detector") / "yolo nano.onnx"), without=JOINED)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    model = detector(tmp_path_factory.mktemp("seeing") / "yolo nano.onnx")
    return with_vision(built(model, without=JOINED))


class EdgeTpuTfl:
    """What Frigate's plugin does with a model of type yolo-generic, up to the boxes before
    suppression: as frigate/detectors/plugins/edgetpu_tfl.py at e3fa7018 describes its tensors."""

    def __init__(self, path: Path, size: int) -> None:
        self.interpreter = Interpreter(model_path=str(path))
        self.interpreter.allocate_tensors()
        (self.input,) = self.interpreter.get_input_details()
        details = self.interpreter.get_output_details()
        assert len(details) in (2, 3)
        assert all(len(entry["shape"]) == 3 for entry in details)
        (self.boxes,) = (entry for entry in details if entry["shape"][2] == 64)
        (self.scores,) = (entry for entry in details if entry["shape"][2] not in (1, 64))
        middles = []
        strides = []
        for stride in (8, 16, 32):
            across = size // stride
            for row in range(across):
                middles += [(column + 0.5, row + 0.5) for column in range(across)]
            strides += [stride] * across**2
        self.middles = np.array(middles)
        self.strides = np.array(strides)[:, None]

    def detect(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(corners [N, 4] in pixels, logits [N, C]) of uint8 pixels [1, H, W, 3]."""
        if self.input["dtype"] == np.int8:
            pixels = (pixels ^ 128).view(np.int8)
        self.interpreter.set_tensor(self.input["index"], pixels)
        self.interpreter.invoke()
        weights = np.exp(self._real(self.boxes).reshape(-1, 4, 16))
        distances = (weights / weights.sum(axis=2, keepdims=True)) @ np.arange(16)
        low = (self.middles - distances[:, :2]) * self.strides
        high = (self.middles + distances[:, 2:]) * self.strides
        return np.concatenate([low, high], axis=1), self._real(self.scores)

    def _real(self, entry: Mapping[str, Any]) -> np.ndarray:
        scale, zero_point = entry["quantization"]
        values = self.interpreter.get_tensor(entry["index"])[0].astype(np.float64)
        real: np.ndarray = (values - zero_point) * scale
        return real


def test_frigate_reads_the_boxes_of_the_float_model(seeing: Bundle, tmp_path: Path) -> None:
    made = compiler.export_bundle(seeing, "frigate", tmp_path)
    assert sorted(made.written) == ["config.yml", "labelmap.txt", "yolo_nano.tflite"]
    assert made.trial.takes_pixels
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
    plugin = EdgeTpuTfl(tmp_path / "yolo_nano.tflite", SIZE)
    corners, logits = plugin.detect(pixels)
    # The user's own file, untouched, on onnxruntime.
    session = ort.InferenceSession(seeing.path.with_suffix(".onnx"))
    image = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    raw, want = session.run(None, {"images": image})
    weights = np.exp(raw[0].astype(np.float64).reshape(-1, 4, 16))
    distances = (weights / weights.sum(axis=2, keepdims=True)) @ np.arange(16)
    low = (plugin.middles - distances[:, :2]) * plugin.strides
    high = (plugin.middles + distances[:, 2:]) * plugin.strides
    assert np.abs(logits - want[0]).max() < 0.1 * np.abs(want).max()
    # Within a tenth of a cell.
    off = np.abs(corners - np.concatenate([low, high], axis=1)) / plugin.strides
    assert off.max() < 0.1
    assert (tmp_path / "labelmap.txt").read_text().splitlines()[3] == "3 traffic light"
    config = (tmp_path / "config.yml").read_text()
    assert "path: /config/model_cache/yolo_nano_edgetpu.tflite" in config
    assert "width: 64" in config
    assert any("edgetpu_compiler yolo_nano.tflite" in note for note in made.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"std": [200.0]}, "not the pixels themselves.*--input uint8"),
        ({"mean": [3.0]}, "not the pixels themselves"),
        ({"colours": "BGR"}, None),
    ],
)
def test_frigate_gets_pixels_or_nothing(
    plain: Bundle, tmp_path: Path, changes: dict[str, Any], reason: str | None
) -> None:
    picture = with_vision(plain).manifest["vision"]["picture"] | changes
    bundle = with_vision(plain, picture=picture)
    if reason is None:
        compiler.export_bundle(bundle, "frigate", tmp_path / "out")
        assert "input_pixel_format: bgr" in (tmp_path / "out/config.yml").read_text()
        return
    with pytest.raises(OptionError, match=reason):
        compiler.export_bundle(bundle, "frigate", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_detector_of_one_class_is_no_model_for_frigate(tmp_path: Path) -> None:
    bundle = with_vision(
        built(detector(tmp_path / "one.onnx", classes=1), without=JOINED), labels=["face"]
    )
    with pytest.raises(OptionError, match="1 classes"):
        compiler.export_bundle(bundle, "frigate", tmp_path / "out")


def read_metadata(data: bytes) -> Table:
    """The root table of a file's metadata, which is the buffer that the entry names."""
    model = schema.Model.GetRootAs(data, 0)
    (entry,) = (model.Metadata(index) for index in range(model.MetadataLength()))
    assert entry.Name() == b"TFLITE_METADATA"
    buffer = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert buffer[4:8] == b"M001"
    return Table(buffer, flatbuffers.encode.Get(flatbuffers.packer.uoffset, buffer, 0))


def field(table: Table, number: int) -> int:
    """Where a field of a table begins."""
    offset = table.Offset(4 + 2 * number)
    assert offset, number
    return int(offset + table.Pos)


def tables(table: Table, number: int) -> list[Table]:
    start = table.Vector(field(table, number) - table.Pos)
    count = table.VectorLen(field(table, number) - table.Pos)
    return [Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(count)]


def text(table: Table, number: int) -> str:
    found = table.String(field(table, number))
    return bytes(found).decode()


def test_a_single_file_tells_what_it_takes(seeing: Bundle, tmp_path: Path) -> None:
    made = compiler.export_bundle(seeing, "tflite", tmp_path)
    assert made.written == ["yolo_nano.tflite", "labels.txt"]
    file = tmp_path / "yolo_nano.tflite"
    # Fields by number, as in metadata_schema.fbs of tflite-support 0.4.4.
    root = read_metadata(file.read_bytes())
    assert text(root, 0) == "yolo_nano"
    (subgraph,) = tables(root, 3)
    (image,) = tables(subgraph, 2)
    content = Table(image.Bytes, image.Indirect(field(image, 3)))
    assert content.Get(number_types.Uint8Flags, field(content, 0)) == 2
    (units,) = tables(image, 4)
    scaling = Table(units.Bytes, units.Indirect(field(units, 1)))
    for number, want in ((0, 0.0), (1, 255.0)):
        start = scaling.Vector(field(scaling, number) - scaling.Pos)
        assert abs(scaling.Get(number_types.Float32Flags, start) - want) < 0.01
    outputs = tables(subgraph, 3)
    details = Interpreter(model_path=str(file)).get_output_details()
    assert [text(output, 0) for output in outputs] == [entry["name"] for entry in details]
    labelled = [output for output in outputs if output.Offset(4 + 2 * 6)]
    (associated,) = tables(labelled[0], 6)
    with zipfile.ZipFile(file) as archive:
        assert archive.read(text(associated, 0)).decode().splitlines() == LABELS
    first = file.read_bytes()
    compiler.export_bundle(seeing, "tflite", tmp_path, force=True)
    assert file.read_bytes() == first


class PipelinedModelRunner:
    """pycoral's rules: inputs are found by name among those of the first file and outputs of
    earlier ones, tensors go on as bytes, and results are those of the last file."""

    def __init__(self, interpreters: Sequence[Interpreter]) -> None:
        known = {entry["name"]: entry for entry in interpreters[0].get_input_details()}
        for interpreter in interpreters:
            for entry in interpreter.get_input_details():
                giver = known[entry["name"]]
                for key in ("dtype", "quantization"):
                    assert giver[key] == entry[key]
                assert list(giver["shape"]) == list(entry["shape"])
            known |= {entry["name"]: entry for entry in interpreter.get_output_details()}
        self.interpreters = interpreters

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = dict(arrays)
        for interpreter in self.interpreters:
            for entry in interpreter.get_input_details():
                interpreter.set_tensor(entry["index"], values[entry["name"]])
            interpreter.invoke()
            last = {}
            for entry in interpreter.get_output_details():
                last[entry["name"]] = interpreter.get_tensor(entry["index"])
            values |= last
        return last


def dense(path: Path, width: int = 2048) -> Path:
    """Layers of 4 MiB each, which several Edge TPUs share."""
    network = Network()
    x = "images"
    for _ in range(4):
        rng = np.random.default_rng(len(network.nodes))
        weight = rng.standard_normal((width, width)).astype(np.float32) / np.float32(np.sqrt(width))
        x = network.add("Relu", [network.add("MatMul", [x, network.constant(weight)])])
    return network.save(path, (1, width), {x: (1, width)})


def test_pycoral_finds_all_tensors_of_a_chain(tmp_path: Path) -> None:
    model = dense(tmp_path / "dense.onnx")
    options = compiler.BuildOptions(
        partitioning=compiler.PartitionOptions(tpus=4, objective="throughput")
    )
    bundle = compiler.build(model, options)
    made = compiler.export_bundle(bundle, "pycoral", tmp_path / "out")
    count = len(made.chain.segments)
    assert count > 1
    names = [f"dense_segment_{index}_of_{count}.tflite" for index in range(count)]
    assert made.written == [*names, "run_pycoral.py"]
    interpreters = [Interpreter(model_path=str(tmp_path / "out" / name)) for name in names]
    for interpreter in interpreters:
        interpreter.allocate_tensors()
    runner = PipelinedModelRunner(interpreters)
    (first,) = interpreters[0].get_input_details()
    rng = np.random.default_rng(3)
    values = rng.standard_normal((1, 2048)).astype(np.float32)
    scale, zero_point = first["quantization"]
    quantized = np.clip(np.rint(values / scale) + zero_point, -128, 127).astype(np.int8)
    (got,) = runner.run({first["name"]: quantized}).values()
    (last,) = interpreters[-1].get_output_details()
    scale, zero_point = last["quantization"]
    session = ort.InferenceSession(model)
    (want,) = session.run(None, {"images": values})
    error = (got.astype(np.float64) - zero_point) * scale - want
    # Tensors that went astray would leave nothing of the signal.
    assert 10 * np.log10((want**2).sum() / (error**2).sum()) > 15
    with pytest.raises(OptionError, match=f"has {count} TPU segments.*4 Edge TPUs|Edge TPUs"):
        compiler.export_bundle(bundle, "tflite", tmp_path / "one")
    run_script(tmp_path / "out", count)


def run_script(folder: Path, count: int) -> None:
    """Run the script of an export with modules in pycoral's place."""
    package = folder / "pycoral"
    for name in ("pipeline", "utils"):
        (package / name).mkdir(parents=True)
    (package / "utils/edgetpu.py").write_text(
        "from ai_edge_litert.interpreter import Interpreter\n"
        "used = []\n"
        "def make_interpreter(path, device=None):\n"
        "    used.append(device)\n"
        "    return Interpreter(model_path=path)\n"
    )
    (package / "pipeline/pipelined_model_runner.py").write_text(
        "from pycoral.utils import edgetpu\n"
        "class PipelinedModelRunner:\n"
        "    def __init__(self, interpreters):\n"
        f"        assert edgetpu.used == [f':{{i}}' for i in range({count})]\n"
        "        self.interpreters = interpreters\n"
        "    def push(self, arrays):\n"
        "        for entry in self.interpreters[0].get_input_details():\n"
        "            assert arrays[entry['name']].dtype == entry['dtype']\n"
        "            assert list(arrays[entry['name']].shape) == list(entry['shape'])\n"
        "    def pop(self):\n"
        "        last = self.interpreters[-1]\n"
        "        details = last.get_output_details()\n"
        "        return {e['name']: last.get_tensor(e['index']) for e in details}\n"
    )
    done = subprocess.run(
        [sys.executable, "run_pycoral.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "(1, 2048) int8" in done.stdout


def test_what_the_host_computes_in_between_is_named(tmp_path: Path) -> None:
    network = Network()
    first = network.conv("images", (8, 3, 3, 3), 2)
    erf = network.add("Erf", [first])
    second = network.conv(erf, (8, 8, 3, 3), 2)
    size = SIZE // 4
    model = network.save(tmp_path / "net.onnx", (1, 3, SIZE, SIZE), {second: (1, 8, size, size)})
    bundle = built(model)
    with pytest.raises(OptionError, match="on the host Erf 'erf_1'"):
        compiler.export_bundle(bundle, "pycoral", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_lost(plain: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    compiler.export_bundle(plain, "tflite", tmp_path)
    with pytest.raises(OutputError, match="exists already; the option force"):
        compiler.export_bundle(plain, "tflite", tmp_path)
    compiler.export_bundle(plain, "tflite", tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="lies in the bundle"):
        compiler.export_bundle(plain, "tflite", plain.path / "out")


def test_an_export_that_differs_is_not_written(
    plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_one(self: trial.Files, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [array + 1 for array in run(self, arrays)]

    run = trial.Files.run
    monkeypatch.setattr(trial.Files, "run", off_by_one)
    with pytest.raises(ToolchainError, match="other bytes of"):
        compiler.export_bundle(plain, "tflite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_did(plain: Bundle, tmp_path: Path, run_cli: Cli) -> None:
    code, out, err = run_cli("export", plain.path, "--for", "tflite", "-o", tmp_path)
    assert code == 0
    assert "every byte is the bundle's" in out
    assert "in front, not in the files: 1 operators (Transpose)" in out
    assert "not compiled" in err
    code, out, err = run_cli("export", plain.path, "--for", "onnx", "-o", tmp_path)
    assert code == 2
    assert "--for" in err
