"""Our int8 beside that of others, on the same models, calibration samples and machine.

    python -m benchmarks.scoreboard [--minilm FOLDER] [--onnx2tf PYTHON] [--onnx-tf PYTHON] [--output FOLDER]

LiteRT aborts on what TFLiteConverter 2.15 makes of ResNet-50, so that it is not among the networks.
Makes environments that are not given: onnx2tf 2.6.9 needs Python 3.12, onnx-tf Python 3.11 (`toolchain install`).
Every conversion is a process of its own, measured with its peak memory; every result runs in TFLite or onnxruntime on
samples that were held out, against the float model in onnxruntime. Raw figures go to scoreboard.json, a plot to
scoreboard.svg. FOLDER of MiniLM is what export_minilm.py wrote. Networks of the onnx package have random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime as ort

from compiler.emit import onnx_tf
from compiler.emit.onnx_tf import OPSET, SIDECARS
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.interpreter import interpreter_module
from compiler.verify import Difference
from fixtures import light

ROOT = Path(__file__).parent.parent
CALIBRATION, HELD_OUT, THREADS = 16, 16, 2
Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]
NEWER = [("", "LayerNormalization"), ("", "Gelu")]  # operators that onnx-tf knows in parts only
QUANTIZE = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
class Reader(CalibrationDataReader):
    def __init__(self):
        arrays = dict(np.load("calibration.npz"))
        count = len(next(iter(arrays.values())))
        self.rows = iter([{n: a[i:i + 1] for n, a in arrays.items()} for i in range(count)])
    def get_next(self):
        return next(self.rows, None)
quantize_static("model.onnx", "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
"""


@dataclass
class Row:
    """One tool on one model; what it does not reach is None, `note` says why."""

    model: str
    tool: str
    seconds: float | None = None
    peak_mb: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None
    run_ms: float | None = None
    note: str = ""


@dataclass
class Case:
    """A model with its samples in a folder: model.onnx, calibration.npz; `test` is held out."""

    name: str
    folder: Path
    test: list[Arrays] = field(default_factory=list)
    want: list[np.ndarray] = field(default_factory=list)
    float_ms: float = 0.0


def network(name: str, folder: Path) -> Case:
    """A network of the onnx package, raised to an opset that every tool here takes."""
    model = onnx.load(light.generate(name, folder / "model.onnx"))
    weights = {t.name: t for t in model.graph.initializer}
    (value,) = [i.name for i in model.graph.input if i.name not in weights]
    known = {i.name for i in model.graph.input}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(n, t.data_type, t.dims) for n, t in weights.items() if n not in known
    )
    model = onnx.version_converter.convert_version(model, 13)
    inputs = [i for i in model.graph.input if i.name == value]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    data = np.random.default_rng(1).standard_normal((CALIBRATION + HELD_OUT, 3, 224, 224)).astype(np.float32)
    np.savez(folder / "calibration.npz", **{value: data[:CALIBRATION]})
    return reference(Case(name, folder, [{value: row[None]} for row in data[CALIBRATION:]]))


def minilm(source: Path, folder: Path) -> Case:
    (folder / "model.onnx").write_bytes((source / "model.onnx").read_bytes())
    (folder / "calibration.npz").write_bytes((source / "calibration.npz").read_bytes())
    arrays = dict(np.load(source / "test.npz"))
    rows = [{n: a[i : i + 1] for n, a in arrays.items()} for i in range(HELD_OUT)]
    return reference(Case("minilm", folder, rows))


def reference(case: Case) -> Case:
    run = session(case.folder / "model.onnx")
    case.want = [run(sample) for sample in case.test]
    case.float_ms = milliseconds(run, case)
    return case


def session(path: Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 4
    loaded = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda sample: np.asarray(loaded.run(None, sample)[0])


def milliseconds(run: Run, case: Case) -> float:
    times = []
    for index in range(20):
        began = time.perf_counter()
        run(case.test[index % len(case.test)])
        times.append(time.perf_counter() - began)
    return float(np.median(times) * 1e3)


def process(row: Row, command: Sequence[object], case: Case) -> bool:
    """Run a conversion; whether it ended well."""
    log = case.folder / "log.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if str(command[0]) == sys.executable else ""}
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(
            [str(part) for part in command], cwd=case.folder, stdout=file, stderr=file, env=environment
        )
        _, status, usage = os.wait4(child.pid, 0)
    row.seconds, row.peak_mb = time.perf_counter() - began, usage.ru_maxrss / 1024
    if os.waitstatus_to_exitcode(status):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if "Error" in line]
        row.note = (lines[-1] if lines else "failed")[:160]
        return False
    return True


def judge(row: Row, run: Run, case: Case) -> Row:
    """Accuracy and time of what came out."""
    difference = Difference()
    for sample, want in zip(case.test, case.want, strict=True):
        difference.add(run(sample).reshape(want.shape), want)
    row.sqnr_db, row.cosine = difference.sqnr_db, difference.cosine
    row.top1 = difference.agree / difference.count if case.name != "minilm" else None
    row.run_ms = milliseconds(run, case)
    return row


def tflite(path: Path) -> Run:
    """A whole model as one TFLite file, fed in float; images as NHWC where it wants them so."""
    interpreter = interpreter_module().Interpreter(str(path), num_threads=THREADS)
    interpreter.allocate_tensors()
    details, (out,) = interpreter.get_input_details(), interpreter.get_output_details()[:1]

    def run(sample: Arrays) -> np.ndarray:
        for number, detail in enumerate(details):
            array = next((a for n, a in sample.items() if n in detail["name"]), list(sample.values())[number])
            if array.shape != tuple(detail["shape"]) and array.ndim == 4:
                array = array.transpose(0, 2, 3, 1)
            scale, zero = detail["quantization"]
            if scale and array.dtype.kind == "f" and detail["dtype"] != np.float32:
                array = np.clip(np.rint(array / scale) + zero, -128, 127)
            interpreter.set_tensor(detail["index"], array.astype(detail["dtype"]))
        interpreter.invoke()
        result = interpreter.get_tensor(out["index"]).astype(np.float32)
        scale, zero = out["quantization"]
        return (result - zero) * scale if scale else result

    return run


def ours(case: Case) -> Row:
    row = Row(case.name, "coral-bundle")
    command = [sys.executable, "-m", "compiler", "build", "model.onnx", "--calibration", "calibration.npz", "-o", "b"]
    if not process(row, command, case):
        return row
    pipeline = Pipeline(Bundle.open(case.folder / "b"), THREADS)
    return judge(row, lambda sample: pipeline.run(sample)[pipeline.outputs[0]["name"]], case)


def by_onnxruntime(case: Case) -> Row:
    row = Row(case.name, f"onnxruntime {ort.__version__} QDQ")
    ok = process(row, [sys.executable, "-c", QUANTIZE], case)
    return judge(row, session(case.folder / "int8.onnx"), case) if ok else row


def by_onnx_tf(case: Case, python: Path) -> Row:
    """onnx-tf and TFLiteConverter on the whole model, in an opset that they know and with names that they take."""
    row = Row(case.name, "onnx-tf 1.10 + TFLiteConverter 2.15")
    folder = case.folder / "otf"
    folder.mkdir()
    try:
        model = onnx.load(case.folder / "model.onnx")
        if model.opset_import[0].version > OPSET:
            weights = model.graph.initializer  # the inliner asks for types of these too
            model.graph.value_info.extend(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights
            )
            model = onnx.shape_inference.infer_shapes(model)
            model = onnx.inliner.inline_selected_functions(model, NEWER, inline_schema_functions=True)
            model = onnx.version_converter.convert_version(model, OPSET)
        plain = {v.name: v.name.replace("/", "_") for v in [*model.graph.input, *model.graph.output]}
        for node in model.graph.node:
            node.input[:] = [n.replace("/", "_") for n in node.input]
            node.output[:] = [n.replace("/", "_") for n in node.output]
        for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
            value.name = value.name.replace("/", "_")
        model.ir_version = 8
        onnx.save(model, folder / "model.onnx")
        arrays = dict(np.load(case.folder / "calibration.npz"))
        np.savez(folder / "samples.npz", **{plain[n]: a[:, None] for n, a in arrays.items()})
    except Exception as error:
        row.note = str(error).splitlines()[0][:160]
        return row
    if not process(row, [python, SIDECARS / "lower.py", folder], case) and not (folder / "model.tflite").is_file():
        return row
    row.note = ""
    return judge(row, tflite(folder / "model.tflite"), case)


def by_onnx2tf(case: Case, python: Path) -> Row:
    row = Row(case.name, "onnx2tf 2.6.9")
    extra: list[object] = []
    for name, array in np.load(case.folder / "calibration.npz").items():
        images = array.ndim == 4
        np.save(case.folder / f"{name.replace('/', '_')}.npy", array.transpose(0, 2, 3, 1) if images else array)
        zeros, ones = ("[[[[0,0,0]]]]", "[[[[1,1,1]]]]") if images else ("[0]", "[1]")
        extra += ["-cind", name, f"{name.replace('/', '_')}.npy", zeros, ones]
    command = [python.parent / "onnx2tf", "-i", "model.onnx", "-o", "theirs", "-tb", "tf_converter", "-oiqt", *extra]
    ok = process(row, command, case)
    files = sorted((case.folder / "theirs").glob("*_full_integer_quant.tflite")) if ok else []
    if not files:
        row.note = row.note or "no int8 file was written"
        return row
    return judge(row, tflite(files[0]), case)


def environment(path: Path, python: str, packages: Sequence[str]) -> Path:
    if not (path / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", path], check=True)
        subprocess.run([path / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return path / "bin" / "python"


def table(rows: Sequence[Row]) -> str:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    lines = [
        "| model | tool | build s | peak MB | SQNR dB | cosine | top-1 | run ms | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        figures = (
            cell(r.seconds, ".1f"),
            cell(r.peak_mb, ".0f"),
            cell(r.sqnr_db, ".1f"),
            cell(r.cosine, ".4f"),
            cell(r.top1, ".0%"),
            cell(r.run_ms, ".2f"),
        )
        lines.append(f"| {r.model} | {r.tool} | {' | '.join(figures)} | {r.note.replace('|', ' ')} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row]) -> str:
    """SQNR of each tool on each model as bars."""
    shown, left, width, height = [r for r in rows if r.sqnr_db is not None], 330, 760, 22
    most = max(r.sqnr_db or 0 for r in shown)
    parts = []
    for index, row in enumerate(shown):
        y, size = 30 + index * height, max(0.0, (row.sqnr_db or 0) / most) * (width - left - 60)
        colour = "#1f77b4" if row.tool == "coral-bundle" else "#b0b0b0"
        parts += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{row.model}, {row.tool}</text>',
            f'<rect x="{left}" y="{y + 2}" width="{size:.1f}" height="{height - 5}" fill="{colour}"/>',
            f'<text x="{left + size + 6:.1f}" y="{y + 14}">{row.sqnr_db:.1f}</text>',
        ]
    total = 40 + len(shown) * height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
        'font-family="sans-serif" font-size="12">'
    )
    title = '<text x="10" y="18" font-weight="bold">int8 against float on held-out samples, dB</text>'
    return "\n".join([head, title, *parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--onnx2tf", type=Path)
    parser.add_argument("--onnx-tf", type=Path)
    parser.add_argument("--networks", default="squeezenet,shufflenet")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    place = Path.home() / ".cache" / "coral-bundle"
    onnx2tf = options.onnx2tf or environment(
        place / "onnx2tf", "python3.12", ["onnx2tf==2.6.9", "tensorflow", "tf-keras"]
    )
    installed = onnx_tf.home() / "bin" / "python"
    if options.onnx_tf is None and not installed.exists():
        onnx_tf.install("python3.11")
    rows: list[Row] = []
    makers: list[Callable[[Path], Case]] = [
        lambda folder, name=name: network(name, folder)  # type: ignore[misc]
        for name in options.networks.split(",")
        if name
    ]
    if options.minilm is not None:
        makers.append(lambda folder: minilm(options.minilm, folder))
    for make in makers:
        with tempfile.TemporaryDirectory() as folder:
            case = make(Path(folder))
            rows.append(Row(case.name, f"onnxruntime {ort.__version__} float", run_ms=case.float_ms))
            rows += [
                ours(case),
                by_onnxruntime(case),
                by_onnx_tf(case, options.onnx_tf or installed),
                by_onnx2tf(case, onnx2tf),
            ]
    text: dict[str, Any] = {"rows": [asdict(r) for r in rows], "calibration": CALIBRATION, "held_out": HELD_OUT}
    options.output.mkdir(exist_ok=True)
    (options.output / "scoreboard.json").write_text(json.dumps(text, indent=1) + "\n")
    (options.output / "scoreboard.svg").write_text(plot(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
