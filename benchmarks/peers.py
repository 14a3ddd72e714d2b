"""Conversions to int8 by us and by others: each a process of its own, its result judged in another.

A result runs on samples that were held out, against the float model in onnxruntime. What aborts
costs its own row only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime as ort

from compiler.checks.verify import Difference
from compiler.runtime import Bundle, Pipeline
from compiler.runtime.tflite_segment import interpreter_module
from compiler.vendor.onnx_tf import OPSET, SIDECARS

ROOT = Path(__file__).parent.parent
THREADS = 2
Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], np.ndarray]
T = TypeVar("T")
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
    classes: bool = True


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
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT) if str(command[0]) == sys.executable else "",
    }
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
    began = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(
            [str(part) for part in command],
            cwd=case.folder,
            stdout=file,
            stderr=file,
            env=environment,
        )
        _, status, usage = os.wait4(child.pid, 0)
    row.seconds, row.peak_mb = time.perf_counter() - began, usage.ru_maxrss / 1024
    if os.waitstatus_to_exitcode(status):
        row.note = complaint(log.read_text(errors="replace"))
        return False
    return True


def complaint(log: str) -> str:
    """The error in a log: TensorFlow's first, without the places in its graph that it names, else
    the last."""
    placed = re.search(r" error: loc\(.*\): (.+)", log)
    lines = [line for line in log.splitlines() if re.search(r"error:", line, re.IGNORECASE)]
    return (placed[1] if placed else lines[-1].strip() if lines else "failed")[:160]


def apart(function: Callable[..., T], *arguments: object) -> T:
    """In a process of its own: what aborts ends only that, and memory that it held does not count
    for others."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def judge(row: Row, load: Callable[[Path], Run], path: Path, case: Case) -> Row:
    """Accuracy and time of what came out."""
    try:
        return apart(_judge, row, load, path, case)
    except BrokenProcessPool:  # LiteRT does so on some files
        row.note = "the interpreter aborts on the file that was written"
    except Exception as error:
        row.note = str(error).splitlines()[0][:160]
    return row


def _judge(row: Row, load: Callable[[Path], Run], path: Path, case: Case) -> Row:
    run, difference = load(path), Difference()
    for sample, want in zip(case.test, case.want, strict=True):
        difference.add(run(sample).reshape(want.shape), want)
    row.sqnr_db, row.cosine = difference.sqnr_db, difference.cosine
    row.top1 = difference.agree / difference.count if case.classes else None
    row.run_ms = milliseconds(run, case)
    return row


def bundle(path: Path) -> Run:
    pipeline = Pipeline(Bundle.open(path), THREADS)
    return lambda sample: np.asarray(pipeline.run(sample)[pipeline.outputs[0]["name"]])


def tflite(path: Path) -> Run:
    """A whole model as one TFLite file, fed in float; images as NHWC where it wants them so."""
    interpreter = interpreter_module().Interpreter(str(path), num_threads=THREADS)
    interpreter.allocate_tensors()
    details, (out,) = interpreter.get_input_details(), interpreter.get_output_details()[:1]

    def run(sample: Arrays) -> np.ndarray:
        for number, detail in enumerate(details):
            array = next(
                (a for n, a in sample.items() if n in detail["name"]), list(sample.values())[number]
            )
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


def ours(case: Case, without: Sequence[str] = ()) -> Row:
    row = Row(case.name, "coral-bundle, plain" if without else "coral-bundle")
    command = [
        sys.executable,
        "-m",
        "compiler",
        "build",
        "model.onnx",
        "--calibration",
        "calibration.npz",
        "-o",
        "b",
    ]
    command += ["--force", *(f"--without={step}" for step in without)]
    return judge(row, bundle, case.folder / "b", case) if process(row, command, case) else row


def by_onnxruntime(case: Case) -> Row:
    row = Row(case.name, f"onnxruntime {ort.__version__} QDQ")
    ok = process(row, [sys.executable, "-c", QUANTIZE], case)
    return judge(row, session, case.folder / "int8.onnx", case) if ok else row


def by_onnx_tf(case: Case, python: Path) -> Row:
    """onnx-tf and TFLiteConverter on the whole model, in an opset that they know and with names
    that they take."""
    row, folder = Row(case.name, "onnx-tf 1.10 + TFLiteConverter 2.15"), case.folder / "otf"
    try:
        apart(_for_onnx_tf, case.folder, folder)
    except Exception as error:
        row.note = str(error).splitlines()[0][:160]
        return row
    if (
        not process(row, [python, SIDECARS / "lower.py", folder], case)
        and not (folder / "model.tflite").is_file()
    ):
        return row
    row.note = ""
    return judge(row, tflite, folder / "model.tflite", case)


def _for_onnx_tf(source: Path, folder: Path) -> None:
    folder.mkdir()
    model = onnx.load(source / "model.onnx")
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
    arrays = dict(np.load(source / "calibration.npz"))
    np.savez(folder / "samples.npz", **{plain[n]: a[:, None] for n, a in arrays.items()})


def by_onnx2tf(case: Case, python: Path) -> Row:
    row = Row(case.name, "onnx2tf 2.6.9")
    extra: list[object] = []
    for name, array in np.load(case.folder / "calibration.npz").items():
        images = array.ndim == 4
        np.save(
            case.folder / f"{name.replace('/', '_')}.npy",
            array.transpose(0, 2, 3, 1) if images else array,
        )
        zeros, ones = ("[[[[0,0,0]]]]", "[[[[1,1,1]]]]") if images else ("[0]", "[1]")
        extra += ["-cind", name, f"{name.replace('/', '_')}.npy", zeros, ones]
    command = [
        python.parent / "onnx2tf",
        "-i",
        "model.onnx",
        "-o",
        "theirs",
        "-tb",
        "tf_converter",
        "-oiqt",
        *extra,
    ]
    ok = process(row, command, case)
    files = sorted((case.folder / "theirs").glob("*_full_integer_quant.tflite")) if ok else []
    if not files:
        row.note = row.note or "no int8 file was written"
        return row
    return judge(row, tflite, files[0], case)
