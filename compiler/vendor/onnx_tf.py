"""Lowers segments by onnx-tf and TensorFlow's TFLiteConverter instead of our own writer, in a
sidecar environment.

onnx-tf is no longer maintained and needs versions of onnx, TensorFlow and Python that nothing else
here can have, so it lives in an environment of its own, made from a lock file with hashes. We talk
to it through files and a process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from compiler import files
from compiler.errors import ToolchainError, first_line
from compiler.graph import DIALECT, array_of, shape_of, values_read
from compiler.graph.reference import Reference
from compiler.ops import operator_of
from compiler.partition import Program, Segment
from compiler.quantize.samples import Samples

SIDECARS = Path(__file__).parent / "sidecars"
VARIABLE = "CORAL_BUNDLE_ONNX_TF"  # a Python that has onnx-tf, instead of the one that `toolchain install` makes
OPSET = 15  # the newest that onnx-tf 1.10 knows most operators of
TIMEOUT = 600  # seconds for one segment
SAMPLES = 64  # as many as calibrate a segment


@dataclass(frozen=True)
class Lowered:
    """A segment's int8 TFLite file; `inputs` and `outputs` are the manifest's entries, in the order
    of the file."""

    file: bytes
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]


def home() -> Path:
    """Where `toolchain install onnx-tf` makes its environment."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "coral-bundle" / "onnx-tf"


def find() -> Path:
    """The Python that has onnx-tf. Raises ToolchainError."""
    python = Path(os.environ.get(VARIABLE) or home() / "bin" / "python")
    if not python.exists():
        raise ToolchainError(
            f"--lowering onnx-tf: {python} is not there: run `toolchain install onnx-tf`"
        )
    return python


def install(python: str) -> Path:
    """Make the environment with `python`, which must be 3.11. Raises ToolchainError; nothing
    half-made is left."""
    place = home()
    version = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    try:
        found = subprocess.run(version, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ToolchainError(f"--python {python}: {error}") from error
    if found != ["3", "11"]:
        raise ToolchainError(
            f"--python {python}: is {'.'.join(found)}; onnx-tf's TensorFlow 2.15 needs Python 3.11"
        )
    shutil.rmtree(place, ignore_errors=True)
    pip = [
        str(place / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ]
    for command in (
        [python, "-m", "venv", str(place)],
        [*pip, "-r", str(SIDECARS / "onnx-tf.txt")],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            shutil.rmtree(place, ignore_errors=True)
            lines = [
                line for line in ran.stderr.splitlines() if line.startswith("ERROR")
            ] or ran.stderr.splitlines()
            raise ToolchainError(
                f"{place}: cannot be made: {lines[0] if lines else 'no word of why'}"
            )
    return place


def lower(
    program: Program, samples: Samples, progress: Callable[[str, int], Callable[[], None]]
) -> tuple[dict[int, Lowered], dict[int, str]]:
    """(segments for Edge TPUs that onnx-tf lowered, why it did not the others), by index."""
    python = find()
    segments = [s for s in program.plan.segments if s.device == "tpu"]
    step = progress("onnx-tf", len(segments))
    with files.temporary("onnx-tf") as folder:
        folders = {s.index: folder.path / str(s.index) for s in segments}
        _write_samples(program, segments, samples, folders)

        def one(segment: Segment) -> Lowered | str:
            try:
                return _one(program, segment, folders[segment.index], python)
            finally:
                step()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = dict(zip(folders, pool.map(one, segments), strict=True))
    done = {index: result for index, result in results.items() if isinstance(result, Lowered)}
    return done, {index: result for index, result in results.items() if isinstance(result, str)}


def _write_samples(
    program: Program, segments: Sequence[Segment], samples: Samples, folders: dict[int, Path]
) -> None:
    """What each segment reads in float, under the names that it has in its file."""
    values = {str(v.name): v for s in segments for v in s.inputs}
    stacks: dict[str, list[np.ndarray]] = {name: [] for name in values}
    with Reference(
        program.model, [v for v in values.values() if not v.is_graph_input()]
    ) as reference:
        inner = [n for n in values if n in reference.names]
        for sample, _ in zip(samples, range(SAMPLES), strict=False):
            found = sample | reference.run(sample, inner)
            for name, stack in stacks.items():
                stack.append(found[name])
    for segment in segments:
        folders[segment.index].mkdir()
        arrays = {f"v{i}": np.stack(stacks[str(v.name)]) for i, v in enumerate(segment.inputs)}
        np.savez(folders[segment.index] / "samples.npz", **arrays)  # type: ignore[arg-type]


def _one(program: Program, segment: Segment, folder: Path, python: Path) -> Lowered | str:
    """A segment through the sidecar, or why it does not go."""
    try:
        onnx.save(_model(program, segment), folder / "model.onnx")
    except Exception as error:  # of ONNX's converters, which fail as they please
        return f"it cannot be written in opset {OPSET}: {first_line(error)}"
    command = [str(python), str(SIDECARS / "lower.py"), str(folder)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "TF_CPP_MIN_LOG_LEVEL": "3"
    }
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT} s"
    if ran.returncode or not (folder / "result.json").is_file():
        lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {ran.returncode}"
    result = json.loads((folder / "result.json").read_text())
    values = _names(segment)
    entries = []
    for kind in ("inputs", "outputs"):
        if not all(e["dtype"] == "int8" and e["scale"] > 0 for e in result[kind]):
            return "not all of what it made is int8"
        entries.append([_entry(values[e["name"]], e) for e in result[kind]])
    return Lowered((folder / "model.tflite").read_bytes(), *entries)


def _entry(value: ir.Value, found: dict[str, Any]) -> dict[str, Any]:
    shape = list(shape_of(value))
    return {
        "name": str(value.name),
        "dtype": "int8",
        "shape": shape,
        "layout": "NHWC" if len(shape) == 4 else None,
        "scale": found["scale"],
        "zero_point": found["zero_point"],
    }


def _names(segment: Segment) -> dict[str, ir.Value]:
    """Names that TensorFlow takes: it refuses slashes and colons, of which exported models are
    full."""
    values = list(dict.fromkeys([*segment.inputs, *(v for n in segment.nodes for v in n.outputs)]))
    return {f"v{index}": value for index, value in enumerate(values)}


def _model(program: Program, segment: Segment) -> onnx.ModelProto:
    """The segment in float as plain ONNX of an opset that onnx-tf knows."""
    names = {value: name for name, value in _names(segment).items()}
    graph, functions = onnx.GraphProto(name="segment"), program.model.functions
    for node in segment.nodes:
        for value in values_read(node):
            if value not in names:
                names[value] = f"w{len(names)}"
                graph.initializer.append(
                    onnx.numpy_helper.from_array(array_of(value), names[value])
                )
        proto = ir.serde.serialize_node(node)
        proto.input[:] = ["" if v is None else names[v] for v in node.inputs]
        proto.output[:] = [names[v] for v in node.outputs]
        proto.name = proto.output[0]
        stand_in = operator_of(node).stand_in
        if stand_in is not None:
            proto = onnx.helper.make_node(stand_in, proto.input[:1], proto.output)
        graph.node.append(proto)
    for field, values in ((graph.input, segment.inputs), (graph.output, segment.outputs)):
        field.extend(
            onnx.helper.make_tensor_value_info(names[v], onnx.TensorProto.FLOAT, shape_of(v))
            for v in values
        )
    version = program.model.graph.opset_imports[""]
    opsets = [onnx.helper.make_opsetid("", version), onnx.helper.make_opsetid(DIALECT, 1)]
    whole = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    whole.functions.extend(ir.serde.serialize_function(f) for f in functions.values())
    return onnx.version_converter.convert_version(onnx.inliner.inline_local_functions(whole), OPSET)
